"""Readers of the layouts that belong to no one dataset: MVTec layout, labelled folders, a bare folder."""

from __future__ import annotations

from pathlib import Path

from blemish.data.reading import (
    MASK_FOLDERS,
    Reading,
    child,
    is_normal_name,
    no_pictures,
    pictures,
    subfolders,
)
from blemish.errors import BadDataset
from blemish.files import printable_name


def class_folders(root: Path) -> list[tuple[str, Path]]:
    """(class name, folder with `test` directly inside) of an MVTec-style tree, in natural order.

    root: one class folder, or the folder of several, or one more folder around either. Empty when it is none.
    Raises BadDataset when it holds several datasets side by side.
    """
    if _has_test(root):
        return [(root.resolve().name, root)]
    direct = [(p.name, p) for p in subfolders(root) if _has_test(p)]
    if direct:
        return direct
    nested = {
        parent: inside
        for parent in subfolders(root)
        if (inside := [(p.name, p) for p in subfolders(parent) if _has_test(p)])
    }
    if len(nested) > 1 and any(len(inside) > 1 for inside in nested.values()):
        names = ", ".join(printable_name(p.name) for p in nested)
        raise BadDataset(f"{printable_name(root)} holds several datasets: {names}; name one of these folders")
    if len(nested) > 1:  # each class folder in a folder of its own, as some archives unpack
        return [(parent.name, inside[0][1]) for parent, inside in nested.items()]
    return [pair for inside in nested.values() for pair in inside]


def _has_test(folder: Path) -> bool:
    test = child(folder, "test")
    if test is None or not test.is_dir() or pictures(test):
        return False
    names = {p.name.casefold() for p in subfolders(test)}
    # test/images beside test/masks is another convention
    return bool(names) and not names & set(MASK_FOLDERS)


def read_mvtec(reading: Reading) -> None:
    """`<class>/{train,test}/<defect>/*`, `<class>/ground_truth/<defect>/*`. Raises BadDataset when empty."""
    for name, folder in class_folders(reading.root):
        _read_class(reading, name, folder)
    if not reading.samples and reading.split != "train":
        raise no_pictures(reading.root, "<class>/test/good/*.png and <class>/test/<defect>/*.png")


def _read_class(reading: Reading, name: str, folder: Path) -> None:
    truth = child(folder, *MASK_FOLDERS)
    for split in ("train", "test"):
        home = child(folder, split)
        for kind in subfolders(home) if home is not None else ():
            images = pictures(kind)
            if is_normal_name(kind.name):
                for image in images:
                    reading.add(image, 0, class_name=name, defect=kind.name, split=split)
                continue
            masks = child(truth, kind.name) if truth is not None and split == "test" else None
            found = pictures(masks) if masks is not None else []
            reading.add_paired(images, found, class_name=name, defect=kind.name, split=split)
    tested = {p.name.casefold() for p in subfolders(child(folder, "test") or folder)}
    for kind in subfolders(truth) if truth is not None and reading.wants("test") else ():
        if kind.name.casefold() not in tested:
            reading.left_over(pictures(kind))
