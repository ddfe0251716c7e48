"""A folder as it lies on the user's disk -> a `Dataset`: its layout is recognised, its samples are listed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from blemish.data.catalog import CatalogEntry
from blemish.data.readers_generic import class_folders, read_mvtec
from blemish.data.reading import Problem, Reading
from blemish.errors import BadDataset, BadOption, UnknownName
from blemish.files import printable_name
from blemish.types import Sample

SPLITS = ("test", "train", "all")


@dataclass(frozen=True)
class Dataset:
    """A labelled (or bare) collection of pictures.

    name: the catalogue's name where the dataset is recognised, else the folder's. root: what was opened.
    layout: how it was read. samples: in the layout's order, classes one after the other. entry: the catalogue's
    row, or None. notes: remarks of the reader, one line each. problems: what the reader stumbled over.
    """

    name: str
    root: Path
    layout: str
    samples: tuple[Sample, ...]
    entry: CatalogEntry | None = None
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in order of appearance."""
        return tuple(dict.fromkeys(s.class_name for s in self.samples))

    def of_class(self, name: str) -> tuple[Sample, ...]:
        """The samples of one class. Raises UnknownName."""
        found = tuple(s for s in self.samples if s.class_name == name)
        if not found:
            raise UnknownName("class", name, self.classes)
        return found

    def counts(self) -> dict[str, tuple[int, int]]:
        """Class -> (normal, anomalous) numbers of samples; those without a label count as neither."""
        counts = {name: [0, 0] for name in self.classes}
        for sample in self.samples:
            if sample.label is not None:
                counts[sample.class_name][sample.label] += 1
        return {name: (normal, anomalous) for name, (normal, anomalous) in counts.items()}


def open_dataset(root: Path, dataset: str | None = None, split: str = "test") -> Dataset:
    """List the samples of a dataset; no picture is opened.

    root: folder. dataset: a catalogue name or layout; None: recognised. split: "test", "train" or "all".
    Raises BadDataset when the layout is not recognised or holds no pictures, UnknownName for a wrong name.
    """
    root = Path(root)
    if split not in SPLITS:
        raise BadOption(f"split is {split!r}; expected one of {', '.join(SPLITS)}")
    if not root.exists():
        raise BadDataset(f"{printable_name(root)}: no such folder")
    if dataset not in (None, "mvtec_layout"):
        raise UnknownName("dataset", str(dataset), ("mvtec_layout",))
    if not class_folders(root):
        raise BadDataset(
            f"{printable_name(root)}: layout not recognised; expected <class>/test/<defect> folders"
        )
    reading = Reading(root, split)
    read_mvtec(reading)
    return Dataset(
        root.resolve().name,
        root,
        "mvtec_layout",
        tuple(reading.samples),
        None,
        tuple(reading.notes),
        tuple(reading.problems),
    )
