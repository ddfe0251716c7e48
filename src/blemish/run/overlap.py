"""Does a method meet at test time what it was trained on? Then its figures are no zero-shot figures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blemish.checkpoint import is_checkpoint, read_meta
from blemish.data.catalog import CATALOG, SHARED_NAMES, plain
from blemish.data.layouts import Dataset, open_dataset
from blemish.errors import BlemishError
from blemish.run.cells import Cell

# Names that say nothing about what a class shows.
WORDLESS = frozenset(map(plain, (*SHARED_NAMES, "object", "texture", "anomaly", "test")))


def overlap(cell: Cell, dataset: Dataset | None, checkpoint: Path | None, roots: Mapping[str, Path]) -> str:
    """In which way the training set of a cell and its target overlap; "" when they do not.

    dataset: the target as opened, None when it could not be. checkpoint: the cell's, which says what it was
    trained on. roots: folders of training sets by name.
    """
    target = _target_names(cell, dataset)
    for name in _trained_on(cell, checkpoint):
        if plain(name) in {plain(t) for t in target}:
            return f"trained on {name}, the target itself"
        shared = _shared_classes(name, dataset)
        if shared:
            return f"trained on {name}, which has the same classes: {', '.join(shared[:3])}"
    for root in _training_roots(cell, roots):
        if cell.dataset.root is not None and _same_place(root, Path(cell.dataset.root)):
            return f"trained on the same folder, {root.name}"
        if shared := _same_names(root, dataset):
            return f"trained on {root.name}, which has the same classes: {', '.join(shared[:3])}"
    return ""


def _target_names(cell: Cell, dataset: Dataset | None) -> set[str]:
    names = {cell.dataset.name, (cell.dataset.dataset or "").partition(":")[0]}
    if dataset is not None:
        names |= {dataset.name, "" if dataset.entry is None else dataset.entry.name}
    known = {n for n in names if n} - {"mvtec_layout", "meta_json", "folder"}
    return known | {CATALOG[n].title for n in known if n in CATALOG}


def _trained_on(cell: Cell, checkpoint: Path | None) -> list[str]:
    """Every training set that plan or checkpoint name, by the catalogue's name where there is one."""
    texts = [cell.auxiliary]
    try:
        if checkpoint is not None and is_checkpoint(checkpoint):
            texts.append(read_meta(checkpoint).auxiliary)
    except (BlemishError, OSError):
        pass  # loading it will say what is wrong with it
    names = [part.strip() for text in texts for part in re.split(r"[+,;&/]| and ", text) if part.strip()]
    return list(dict.fromkeys(map(catalogue_name, names)))


def catalogue_name(name: str) -> str:
    """The catalogue's name of a dataset that goes by `name` ("MVTec AD" is "mvtec"); else the name itself."""
    return next((entry.name for entry in CATALOG.values() if entry.knows_folder(name)), name)


def _shared_classes(auxiliary: str, dataset: Dataset | None) -> list[str]:
    entry = CATALOG.get(auxiliary)
    return [] if entry is None or dataset is None else _telling(dataset.classes, entry.classes)


def _same_names(root: Path, dataset: Dataset | None) -> list[str]:
    try:
        return [] if dataset is None else _telling(dataset.classes, open_dataset(root).classes)
    except BlemishError:
        return []  # training on it will say what is wrong with it


def _telling(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Names that both have and that say what a class shows."""
    known = {plain(name) for name in others} - WORDLESS
    return [name for name in names if plain(name) in known and not name.isdecimal()]


def _training_roots(cell: Cell, roots: Mapping[str, Path]) -> Iterable[Path]:
    if cell.method.train is None:
        return ()
    given: Sequence[str] = cell.method.train.get("data") or ()
    found = [roots.get(text, Path(text)) for text in given]
    return found or ([roots[cell.auxiliary]] if cell.auxiliary in roots else [])


def _same_place(one: Path, other: Path) -> bool:
    first, second = one.resolve(), other.resolve()
    return first == second or first.is_relative_to(second) or second.is_relative_to(first)
