"""Readers of the layouts that belong to no one dataset: MVTec layout, labelled folders, a bare folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from blemish.data.reading import (
    ABNORMAL_NAMES,
    MASK_FOLDERS,
    Reading,
    WrongLayout,
    child,
    is_normal_name,
    no_pictures,
    pair_by_stem,
    pictures,
    pictures_below,
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
    kinds = [
        (split, kind, pictures(kind))
        for split in ("train", "test")
        if (home := child(folder, split)) is not None
        for kind in subfolders(home)
    ]
    pairs: dict[Path, Path] = {}
    for defect in subfolders(truth) if truth is not None else ():
        # Masks of training pictures, where there are any, lie among those of the test pictures
        homes = [kind for kind in reversed(kinds) if kind[1].name.casefold() == defect.name.casefold()]
        found, left = pair_by_stem([image for _, _, images in homes for image in images], pictures(defect))
        pairs |= found
        reading.left_over(left)
    for split, kind, images in kinds:
        label = 0 if is_normal_name(kind.name) else 1
        for image in images:
            mask = pairs.get(image) if label else None
            reading.add(image, label, mask, class_name=name, defect=kind.name, split=split)


def has_labelled_folders(root: Path) -> bool:
    """Whether a folder of normal pictures lies beside another of pictures."""
    normal, abnormal, _ = _labelled_folders(root)
    return bool(normal) and bool(abnormal)


def read_folders(reading: Reading) -> None:
    """Folders of normal and of anomalous pictures side by side, and one of masks.

    Names are recognised (good, ok, normal, no; bad, defect, yes and the like; mask, ground_truth). Beside a normal
    folder and without a known name for the anomalous ones, all other folders count as anomalous. The variant
    "normal=a,abnormal=b+c,mask=d" names them. Without any such folder all pictures are taken without a label.
    Raises BadDataset when a named folder is missing, or nothing is found.
    """
    if reading.variant:
        parts = named_folders(reading.root, reading.variant)
        normal, abnormal, masks = parts["normal"], parts["abnormal"], parts["mask"]
    else:
        normal, abnormal, masks = _labelled_folders(reading.root)
        if not normal or not abnormal:
            read_bare(reading)
            return
        used = {*normal, *abnormal, *masks}
        if ignored := [p.name for p in subfolders(reading.root) if p not in used and pictures_below(p)]:
            reading.notes.append(f"not used: {', '.join(ignored)}; name them as folder:abnormal=NAME+NAME")
    take_folders(reading, normal, abnormal, masks)
    if not reading.samples and reading.split != "train":
        raise no_pictures(reading.root, ", ".join(p.name for p in (*normal, *abnormal)))


def named_folders(root: Path, text: str) -> dict[str, list[Path]]:
    """The folders of "normal=a,abnormal=b+c,mask=d", below the root or absolute. Raises BadDataset."""
    found: dict[str, list[Path]] = {"normal": [], "abnormal": [], "mask": []}
    for part in text.split(","):
        key, _, names = part.partition("=")
        if key.strip() not in found or not names:
            raise BadDataset(f"folder:{text} is not understood; expected folder:normal=A,abnormal=B+C,mask=D")
        found[key.strip()] += [root / name.strip() for name in names.split("+")]
    for folder in (f for folders in found.values() for f in folders):
        if not folder.is_dir():
            raise BadDataset(f"{printable_name(folder)}: no such folder, though folder:{text} names it")
    return found


def take_folders(
    reading: Reading, normal: Sequence[Path], abnormal: Sequence[Path], masks: Sequence[Path]
) -> None:
    """Take all pictures of normal and of anomalous folders, with masks of equal name from the mask folders."""
    clean = [image for folder in normal for image in pictures_below(folder)]
    for folder in normal:
        for image in pictures_below(folder):
            reading.add(image, 0, defect=folder.name)
    files = [mask for folder in masks for mask in pictures_below(folder)]
    left = set(files)
    for folder in abnormal:
        images = pictures_below(folder)
        # masks/<defect>/x.png belongs to <defect>/x.png though another defect has an x.png too
        own = [m for m in files if m in left and folder.name in m.parts[-2:-1]]
        pairs, _ = pair_by_stem(images, own or [m for m in files if m in left])
        left -= set(pairs.values())
        for image in images:
            reading.add(image, 1, pairs.get(image), defect=folder.name)
    left -= set(pair_by_stem(clean, [m for m in files if m in left])[0].values())
    if reading.wants("test"):
        reading.left_over(m for m in files if m in left)


def _labelled_folders(root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """(normal, anomalous, mask) folders, by their names."""
    folders = subfolders(root)
    masks = [p for p in folders if p.name.casefold() in MASK_FOLDERS]
    normal = [p for p in folders if is_normal_name(p.name) and pictures_below(p)]
    known = [p for p in folders if p.name.casefold() in ABNORMAL_NAMES and pictures_below(p)]
    others = [p for p in folders if p not in normal and p not in masks and pictures_below(p)]
    return normal, known or others, masks


def read_bare(reading: Reading) -> None:
    """All pictures below a folder, without labels; files named like masks are left out. Raises BadDataset."""
    found = pictures_below(reading.root)
    for image in found:
        if not image.stem.casefold().endswith("_mask"):
            reading.add(image, None, defect=image.parent.name if image.parent != reading.root else "")
    if not found:
        raise no_pictures(reading.root, "pictures in the folder and below it")
    reading.notes.append("no labels: the pictures can be scored, and nothing can be measured on them")
    if skipped := len(found) - len(reading.samples):
        reading.notes.append(f"{skipped} files named *_mask were left out")


IMAGE_FOLDERS = ("images", "image", "original", "img", "imgs", "test-image")
MASK_PARTNERS = (*MASK_FOLDERS, "test-mask")


def image_mask_folders(root: Path) -> tuple[list[Path], Path] | None:
    """(folders of pictures, folder of their masks) directly in a root, by their names; None unless there are both.

    Beside a mask folder the only other folder with pictures counts, whatever its name; of several all, when they
    are called images (HAM10000_images_part_1 and _2).
    """
    telling = [p for p in subfolders(root) if re.search("groundtruth$|segmentation", p.name, re.IGNORECASE)]
    masks = child(root, *MASK_PARTNERS) or next(iter(telling), None)
    if masks is None or not pictures(masks):
        return None
    others = [p for p in subfolders(root) if p != masks and pictures(p)]
    named = child(root, *IMAGE_FOLDERS)
    if named in others:
        others = [named]
    if len(others) > 1:
        others = others if all("image" in p.name.casefold() for p in others) else []
    return None if not others or is_normal_name(others[0].name) else (others, masks)


def read_images_masks(reading: Reading) -> None:
    """Pictures in one folder and a mask for each in another: all of them anomalous. Raises WrongLayout."""
    folders = image_mask_folders(reading.root)
    if folders is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no folder of pictures beside one of masks")
    homes, masks = folders
    images = [image for home in homes for image in pictures(home)]
    name = reading.class_name or "object"
    reading.add_paired(images, pictures(masks), class_name=name, defect="anomaly")
    reading.notes.append("every picture counts as anomalous: no image-level AUROC")
