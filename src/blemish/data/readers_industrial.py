"""Readers of industrial datasets as their authors distribute them, where that is no MVTec layout."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from blemish.data.catalog import CATALOG
from blemish.data.metafile import read_listing, table_rows
from blemish.data.readers_generic import class_folders, read_mvtec
from blemish.data.reading import (
    Problem,
    Reading,
    WrongLayout,
    child,
    is_normal_name,
    no_pictures,
    pair_by_stem,
    pictures,
    subfolders,
)
from blemish.data.samples import read_mask_values
from blemish.errors import BadDataset, BadImage
from blemish.files import printable_name

KSDD_PARTS = {"": 2, "halves": 2, "thirds": 3}
KSDD_TEST_SHARE = 0.25


def is_visa_raw(root: Path) -> bool:
    """VisA as distributed: `<class>/Data/Images/{Normal,Anomaly}`."""
    return any((p / "Data" / "Images").is_dir() for p in subfolders(root))


def read_visa(reading: Reading) -> None:
    """VisA by `split_csv/1cls.csv`, or by another table there that the variant names ("2cls_fewshot").

    Without the table all pictures count as test, which is not what the papers use. Raises BadDataset.
    """
    table = reading.root / "split_csv" / f"{reading.variant or '1cls'}.csv"
    if table.is_file():
        read_listing(reading, table, table_rows, base=reading.root)
        return
    if reading.variant:
        raise BadDataset(
            f"{printable_name(table)}: no such file; it names the pictures of visa:{reading.variant}"
        )
    reading.notes.append("no split_csv/1cls.csv: all normal pictures count as test, unlike in the papers")
    for folder in subfolders(reading.root):
        data = folder / "Data"
        for image in pictures(data / "Images" / "Normal"):
            reading.add(image, 0, class_name=folder.name, defect="normal")
        images, masks = pictures(data / "Images" / "Anomaly"), pictures(data / "Masks" / "Anomaly")
        reading.add_paired(images, masks, class_name=folder.name, defect="anomaly")


def is_visa_1cls(root: Path) -> bool:
    """The official conversion of VisA: an MVTec-style tree in the folder `1cls`."""
    return (root / "1cls").is_dir() and bool(class_folders(root / "1cls"))


def read_visa_1cls(reading: Reading) -> None:
    """Read the tree below `1cls`."""
    inner = Reading(reading.root / "1cls", reading.split)
    read_mvtec(inner)
    reading.samples, reading.problems = inner.samples, inner.problems


def is_ksdd(root: Path) -> bool:
    """KolektorSDD as distributed: `kosNN/PartN.jpg` beside `PartN_label.bmp`."""
    return any(re.fullmatch(r"kos\d+", p.name) for p in subfolders(root))


def read_ksdd(reading: Reading) -> None:
    """KolektorSDD, each tall picture as two halves (or, variant "thirds", three parts): boxes, no new files.

    A part is anomalous when its piece of the label has a pixel. All anomalous parts and a quarter of the normal
    ones are test, drawn as scikit-learn's split with seed 42 draws from the natural order; the papers drew from
    unsorted listings, so that their members differ. Label files are read, pictures are not. Raises BadDataset.
    """
    if reading.variant not in KSDD_PARTS:
        raise BadDataset(f"ksdd:{reading.variant} is not known; choose ksdd:halves or ksdd:thirds")
    count = KSDD_PARTS[reading.variant]
    parts = list(_ksdd_parts(reading, count))
    if not parts:
        raise no_pictures(reading.root, "kos01/Part0.jpg with kos01/Part0_label.bmp")
    normal = [i for i, (_, _, _, defective) in enumerate(parts) if not defective]
    drawn = np.random.RandomState(42).permutation(len(normal))
    testing = {normal[i] for i in drawn[: int(np.ceil(KSDD_TEST_SHARE * len(normal)))]}
    for number, (image, label, box, defective) in enumerate(parts):
        split = "test" if defective or number in testing else "train"
        if defective:
            reading.add(image, 1, label, defect="defect", split=split, box=box)
        else:
            reading.add(image, 0, defect="good", split=split, box=box)
    reading.notes.append(f"KolektorSDD cut into {'halves' if count == 2 else 'thirds'}")


Part = tuple[Path, Path, tuple[int, int, int, int], bool]


def _ksdd_parts(reading: Reading, count: int) -> Iterator[Part]:
    """(picture, label file, box, whether the label has a pixel in the box)."""
    for folder in subfolders(reading.root):
        images = [p for p in pictures(folder) if re.fullmatch(r"part\d+", p.stem, re.IGNORECASE)]
        labels = [p for p in pictures(folder) if p not in images]
        pairs, left = pair_by_stem(images, labels)
        reading.left_over(left)
        for image in images:
            if image not in pairs:
                text = f"{reading.short(image)}: no {image.stem}_label.bmp beside it, so it was left out"
                reading.problems.append(Problem("image_without_mask", image, text))
                continue
            try:
                marked = read_mask_values(pairs[image]) > 0
            except BadImage as error:
                reading.problems.append(Problem("unreadable", pairs[image], str(error), fatal=True))
                continue
            height, width = marked.shape
            edges = [k * height // count for k in range(count + 1)]
            for top, bottom in pairwise(edges):
                yield image, pairs[image], (0, top, width, bottom), bool(marked[top:bottom].any())


def is_ksdd2(root: Path) -> bool:
    """KolektorSDD2 as distributed: `test/20000.png` beside `test/20000_GT.png`."""
    test = child(root, "test")
    return test is not None and any(re.fullmatch(r"\d+_GT", p.stem, re.IGNORECASE) for p in pictures(test))


def read_ksdd2(reading: Reading) -> None:
    """KolektorSDD2: a picture is anomalous when its mask file has a pixel. Mask files are read, pictures are not."""
    strays = 0
    for split in ("train", "test"):
        folder = child(reading.root, split)
        if folder is None or not reading.wants(split):
            continue
        files = [p for p in pictures(folder) if re.fullmatch(r"\d+(_GT)?", p.stem, re.IGNORECASE)]
        strays += len(pictures(folder)) - len(files)
        images = [p for p in files if p.stem.isdecimal()]
        pairs, left = pair_by_stem(images, [p for p in files if p not in set(images)])
        reading.left_over(left)
        for image in images:
            mask = pairs.get(image)
            label = None if mask is None else _has_pixel(reading, mask)
            if mask is None:
                text = f"{reading.short(image)}: no {image.stem}_GT.png beside it, so its label is unknown"
                reading.problems.append(Problem("image_without_mask", image, text))
            defect = {0: "good", 1: "defect"}.get(label, "") if label is not None else ""
            reading.add(image, label, mask if label else None, defect=defect, split=split)
    if strays:
        reading.notes.append(f"{strays} stray files were left out (not named digits or digits_GT)")


def _has_pixel(reading: Reading, mask: Path) -> int | None:
    try:
        return int(read_mask_values(mask).any())
    except BadImage as error:
        reading.problems.append(Problem("unreadable", mask, str(error), fatal=True))
        return None


def is_dagm(root: Path) -> bool:
    """DAGM 2007 as distributed: `ClassN/Test/Label`, or the older `ClassN` beside `ClassN_def`."""
    return any(
        re.fullmatch(r"class\d+(_def)?", p.name, re.IGNORECASE)
        and (
            (child(p, "test") is not None and child(p / "Test", "label") is not None)
            or p.name.endswith("_def")
        )
        for p in subfolders(root)
    )


def read_dagm(reading: Reading) -> None:
    """DAGM 2007: a picture is anomalous when `Label` holds a file for it. The older release has no masks."""
    older = False
    for folder in subfolders(reading.root):
        if not re.fullmatch(r"class\d+", folder.name, re.IGNORECASE):
            continue
        defective = child(reading.root, f"{folder.name}_def")
        if defective is not None:
            older = True
            for image in pictures(folder):
                reading.add(image, 0, class_name=folder.name, defect="good")
            for image in pictures(defective):
                reading.add(image, 1, class_name=folder.name, defect="defect")
        for split in ("train", "test"):
            _read_dagm_part(reading, folder, split)
    if older:
        reading.notes.append("older DAGM release: ellipses are in text files, so there are no masks")
    else:
        reading.notes.append("weak labels: the masks are ellipses around the defects, larger than them")


def _read_dagm_part(reading: Reading, folder: Path, split: str) -> None:
    home = child(folder, split)
    if home is None:
        return
    images = pictures(home)
    labels = child(home, "label")
    pairs, left = pair_by_stem(images, pictures(labels) if labels is not None else [])
    for image in images:
        label, defect = (1, "defect") if image in pairs else (0, "good")
        reading.add(image, label, pairs.get(image), class_name=folder.name, defect=defect, split=split)
    if reading.wants(split):
        reading.left_over(left)


def is_bsd(root: Path) -> bool:
    """BSData as distributed: `data/*.jpg` and `label/*.json`."""
    return any((root / "label").glob("*.json")) and bool(pictures(root / "data"))


def is_surely_bsd(root: Path) -> bool:
    """Whether it is no other set of labelme files."""
    return (root / "image_data.json").is_file() or CATALOG["bsd"].knows_folder(root.resolve().name)


def read_bsd(reading: Reading) -> None:
    """BSData: a picture with a labelme file is anomalous. The variant "defects" takes only these, as VCP-CLIP."""
    if reading.variant not in ("", "defects"):
        raise BadDataset(f"bsd:{reading.variant} is not known; choose bsd or bsd:defects")
    images = pictures(reading.root / "data")
    pairs, left = pair_by_stem(images, pictures(reading.root / "label", (".json",)))
    for image in images:
        if image in pairs:
            reading.add(image, 1, pairs[image], defect="pitting")
        elif not reading.variant:
            reading.add(image, 0, defect="good")
    reading.left_over(left)


def is_gc(root: Path) -> bool:
    """GC10-DET as distributed: folders `1` to `10`, boxes in `lable`."""
    return child(root, "lable", "label") is not None and any(
        re.fullmatch(r"[1-9]|10", p.name) for p in subfolders(root)
    )


def is_surely_gc(root: Path) -> bool:
    """Whether it is no other set of numbered folders: nobody else spells so."""
    return child(root, "lable") is not None


def read_gc(reading: Reading) -> None:
    """GC10-DET: all anomalous, and without masks; the variant "boxes" takes the filled boxes for masks."""
    if reading.variant not in ("", "boxes"):
        raise BadDataset(f"gc:{reading.variant} is not known; choose gc or gc:boxes")
    home = child(reading.root, "lable", "label")
    boxes = pictures(home, (".xml",)) if reading.variant and home is not None else []
    folders = [p for p in subfolders(reading.root) if re.fullmatch(r"[1-9]|10", p.name)]
    images = {image: folder.name for folder in folders for image in pictures(folder)}
    pairs, left = pair_by_stem(list(images), boxes)
    for image, defect in images.items():
        reading.add(image, 1, pairs.get(image), defect=defect)
    reading.left_over(left)
    if reading.variant:
        reading.notes.append("masks are filled boxes: pixel metrics are not comparable with published ones")
    else:
        reading.notes.append("boxes only, no masks: image-level use (gc:boxes takes filled boxes for masks)")


MSD_DEFECTS = ("oil", "scratch", "stain")


def is_msd(root: Path) -> bool:
    """MSD as distributed: Pascal VOC folders, or a folder for each of oil, scratch, stain."""
    if (root / "JPEGImages").is_dir():
        return child(root, "SegmentationClass", "SegmentationClassPNG") is not None
    return all(child(root, name) is not None for name in MSD_DEFECTS)


def is_surely_msd(root: Path) -> bool:
    """Whether it is no other set in Pascal VOC folders."""
    named = any(p.stem.casefold().startswith(MSD_DEFECTS) for p in pictures(root / "JPEGImages"))
    return named or not (root / "JPEGImages").is_dir() or CATALOG["msd"].knows_folder(root.resolve().name)


def read_msd(reading: Reading) -> None:
    """MSD: all pictures of the three defects, whatever their part of the authors' split, and the normal ones."""
    root = reading.root
    voc = child(root, "JPEGImages")
    folders = [voc] if voc else [f for name in MSD_DEFECTS if (f := child(root, name)) is not None]
    images = [image for folder in folders for image in pictures(folder)]
    homes = [child(root, "SegmentationClass", "SegmentationClassPNG")] if voc else []
    homes += [p for p in subfolders(root) if p.name.casefold().startswith(("ground_truth", "mask"))]
    pairs, left = pair_by_stem(images, [m for home in homes if home for m in pictures(home)])
    for image in images:
        word = re.match(r"[A-Za-z]+", image.stem)
        defect = image.parent.name if image.parent != voc else word[0].lower() if word else "defect"
        reading.add(image, 1, pairs.get(image), defect=defect)
    reading.left_over(left)
    for folder in subfolders(root):
        for image in pictures(folder) if is_normal_name(folder.name) else ():
            reading.add(image, 0, defect=folder.name)


