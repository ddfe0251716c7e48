"""All images of one class through the network once, every method's maps and scores into its metrics."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from blemish.data.images import pixel_count
from blemish.data.transforms import map_to_size
from blemish.detector import Detector
from blemish.device import peak_memory_mib
from blemish.errors import BadOption
from blemish.files import printable_name
from blemish.metrics import ClassMetrics
from blemish.output.embeddings import ClassTexts, read_texts, write_projection, write_texts
from blemish.output.tables import write_map
from blemish.pipeline import decoded_batches
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.normals import Normals
from blemish.run.parts import ClassPart, Parts
from blemish.run.predict import Progress
from blemish.run.results import Counts, ImageRow
from blemish.run.scoring import Clock, Outcome, Picture, Scored, Scorer
from blemish.run.tally import Tally
from blemish.score_rule import image_score
from blemish.types import Sample

MAPS_FOLDER, TEXTS_FOLDER, MEMORY_FOLDER = "maps", "embeddings", "memory"
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f]')


@dataclass(frozen=True)
class Work:
    """Samples of one class to be scored. masks: whether theirs are read. files: for their maps, or none at all."""

    name: str
    samples: Sequence[Sample]
    masks: bool
    files: Sequence[Path]

    def part(self, first: int, last: int | None = None) -> Work:
        """Some of the samples."""
        return Work(self.name, self.samples[first:last], self.masks, self.files[first:last])


class Spread(Protocol):
    """Workers in other processes that score classes in parts."""

    def begin(self, pass_over: ClassPass, works: Sequence[Work]) -> None:
        """Say what all classes are, in order."""
        ...

    def tallies(self, work: Work) -> Iterator[tuple[int, dict[str, Tally]]]:
        """(number of samples, states by label) of consecutive parts, in order. work: the end of the next class."""
        ...


class ClassPass:
    """Runs classes of one dataset, one after the other.

    root: the dataset's folder, or the list file in it. out: of the run. words: class -> what methods are told.
    normals: what few-shot methods remember of each class. spread: who scores the images, if not this process.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        root: Path,
        out: Path,
        options: EvaluateOptions,
        words: Mapping[str, str],
        on_progress: Progress | None,
        normals: Normals | None = None,
        spread: Spread | None = None,
    ) -> None:
        self.normals, self.spread = normals, spread
        self.root, self.out, self.words = root, out, words
        self.detectors, self.options, self.show = detectors, options, on_progress
        self.base = (root if root.is_dir() else root.parent).absolute()
        self.resolution = {label: options.resolution_of(detector) for label, detector in detectors.items()}
        texts = "embeddings" in options.kinds
        if texts and (tiled := [label for label, d in detectors.items() if d.setup.tile is not None]):
            raise BadOption(
                f"--save embeddings takes whole pictures, {tiled[0]} sees tiles; leave out --tile"
            )
        self.scorer = Scorer(
            detectors,
            {} if options.no_pixel else self.resolution,
            lambda sample: words[sample.class_name],
            texts,
        )
        self.map_folders = self._folders(out / MAPS_FOLDER) if "maps" in options.kinds else {}
        self.text_folders = self._folders(out / TEXTS_FOLDER) if texts else {}
        self.memory_folders = self._folders(out / MEMORY_FOLDER) if "memory" in options.kinds else {}
        files = _distinct([_component(name) for name in words])
        self.files = dict(zip(words, files, strict=True))
        self.text_files = {name: f"{file}.npz" for name, file in zip(words, files, strict=True)}
        if spread is not None and self.scorer.surveyors:
            raise BadOption(
                f"{self.scorer.surveyors[0]} looks at all images of a class before it scores any, which workers cannot "
                f"share; evaluate it with the local engine"
            )
        self.done = self.total = 0

    def begin(self, done: int, total: int, works: Sequence[Work]) -> None:
        """Say how many images there are, how many an earlier run has done, and what is left."""
        self.done, self.total = done, total
        if self.spread is not None and works:
            self.spread.begin(self, works)
        self._report(0, None)

    def work(self, name: str, samples: Sequence[Sample], no_pixel: str | None) -> Work:
        """A whole class. no_pixel: why its masks are not read."""
        return Work(name, samples, no_pixel is None, self._map_files(name, samples))

    def names(self, samples: Sequence[Sample]) -> list[str]:
        """One text per sample that says which it is, which label it has, and how its mask is read."""
        return [
            f"{self.name(s)}|{s.label}|{s.box}|{s.mask and s.mask.name}|{s.mask_rule}|{s.defect}"
            for s in samples
        ]

    def name(self, sample: Sample) -> str:
        """Its path below the dataset's folder, with `/`; of a file elsewhere the last folders."""
        path = sample.image.absolute()
        below = path.relative_to(self.base) if path.is_relative_to(self.base) else Path(*path.parts[-3:])
        return printable_name(below.as_posix())

    def stamps(self, samples: Sequence[Sample], wanted: Mapping[str, object]) -> dict[str, tuple[int, ...]]:
        """Size and time of change of the files of those samples whose name is in `wanted`; no file: empty."""
        return {
            self.name(sample): (*_stamp(sample.image), *(_stamp(sample.mask) if sample.mask else ()))
            for sample in samples
            if self.name(sample) in wanted
        }

    def run(
        self,
        name: str,
        samples: Sequence[Sample],
        counts: Counts,
        no_pixel: str | None,
        parts: Parts,
        digest: str,
        resume: bool,
    ) -> ClassPart:
        """One class; from the state in `parts` when `resume` and there is one. no_pixel: why without masks."""
        with self._normals_of(name):
            saved = parts.load_state(digest) if resume else None
            done, before, tallies = saved or (0, 0.0, self.new_tallies())
            self._report(done, None)
            work = self.work(name, samples, no_pixel).part(done)
            started = time.perf_counter()
            if self.scorer.surveyors:
                for number, pictures in enumerate(self._batches(samples, masks=False)):
                    self.scorer.survey(pictures, first=number == 0)
            for count in self.score(work, tallies) if self.spread is None else self._merge(work, tallies):
                done += count
                parts.keep_state(digest, done, before + time.perf_counter() - started, tallies)
            seconds = before + time.perf_counter() - started
        failed = {image.path: () for tally in tallies.values() for image in tally.failed}
        self._write_texts(name, tallies)
        return ClassPart(
            class_name=name,
            digest=digest,
            seconds=round(seconds, 3),
            results={
                label: tally.result(counts, no_pixel, self.resolution[label])
                for label, tally in tallies.items()
            },
            encoder={label: tally.encoder for label, tally in tallies.items()},
            method={label: tally.method for label, tally in tallies.items()},
            scored={label: len(tally.rows) for label, tally in tallies.items()},
            peak_memory_mib=round(peak_memory_mib(next(iter(self.detectors.values())).device), 1),
            stamps=self.stamps(samples, failed),
        )

    @contextmanager
    def _normals_of(self, name: str) -> Iterator[None]:
        """The methods know the normal images of a class, where there are any; what they remember is written."""
        with self.normals.remembered(self.detectors, name) if self.normals else nullcontext():
            self._write_memories(name)
            yield

    def score(self, work: Work, tallies: Mapping[str, Tally]) -> Iterator[int]:
        """Score samples into the states, by label; yields batch by batch how many it were."""
        done = 0
        for batch in self._scored(work.samples, work.masks):
            for picture, outcome in batch:
                self._take(picture, outcome, tallies, work.files[done] if work.files else None)
                done += 1
            clock, self.scorer.clock = self.scorer.clock, Clock()
            for label, tally in tallies.items():
                tally.encoder += clock.encoder[label]
                tally.method += clock.method[label]
            yield len(batch)

    def _merge(self, work: Work, tallies: Mapping[str, Tally]) -> Iterator[int]:
        """The same, from the states of workers."""
        assert self.spread is not None
        for count, found in self.spread.tallies(work):
            for label, tally in tallies.items():
                tally.merge(found[label])
            for image in next(iter(found.values())).failed:
                self._report(0, f"{image.path}: {image.error}")
            self._report(count, None)
            yield count

    def new_tallies(self) -> dict[str, Tally]:
        """States without any image, by label."""
        return {
            label: Tally(ClassMetrics(self.options.metric_options(detector.map_range)))
            for label, detector in self.detectors.items()
        }

    def _write_memories(self, name: str) -> None:
        """What every method remembers of a class, one file each, or of all classes in one."""
        assert self.normals is not None or not self.memory_folders
        for label, folder in self.memory_folders.items():
            alone = folder.with_name(f"{folder.name}.safetensors")
            self.detectors[label].save_memory(
                alone if self.normals and self.normals.shared else folder / f"{self.files[name]}.safetensors"
            )

    def has_texts(self, name: str) -> bool:
        """Whether the text embeddings of a class are there for every method, or not asked for."""
        return all((folder / self.text_files[name]).is_file() for folder in self.text_folders.values())

    def draw_texts(self, names: Sequence[str]) -> None:
        """A picture of every method's text embeddings of these classes. Raises OutputError."""
        for label, folder in self.text_folders.items():
            classes = [read_texts(folder / self.text_files[name]) for name in names]
            if any(texts.images for texts in classes):
                write_projection(folder.with_name(f"{folder.name}.png"), classes, f"Text embeddings, {label}")

    def _write_texts(self, name: str, tallies: Mapping[str, Tally]) -> None:
        for label, folder in self.text_folders.items():
            tally = tallies[label]
            rows = np.stack(tally.texts) if tally.texts else np.zeros((0, 2, 0), dtype=np.float32)
            paths, labels = (tuple(getattr(row, key) for row in tally.rows) for key in ("path", "label"))
            write_texts(folder / self.text_files[name], ClassTexts(name, paths, labels, rows))

    def _scored(self, samples: Sequence[Sample], masks: bool) -> Iterator[list[tuple[Picture, Outcome]]]:
        """Batches in order, each with what the methods said."""
        with closing(self._batches(samples, masks)) as batches:
            for batch in batches:
                yield list(self.scorer.score(batch))
                del batch  # its pictures would live on while the next are decoded

    def _batches(self, samples: Sequence[Sample], masks: bool) -> Generator[list[Picture], None, None]:
        """Batches in order, decoded ahead in threads with bounded pixels."""
        size = self.options.batch_size
        return decoded_batches(
            lambda sample: self.scorer.prepare(sample, masks),
            samples,
            size,
            cost=lambda sample: pixel_count(sample.image),
            is_full=lambda batch: self.scorer.is_full(batch, size),
        )

    def _take(
        self, picture: Picture, outcome: Outcome, tallies: Mapping[str, Tally], file: Path | None
    ) -> None:
        """One picture into every method's tally, and its maps to disk."""
        sample, name, error = picture.sample, self.name(picture.sample), None
        assert sample.label is not None
        for label, found in outcome.items():
            if not isinstance(found, Scored):
                error = self._short(sample, found)
                tallies[label].fail(name, error)
                continue
            score = image_score(self.options.score_rule, found.map, found.score)
            resolution = self.resolution[label]
            truth = picture.truths.get(resolution)
            at = picture.size if isinstance(resolution, str) else (resolution, resolution)
            anomaly_map = None if truth is None else map_to_size(found.map, at)
            row = ImageRow(name, sample.label, score, sample.defect, sample.box)
            tallies[label].add(row, anomaly_map, truth, found.texts)
            if file is not None:
                write_map(self.map_folders[label] / file, map_to_size(found.map, picture.size))
        self._report(1, f"{name}: {error}" if error else None)

    def _report(self, more: int, error: str | None) -> None:
        self.done += more
        if self.show is not None:
            self.show(self.done, self.total, error)

    def _short(self, sample: Sample, cause: str) -> str:
        """A cause without what would repeat the image's name or tell where the dataset lies."""
        folders = [self.base, *(path.parent for path in (sample.image, sample.mask) if path is not None)]
        for prefix in (f"{printable_name(sample.image)}: ", *(f"{printable_name(f)}/" for f in folders)):
            cause = cause.replace(prefix, "")
        return cause

    def _folders(self, place: Path) -> dict[str, Path]:
        names = _distinct([_component(label) for label in self.detectors])
        return {label: place / n for label, n in zip(self.detectors, names, strict=True)}

    def _map_files(self, class_name: str, samples: Sequence[Sample]) -> list[Path]:
        """MVTec's places, <class>/test/<defect>/<stem>.tiff, one for every sample; none when not asked for."""
        if not self.map_folders:
            return []
        stems = [
            f"{_component(s.split)}/{_component(s.defect or ('good', 'anomaly')[bool(s.label)])}/"
            f"{_component(s.image.stem)}"
            for s in samples
        ]
        return [Path(_component(class_name), f"{stem}.tiff") for stem in _distinct(stems)]


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns


def _component(text: str) -> str:
    """Text as one part of a path, on any system."""
    return _UNSAFE.sub("_", printable_name(text)).strip(". ") or "_"


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that occur again get _1, _2 and so on (parts of one picture; a.jpg beside a.png)."""
    given: Counter[str] = Counter()
    taken, found = set(names), []
    for name in names:
        choice = name
        while given[name] and choice in taken:
            choice = f"{name}_{given[name]}"
            given[name] += 1
        given[name] = max(given[name], 1)
        taken.add(choice)
        found.append(choice)
    return found
