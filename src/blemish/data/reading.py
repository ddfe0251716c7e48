"""What the readers of all layouts share: listing folders, pairing masks by name, collecting samples."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from blemish.data.find import IMAGE_ENDINGS, natural_key
from blemish.errors import BadDataset
from blemish.files import printable_name
from blemish.types import Sample

NORMAL_NAMES = ("good", "ok", "normal", "no")
ABNORMAL_NAMES = (
    *("bad", "ko", "ng", "nok", "not_good", "yes", "abnormal", "anomaly", "anomalies", "anomalous"),
    *("defect", "defects", "defective", "faulty"),
)
MASK_MARKS = ("_mask", "", "_gt", "_label", "_segmentation")
MASK_FOLDERS = ("ground_truth", "groundtruth", "ground truth", "gt", "mask", "masks")


class WrongLayout(BadDataset):
    """The folder is not of the layout that was tried; another may fit."""


@dataclass(frozen=True)
class Problem:
    """Something about a dataset that is not as it should be.

    kind: one word for machines, such as "missing" or "mask_size". path: the file or folder; None: the whole.
    text: one line for people. fatal: this sample cannot be used. remark: good to know, yet nothing is wrong.
    """

    kind: str
    path: Path | None
    text: str
    fatal: bool = False
    remark: bool = False


@dataclass
class Reading:
    """What a reader is asked and what it has found so far.

    root: the folder (or file) that was named. split: "test", "train" or "all". class_name: name for the samples
    of one-class layouts. variant: what stood behind the colon of a dataset's name ("thirds"), or "".
    """

    root: Path
    split: str = "all"
    class_name: str = ""
    variant: str = ""
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def wants(self, split: str) -> bool:
        """Whether samples of this split are asked for."""
        return self.split in (split, "all")

    def add(
        self,
        image: Path,
        label: int | None,
        mask: Path | None = None,
        *,
        class_name: str | None = None,
        defect: str = "",
        split: str = "test",
        box: tuple[int, int, int, int] | None = None,
    ) -> None:
        """Take one sample, unless its split is not asked for. class_name: `self.class_name` when None."""
        if self.wants(split):
            name = (self.class_name or "object") if class_name is None else class_name
            self.samples.append(Sample(image, label, mask, name, defect, split, box))

    def add_paired(
        self,
        images: Sequence[Path],
        masks: Sequence[Path],
        *,
        class_name: str,
        defect: str,
        split: str = "test",
    ) -> None:
        """Take anomalous pictures with the masks that fit by name; masks left over become problems."""
        pairs, left = pair_by_stem(images, masks)
        for image in images:
            self.add(image, 1, pairs.get(image), class_name=class_name, defect=defect, split=split)
        if self.wants(split):
            self.left_over(left)

    def left_over(self, masks: Iterable[Path]) -> None:
        """Report masks that belong to no picture."""
        for mask in masks:
            self.problems.append(
                Problem("mask_without_image", mask, f"{self.short(mask)}: no picture has this name")
            )

    def short(self, path: Path) -> str:
        """A path for people, relative to the root where it lies below it."""
        base = self.root if self.root.is_dir() else self.root.parent
        return printable_name(path.relative_to(base) if path.is_relative_to(base) else path)


@dataclass(frozen=True)
class _Listing:
    folders: tuple[Path, ...] = ()
    files: tuple[Path, ...] = ()


_listings: ContextVar[dict[Path, _Listing] | None] = ContextVar("listings", default=None)


@contextlib.contextmanager
def remembered_listings() -> Iterator[None]:
    """Inside, each folder is listed once: recognising a layout looks into the same folders many times."""
    token = _listings.set({})
    try:
        yield
    finally:
        _listings.reset(token)


def _listing(folder: Path) -> _Listing:
    """What a folder holds, in natural order, hidden names left out; nothing when it cannot be read."""
    known = _listings.get()
    if known is not None and folder in known:
        return known[folder]
    try:
        with os.scandir(folder) as entries:
            found = [(natural_key(Path(e.name)), e.is_dir(), e.name) for e in entries if e.name[0] != "."]
    except OSError:
        found = []
    found.sort()
    listing = _Listing(
        tuple(folder / name for _, is_folder, name in found if is_folder),
        tuple(folder / name for _, is_folder, name in found if not is_folder),
    )
    if known is not None:
        known[folder] = listing
    return listing


def subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, in natural order, hidden ones left out; empty when it cannot be read."""
    return list(_listing(folder).folders)


def pictures(folder: Path, endings: Sequence[str] = IMAGE_ENDINGS) -> list[Path]:
    """Files of the given endings directly in a folder, in natural order, hidden ones left out."""
    return [p for p in _listing(folder).files if p.suffix.lower() in endings]


def pictures_below(folder: Path) -> list[Path]:
    """Pictures in a folder and, in natural order after them, in its subfolders at any depth."""
    found = pictures(folder)
    for inner in subfolders(folder):
        if not inner.is_symlink():  # a circular link would never end
            found += pictures_below(inner)
    return found


def child(folder: Path, *names: str) -> Path | None:
    """The entry of a folder that has one of these names, without regard to case; earlier names first."""
    listing = _listing(folder)
    wanted = [name.casefold() for name in names]
    present = {
        p.name.casefold(): p for p in (*listing.files, *listing.folders) if p.name.casefold() in wanted
    }
    return next((present[name] for name in wanted if name in present), None)


def is_normal_name(name: str) -> bool:
    """Whether a folder of this name holds normal pictures: good, ok, normal, no, in any case."""
    return name.casefold() in NORMAL_NAMES


def pair_by_stem(images: Sequence[Path], masks: Sequence[Path]) -> tuple[dict[Path, Path], list[Path]]:
    """(picture -> its mask, masks left over), by name and never by position.

    The mask of `x.jpg` is `x_mask`, `x`, `x_GT`, `x_label` or `x_segmentation` with any ending, without regard
    to case; the first of these when there are several. A mask serves one picture only; of several pictures with
    its name the one with the same ending, or else the first.
    """
    by_stem: dict[str, list[Path]] = {}
    for mask in masks:
        by_stem.setdefault(mask.stem.casefold(), []).append(mask)
    pairs: dict[Path, Path] = {}
    used: set[Path] = set()
    waiting = [(image, image.stem.casefold()) for image in images]
    for mark in MASK_MARKS:
        chances = [(image, stem, by_stem[stem + mark]) for image, stem in waiting if stem + mark in by_stem]
        for image, _, fitting in sorted(chances, key=lambda chance: not _same_ending(chance[0], chance[2])):
            free = [mask for mask in fitting if mask not in used]
            if free:
                pairs[image] = free[0]
                used.add(free[0])
        waiting = [(image, stem) for image, stem in waiting if image not in pairs]
    return pairs, [mask for mask in masks if mask not in used]


def _same_ending(image: Path, masks: Sequence[Path]) -> bool:
    return any(image.suffix.casefold() == mask.suffix.casefold() for mask in masks)


def no_pictures(root: Path, looked_for: str) -> BadDataset:
    """The error for a folder that is of a layout and yet holds nothing to use."""
    return BadDataset(f"no pictures in {printable_name(root)}: looked for {looked_for}")
