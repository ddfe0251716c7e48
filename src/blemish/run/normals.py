"""Which normal images few-shot methods remember while a class is evaluated, and their memories as files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blemish.checkpoint import file_hash
from blemish.data.layouts import Dataset, open_dataset
from blemish.data.samples import load_pixels
from blemish.detector import Detector
from blemish.errors import BadDataset, BadOption
from blemish.few_shot import choose, is_memory, normal_images, read_memory, remembering
from blemish.files import printable_name
from blemish.types import Sample

MEMORY_ENDING = ".safetensors"


@dataclass(frozen=True)
class Normals:
    """class -> a memory file, or the normal images themselves; `shared` when all classes have the same."""

    sources: Mapping[str, Path | tuple[Sample, ...]]
    shared: bool

    @contextmanager
    def remembered(self, detectors: Mapping[str, Detector], name: str) -> Iterator[None]:
        """The detectors remember what belongs to class `name`, and nothing any more afterwards.

        Raises BadImage for a normal image that cannot be read, BadCheckpoint for a memory that does not fit.
        """
        before = {label: detector.setup for label, detector in detectors.items()}
        source = self.sources[name]
        try:
            for detector in detectors.values():
                if isinstance(source, Path):
                    read_memory(detector, source)
                else:
                    detector.remember(map(load_pixels, source))
            yield
        finally:
            for label, detector in detectors.items():
                detector.forget()
                detector.setup = before[label]

    def describe(self) -> dict[str, Any]:
        """What identifies them, for the run's settings: no paths, which may tell a user's name."""
        found: dict[str, Any] = {}
        for name, source in self.sources.items():
            if isinstance(source, Path):
                found[name] = {"memory": source.name, "sha256": file_hash(source)}
            else:
                digest = hashlib.sha256()
                for sample in source:
                    digest.update(f"{file_hash(sample.image)} {sample.box} ".encode())
                names = [printable_name(sample.image.name) for sample in source]
                found[name] = {"images": names, "sha256": digest.hexdigest()}
        return found

    def note(self) -> str:
        """How many images, in a few words for the results."""
        counts = sorted({len(s) for s in self.sources.values() if not isinstance(s, Path)})
        if not counts:
            return "few-shot, with memories made earlier"
        shots = "-".join(map(str, (counts[0], counts[-1])[: len(counts)]))
        images = "image" if counts[-1] == 1 else "images"
        return f"few-shot: {shots} normal {images} {'for all classes' if self.shared else 'a class'}"

    def warnings(self, classes: Mapping[str, Sequence[Sample]]) -> list[str]:
        """A remark when images that are measured are remembered as normal ones too."""
        count = 0
        for name, samples in classes.items():
            source = self.sources[name]
            if not isinstance(source, Path):
                known = {(s.image.resolve(), s.box) for s in source}
                count += sum((s.image.resolve(), s.box) in known for s in samples)
        return [f"{count} of the images measured are remembered as normal ones too"] if count else []


def find_normals(
    source: str | Path, dataset: Dataset, classes: Sequence[str], shots: int | None, seed: int
) -> Normals:
    """Where the normal images of each class are.

    source: a memory file, a picture or a folder of pictures, the same for all classes; a folder in which classes
    have a folder of pictures or a memory file of their own, <class> or <class>.safetensors; or the dataset's own
    root: the normal images of its training split. shots: so many of them a class, drawn by `seed`.
    Raises BadDataset when a class has none, BadOption for too many, BadImage for a path that is not there.
    """
    root = Path(source).expanduser()
    if root.is_dir() and root.resolve() == dataset.root.resolve():
        train = open_dataset(dataset.root, dataset.layout, "train")
        return Normals({name: _trained(train, name, shots, seed) for name in classes}, shared=False)
    own = {name: found for name in classes if (found := _own(root, name)) is not None}
    if own and len(own) < len(classes):
        missing = next(name for name in classes if name not in own)
        raise BadDataset(
            f"{printable_name(root)} has normal images of {next(iter(own))} and none of {missing}; add a folder "
            f"{missing}, or name the classes to evaluate with --classes"
        )
    if own:
        return Normals({name: _one(path, shots, seed) for name, path in own.items()}, shared=False)
    return Normals(dict.fromkeys(classes, _one(root, shots, seed)), shared=True)


def _own(root: Path, name: str) -> Path | None:
    """A class's own memory file or folder below the root; of a class in MVTec's layout its training images."""
    if not name or name in (".", "..") or "/" in name:
        return None
    places = (root / f"{name}{MEMORY_ENDING}", root / name / "train" / "good", root / name)
    return next((path for path in places if path.exists()), None)


def _one(path: Path, shots: int | None, seed: int) -> Path | tuple[Sample, ...]:
    if is_memory(path):
        if shots is not None:
            raise BadOption(f"{printable_name(path)} is a memory already made; leave --shots out")
        return path
    return tuple(Sample(image, 0) for image in normal_images(path, shots, seed))


def _trained(train: Dataset, name: str, shots: int | None, seed: int) -> tuple[Sample, ...]:
    """Normal images of a class in a dataset's training split."""
    found = [s for s in train.samples if s.class_name == name and s.label == 0]
    if not found:
        raise BadDataset(
            f"{train.name} has no normal training images of {name}; give a folder of some with --normal DIR"
        )
    return tuple(choose(found, shots, seed, f"the training split of {name}"))


def check_able(detectors: Mapping[str, Detector]) -> None:
    """Refuse detectors that cannot remember, or remember something already. Raises BadOption."""
    for label, detector in detectors.items():
        remembering(detector)
        if detector.setup.normal_images:
            raise BadOption(f"{label} remembers normal images already; leave out normal, or make it forget")
