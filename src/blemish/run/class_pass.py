"""All images of one class through the network once, every method's maps and scores into its metrics."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from blemish.data.images import pixel_count
from blemish.data.transforms import map_to_size
from blemish.detector import DECODERS, PIXELS_IN_FLIGHT, Detector
from blemish.device import peak_memory_mib
from blemish.files import printable_name
from blemish.metrics import ClassMetrics
from blemish.output.tables import write_map
from blemish.pipeline import ordered_map
from blemish.run.evaluate_options import EvaluateOptions
from blemish.run.parts import ClassPart, Parts
from blemish.run.predict import Progress
from blemish.run.results import Counts, ImageRow
from blemish.run.scoring import Clock, Outcome, Picture, Scored, Scorer
from blemish.run.tally import Tally, image_score
from blemish.types import Sample

MAPS_FOLDER = "maps"
_UNSAFE = re.compile(r'[/\\:*?"<>|\x00-\x1f]')


class ClassPass:
    """Runs classes of one dataset, one after the other.

    root: the dataset's folder, or the list file in it. out: of the run. words: class -> what methods are told.
    """

    def __init__(
        self,
        detectors: Mapping[str, Detector],
        root: Path,
        out: Path,
        options: EvaluateOptions,
        words: Mapping[str, str],
        on_progress: Progress | None,
    ) -> None:
        self.detectors, self.options, self.show = detectors, options, on_progress
        self.base = (root if root.is_dir() else root.parent).absolute()
        self.resolution = {label: options.resolution_of(detector) for label, detector in detectors.items()}
        self.scorer = Scorer(
            detectors, {} if options.no_pixel else self.resolution, lambda sample: words[sample.class_name]
        )
        self.map_folders = self._map_folders(out) if "maps" in options.kinds else {}
        self.done = self.total = 0

    def begin(self, done: int, total: int) -> None:
        """Say how many images there are, and how many an earlier run has done."""
        self.done, self.total = done, total
        self._report(0, None)

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
        saved = parts.load_state(digest) if resume else None
        done, before, tallies = saved or (0, 0.0, self._new_tallies())
        self._report(done, None)
        files = self._map_files(name, samples)
        started = time.perf_counter()
        for batch in self._scored(samples[done:], no_pixel is None):
            for picture, outcome in batch:
                self._take(picture, outcome, tallies, files[done] if files else None)
                done += 1
            clock, self.scorer.clock = self.scorer.clock, Clock()
            for label, tally in tallies.items():
                tally.encoder += clock.encoder[label]
                tally.method += clock.method[label]
            parts.keep_state(digest, done, before + time.perf_counter() - started, tallies)
        failed = {image.path: () for tally in tallies.values() for image in tally.failed}
        return ClassPart(
            class_name=name,
            digest=digest,
            seconds=round(before + time.perf_counter() - started, 3),
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

    def _new_tallies(self) -> dict[str, Tally]:
        return {
            label: Tally(ClassMetrics(self.options.metric_options(detector.map_range)))
            for label, detector in self.detectors.items()
        }

    def _scored(self, samples: Sequence[Sample], masks: bool) -> Iterator[list[tuple[Picture, Outcome]]]:
        """Batches in order, decoded ahead in threads with bounded pixels."""
        size = self.options.batch_size
        decoded = ordered_map(
            lambda sample: self.scorer.prepare(sample, masks),
            samples,
            workers=DECODERS,
            ahead=2 * size,
            cost=lambda sample: pixel_count(sample.image),
            budget=PIXELS_IN_FLIGHT,
        )
        batch: list[Picture] = []
        with closing(decoded):
            for _, future in decoded:
                batch.append(future.result())
                if self.scorer.is_full(batch, size):
                    yield list(self.scorer.score(batch))
                    batch = []
            if batch:
                yield list(self.scorer.score(batch))

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
            tallies[label].add(row, anomaly_map, truth)
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

    def _map_folders(self, out: Path) -> dict[str, Path]:
        names = _distinct([_component(label) for label in self.detectors])
        return {label: out / MAPS_FOLDER / n for label, n in zip(self.detectors, names, strict=True)}

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
