"""What is off in a dataset: every file is opened once, what is found is put beside what is expected."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blemish.data.catalog import CatalogEntry, Counts, plain
from blemish.data.images import read_image
from blemish.data.layouts import Dataset
from blemish.data.reading import Problem
from blemish.data.samples import MaskDoesNotFit, fit_mask, read_mask_values
from blemish.data.transforms import resize_mask
from blemish.errors import BadImage
from blemish.files import printable_name
from blemish.types import Sample

__all__ = ["IMAGE_SIZE", "ClassRow", "Problem", "Report", "check_dataset"]

IMAGE_SIZE = 518
MOST_CLASS_IDS = 40
Size = tuple[int, int]


@dataclass(frozen=True)
class ClassRow:
    """One class: test pictures found by label, what the papers count, and the rest in numbers.

    expected: (normal, anomalous) or None when unknown. train: pictures for training. masks: outlined anomalous
    pictures. smallest, largest: (width, height) by area, None when nothing could be read. sizes: different ones.
    """

    name: str
    normal: int
    anomalous: int
    unlabelled: int
    train: int
    masks: int
    expected: Counts | None = None
    smallest: Size | None = None
    largest: Size | None = None
    sizes: int = 0


@dataclass(frozen=True)
class Report:
    """The outcome of `check_dataset`.

    classes: a row each. problems: everything found, see `Problem`. expected: (normal, anomalous) test pictures of
    the papers, None when the dataset is not recognised. image_size: side to which masks were resized.
    """

    dataset: Dataset
    classes: tuple[ClassRow, ...]
    problems: tuple[Problem, ...]
    expected: Counts | None
    image_size: int

    @property
    def ok(self) -> bool:
        """Whether nothing is off; remarks do not count."""
        return all(problem.remark for problem in self.problems)

    @property
    def total(self) -> Counts:
        """(normal, anomalous) test pictures found."""
        return sum(row.normal for row in self.classes), sum(row.anomalous for row in self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        data, entry = self.dataset, self.dataset.entry
        return {
            "kind": "dataset",
            "name": data.name,
            "root": printable_name(data.root),
            "layout": data.layout,
            "recognised": entry is not None,
            "licence": entry.licence if entry else None,
            "source": entry.source if entry else None,
            "ok": self.ok,
            "found": list(self.total),
            "expected": list(self.expected) if self.expected else None,
            "image_size": self.image_size,
            "classes": [dataclasses.asdict(row) for row in self.classes],
            "notes": list(data.notes),
            "problems": [
                vars(p) | {"path": None if p.path is None else printable_name(p.path)} for p in self.problems
            ],
        }


@dataclass
class _Seen:
    """What opening one picture and the masks of its samples brought."""

    size: Size | None = None
    digest: bytes = b""
    problems: list[Problem] = field(default_factory=list)
    values: list[tuple[str, str]] = field(default_factory=list)  # (class, oddity of its mask's values)


def check_dataset(
    dataset: Dataset,
    image_size: int | None = None,
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int, str | None], None] | None = None,
) -> Report:
    """Open every picture and mask of a dataset once, and compare.

    image_size: side to which masks are resized to see whether something is left of them; None: 518. threads: how
    many files at a time; None: one per core. on_progress: called with (done, total, None).

    Kinds of problems: unreadable, missing, mask_size (these three fatal), mask_without_image, image_without_mask,
    empty_mask, empty_after_resize, count_differs, missing_class, extra_class, duplicate, escaping_path; and
    remarks: one_label_only, no_masks, mask_values, mask_scaled, duplicate (where it does no harm).
    """
    side = image_size or IMAGE_SIZE
    by_image: defaultdict[Path, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        by_image[sample.image].append(sample)
    maskless = {c for c in dataset.classes if not any(s.mask for s in dataset.of_class(c))}
    seen: dict[Path, _Seen] = {}
    pool = ThreadPoolExecutor(threads or os.cpu_count() or 1)
    try:
        jobs = pool.map(lambda samples: _look(samples, side, maskless), by_image.values())
        for done, (path, result) in enumerate(zip(by_image, jobs, strict=True), start=1):
            seen[path] = result
            if on_progress is not None:
                on_progress(done, len(by_image), None)
    finally:
        pool.shutdown(cancel_futures=True)
    problems = [*dataset.problems, *(p for result in seen.values() for p in result.problems)]
    problems += [*_of_values(seen.values()), *_of_classes(dataset, maskless), *_duplicates(by_image, seen)]
    problems += _of_counts(dataset)
    rows = tuple(_row(dataset, name, seen) for name in dataset.classes)
    expected = dataset.entry.total if dataset.entry and _tested(dataset) else None
    return Report(dataset, rows, tuple(problems), expected, side)


def _look(samples: Sequence[Sample], side: int, maskless: set[str]) -> _Seen:
    """Open one picture, and the masks of the samples that are parts of it."""
    path, seen = samples[0].image, _Seen()
    name = printable_name(path)
    if not path.is_file():
        seen.problems.append(Problem("missing", path, f"{name}: no such file", fatal=True))
        return seen
    try:
        height, width = read_image(path).shape[:2]
        with path.open("rb") as file:
            seen.digest = hashlib.file_digest(file, "sha256").digest()
    except (BadImage, OSError) as error:
        seen.problems.append(Problem("unreadable", path, str(error), fatal=True))
        return seen
    seen.size = (width, height)
    for sample in samples:
        x0, y0, x1, y1 = sample.box or (0, 0, width, height)
        if sample.label == 1 and sample.mask is None and sample.class_name not in maskless:
            text = f"{name}: anomalous and without a mask; it counts for image-level metrics only"
            seen.problems.append(Problem("image_without_mask", path, text))
        elif sample.label != 0 and sample.mask is not None:
            _look_at_mask(sample, sample.mask, (y1 - y0, x1 - x0), side, seen)
    return seen


def _look_at_mask(sample: Sample, path: Path, size: tuple[int, int], side: int, seen: _Seen) -> None:
    name = printable_name(path)
    if not path.is_file():
        seen.problems.append(Problem("missing", path, f"{name}: no such mask", fatal=True))
        return
    try:
        values = read_mask_values(path)
        mask = fit_mask(values, sample, size)
    except MaskDoesNotFit as error:
        seen.problems.append(Problem("mask_size", path, str(error), fatal=True))
        return
    except BadImage as error:
        seen.problems.append(Problem("unreadable", path, str(error), fatal=True))
        return
    if sample.box is None and values.shape != size:
        text = f"{name}: the mask is {values.shape[1]}×{values.shape[0]}, the picture {size[1]}×{size[0]}; resized"
        seen.problems.append(Problem("mask_scaled", path, text, remark=True))
    if not mask.any():
        text = f"{name}: the mask of an anomalous picture is empty (rule {sample.mask_rule})"
        seen.problems.append(Problem("empty_mask", path, text))
    elif not resize_mask(mask, side).any():
        text = f"{name}: nothing is left of the mask at {side}×{side}; use a larger --image-size"
        seen.problems.append(Problem("empty_after_resize", path, text))
    if sample.mask_rule == ">0" and (odd := _oddity(values, path)):
        seen.values.append((sample.class_name, odd))


def _oddity(values: np.ndarray, path: Path) -> str:
    """A word for mask values that are not of two kinds; "" where nothing is odd."""
    if values.dtype != np.uint8:
        return "more than 8 bits"
    present = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
    marked = present[present > 0]
    if marked.size <= 1 and (not marked.size or marked[0] in (1, 255)):
        return ""
    if marked[-1] <= MOST_CLASS_IDS:
        return "class ids"
    if path.suffix.lower() in (".jpg", ".jpeg"):
        return "JPEG noise"
    return "grey values" if marked.size > 1 else ""


MEANINGS = {
    "class ids": "hold class ids and look black; every value above 0 counts",
    "JPEG noise": "are JPEG with noise around the edges; every value above 0 counts, which enlarges them",
    "grey values": "hold grey values; every value above 0 counts, which may enlarge them",
    "more than 8 bits": "have more than 8 bits; every value above 0 counts",
}


def _of_values(seen: Iterable[_Seen]) -> Iterator[Problem]:
    counts = Counter(value for result in seen for value in result.values)
    for (name, odd), count in counts.items():
        yield Problem("mask_values", None, f"{name}: {count} masks {MEANINGS[odd]}", remark=True)


def _tested(dataset: Dataset) -> bool:
    return dataset.split in ("test", "all")


def _of_classes(dataset: Dataset, maskless: set[str]) -> Iterator[Problem]:
    """Classes for which some metrics will be undefined."""
    for name in dataset.classes:
        labels = Counter(s.label for s in dataset.of_class(name) if s.split == "test")
        if len(labels) == 1 and None not in labels:
            kind = "anomalous" if 1 in labels else "normal"
            text = f"{name}: only {kind} test pictures; image AUROC will be n/a"
            yield Problem("one_label_only", None, text, remark=True)
        if name in maskless and labels[1]:
            text = f"{name}: no masks; image-level metrics only, pixel metrics will be n/a"
            yield Problem("no_masks", None, text, remark=True)


def _duplicates(by_image: dict[Path, list[Sample]], seen: dict[Path, _Seen]) -> Iterator[Problem]:
    groups: defaultdict[bytes, list[Path]] = defaultdict(list)
    for path, result in seen.items():
        if result.digest:
            groups[result.digest].append(path)
    for paths in groups.values():
        if len(paths) < 2:
            continue
        samples = [s for path in paths for s in by_image[path]]
        why = ""
        if len({s.label for s in samples}) > 1 and all(s.box is None for s in samples):
            why = ", with different labels"
        elif len({s.split for s in samples}) > 1 and all(s.box is None for s in samples):
            why = ", for training and for testing"
        others = ", ".join(printable_name(p) for p in paths[1:4]) + (", …" if len(paths) > 4 else "")
        text = f"{printable_name(paths[0])}: the same file as {others}{why}"
        yield Problem("duplicate", paths[0], text, remark=not why)


def _of_counts(dataset: Dataset) -> Iterator[Problem]:
    entry = dataset.entry
    if entry is None or not _tested(dataset):
        return
    found = _test_counts(dataset)
    names = {plain(n) for n in (*entry.classes, *entry.class_aliases)}
    for name in (n for n in dataset.classes if plain(n) not in names):
        yield Problem("extra_class", None, f"{name}: no class of {entry.title}")
    one_of_many = len(entry.classes) > 1 and len(found) == 1
    if len(entry.classes) > 1 and not one_of_many:
        present = {plain(n) for n in found}
        for name in (n for n in entry.classes if plain(n) not in present):
            yield Problem("missing_class", None, f"{name}: a class of {entry.title} that is not here")
    for name, counts in found.items():
        if name in entry.per_class and counts != entry.per_class[name]:
            yield Problem("count_differs", None, f"{name}: {_compared(counts, entry.per_class[name])}")
    total = (sum(n for n, _ in found.values()), sum(a for _, a in found.values()))
    known = (entry.total, *entry.also.values())
    if not entry.per_class and not one_of_many and total not in known:
        yield Problem(
            "count_differs", None, f"{entry.title}: {_compared(total, entry.total)}{_others(entry)}"
        )


def _compared(found: Counts, expected: Counts) -> str:
    return (
        f"{found[0]} normal and {found[1]} anomalous test pictures, "
        f"the papers count {expected[0]} and {expected[1]}"
    )


def _others(entry: CatalogEntry) -> str:
    return "".join(f" (or {n} and {a} {how})" for how, (n, a) in entry.also.items())


def _test_counts(dataset: Dataset) -> dict[str, Counts]:
    found: dict[str, Counts] = {}
    for name in dataset.classes:
        labels = Counter(s.label for s in dataset.of_class(name) if s.split == "test")
        found[name] = (labels[0], labels[1])
    return found


def _row(dataset: Dataset, name: str, seen: dict[Path, _Seen]) -> ClassRow:
    samples = dataset.of_class(name)
    labels = Counter(s.label for s in samples if s.split == "test")
    sizes = sorted({size for s in samples if (size := seen[s.image].size)}, key=lambda s: (s[0] * s[1], s))
    expected = dataset.entry.expected(name) if dataset.entry and _tested(dataset) else None
    return ClassRow(
        name,
        labels[0],
        labels[1],
        labels[None],
        sum(s.split == "train" for s in samples),
        sum(s.mask is not None for s in samples if s.label == 1),
        expected,
        sizes[0] if sizes else None,
        sizes[-1] if sizes else None,
        len(sizes),
    )