def is_road(root: Path) -> bool:
    """CrackForest as distributed: `image/001.jpg` and `groundTruth/001.mat`."""
    return any((root / "groundTruth").glob("*.mat")) and bool(pictures(root / "image"))


def read_road(reading: Reading) -> None:
    """CrackForest: pictures with ground truth, all anomalous; the others show other things and are left out."""
    images = pictures(reading.root / "image")
    pairs, left = pair_by_stem(images, pictures(reading.root / "groundTruth", (".mat",)))
    for image in images:
        if image in pairs:
            reading.add(image, 1, pairs[image], defect="crack")
    reading.left_over(left)
    if rest := len(images) - len(pairs):
        reading.notes.append(f"{rest} pictures without ground truth were left out")


_RSDD_TYPE = re.compile(r"type[-_ ]?(i{1,2}|[12])(?![a-z0-9])", re.IGNORECASE)


def is_rsdd(root: Path) -> bool:
    """RSDDs as distributed: a folder for each type of rail."""
    kinds = [p for p in subfolders(root) if _RSDD_TYPE.search(p.name)]
    return any(_is_truth(inner) for kind in kinds for inner in subfolders(kind))


def _is_truth(folder: Path) -> bool:
    return re.search(r"truth|mask|^gt$", folder.name, re.IGNORECASE) is not None


def read_rsdd(reading: Reading) -> None:
    """RSDDs: in each type's folder one of pictures and one of ground truth; all anomalous. Raises WrongLayout."""
    for folder in subfolders(reading.root):
        kind = _RSDD_TYPE.search(folder.name)
        if kind is None:
            continue
        inner = subfolders(folder)
        truth = [p for p in inner if _is_truth(p)]
        images = [image for p in inner if p not in truth for image in pictures(p)]
        masks = [mask for p in truth for mask in pictures(p)]
        defect = "type-1" if kind[1].lower() in ("i", "1") else "type-2"
        reading.add_paired(images, masks, class_name=reading.class_name, defect=defect)
    if not reading.samples and reading.split != "train":
        raise WrongLayout(f"{printable_name(reading.root)}: no pictures in the folders of the two types")


def tiling(names: list[str]) -> str:
    """How prepared KolektorSDD pictures were cut, by names such as `kos01_Part5_0.png`: halves, thirds or ""."""
    parts = {
        int(m[1]) for name in names if (m := re.fullmatch(r"kos\d+_part\d+_(\d)\.\w+", name, re.IGNORECASE))
    }
    return {0: "", 1: "halves", 2: "thirds"}.get(max(parts), "") if parts else ""
