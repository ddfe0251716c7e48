"""Readers of medical datasets as they are distributed; folders of pictures beside masks are a generic layout."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from blemish.data.readers_generic import image_mask_folders
from blemish.data.reading import (
    Reading,
    WrongLayout,
    child,
    pictures,
    subfolders,
)
from blemish.errors import BadDataset
from blemish.files import printable_name

COVID_FOLDERS = ("COVID", "COVID-19", "COVID19")


def is_head_ct(root: Path) -> bool:
    """HeadCT as distributed: `labels.csv` beside `head_ct/000.png`."""
    return _head_ct_folder(root) is not None and (root / "labels.csv").is_file()


def _head_ct_folder(root: Path) -> Path | None:
    folder = root / "head_ct"
    return next((p for p in (folder / "head_ct", folder) if pictures(p)), None)


def read_head_ct(reading: Reading) -> None:
    """HeadCT: labels by `labels.csv` (`id, hemorrhage`). Raises BadDataset for other contents."""
    table = reading.root / "labels.csv"
    folder = _head_ct_folder(reading.root)
    if folder is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no head_ct/000.png")
    by_number = {int(p.stem): p for p in pictures(folder) if p.stem.isdecimal()}
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadDataset(f"{printable_name(table)}: cannot be read ({error})") from error
    for number, cells in enumerate(csv.reader(lines[1:]), start=2):
        if not cells:
            continue
        try:
            name, label = (int(cell) for cell in cells)
            defect = ("normal", "hemorrhage")[label] if label in (0, 1) else None
        except ValueError:
            defect = None
        if defect is None:
            raise BadDataset(f"{printable_name(table)}, line {number}: {cells} is no number and 0 or 1")
        reading.add(by_number.pop(name, folder / f"{name:03d}.png"), label, defect=defect)
    if by_number:
        reading.notes.append(f"{len(by_number)} pictures that labels.csv does not name were left out")


def is_yes_no(root: Path) -> bool:
    """BrainMRI and Br35H as distributed: `yes` beside `no`."""
    return all((home := child(root, name)) is not None and bool(pictures(home)) for name in ("yes", "no"))


def is_br35h(root: Path) -> bool:
    """Br35H: `yes` beside `no`, with what only this set has (`pred`, or names from `no0.jpg`)."""
    no = child(root, "no")
    return is_yes_no(root) and (
        child(root, "pred") is not None or (no is not None and (no / "no0.jpg").is_file())
    )


def is_brain_mri(root: Path) -> bool:
    """BrainMRI: `yes` beside `no`, with the second copy of the data or the set's way of naming pictures."""
    yes = child(root, "yes")
    named = yes is not None and any(re.fullmatch(r"Y\d+", p.stem) for p in pictures(yes))
    return (
        is_yes_no(root) and not is_br35h(root) and (child(root, "brain_tumor_dataset") is not None or named)
    )


def read_yes_no(reading: Reading) -> None:
    """Pictures in `no` are normal, those in `yes` anomalous; whatever else lies there is left out."""
    for name, label in (("no", 0), ("yes", 1)):
        home = child(reading.root, name)
        for image in pictures(home) if home is not None else ():
            reading.add(image, label, defect=name)
    others = [p.name for p in subfolders(reading.root) if p.name.casefold() not in ("yes", "no")]
    if others:
        reading.notes.append(f"only yes and no count; left out: {', '.join(map(printable_name, others))}")


def is_covid19(root: Path) -> bool:
    """COVID-19 Radiography: a folder of normal pictures beside one of COVID."""
    return child(root, "normal") is not None and child(root, *COVID_FOLDERS) is not None


def read_covid19(reading: Reading) -> None:
    """COVID-19: `Normal` against `COVID`, or against the folders that the variant names, comma-separated.

    In later releases the pictures are in `images` and the masks beside them outline lungs: never used.
    Raises BadDataset for a folder that is not there.
    """
    wanted = [name.strip() for name in reading.variant.split(",")] if reading.variant else []
    anomalous = [(name, child(reading.root, name)) for name in wanted]
    anomalous = anomalous or [("COVID", child(reading.root, *COVID_FOLDERS))]
    for label, name, home in (
        (0, "normal", child(reading.root, "normal")),
        *((1, n, h) for n, h in anomalous),
    ):
        if home is None or not home.is_dir():
            present = ", ".join(p.name for p in subfolders(reading.root))
            raise BadDataset(f"{printable_name(reading.root)} has no folder {name}; there are: {present}")
        for image in pictures(child(home, "images") or home):
            reading.add(image, label, defect=home.name)
    used = {"normal"} | {h.name.casefold() for _, h in anomalous if h is not None}
    others = [p.name for p in subfolders(reading.root) if p.name.casefold() not in used]
    if others:
        reading.notes.append(f"findings left out: {', '.join(others)} (covid19:FOLDER,FOLDER takes others)")


def isic_folders(root: Path) -> tuple[Path, Path] | None:
    """(pictures, masks) of ISIC: folders named `…_Data` and `…_GroundTruth`, the test part when there are more.

    AnomalyCLIP's arrangement, `skin/test/<folder>` beside the masks, is found as well.
    """
    homes = [root, *([root / "skin"] if (root / "skin").is_dir() else [])]
    for home in homes:
        masks = [p for p in subfolders(home) if re.search(r"isic.*groundtruth$", p.name, re.IGNORECASE)]
        masks.sort(key=lambda p: "test" not in p.name.casefold())
        images = [p for p in subfolders(home) if re.search(r"isic.*(data|input)$", p.name, re.IGNORECASE)]
        images += subfolders(home / "test")
        images.sort(key=lambda p: "test" not in "/".join(p.parts[-2:]).casefold())
        images = [p for p in images if pictures(p)]
        if masks and images:
            return images[0], masks[0]
    return None


def is_isic(root: Path) -> bool:
    """ISIC as distributed, or as AnomalyCLIP arranges it."""
    return isic_folders(root) is not None


def read_isic(reading: Reading) -> None:
    """ISIC: every picture anomalous, mask `<name>_Segmentation.png`."""
    folders = isic_folders(reading.root)
    if folders is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no folders …_Data and …_GroundTruth")
    # Masks of super-pixels lie among the pictures of some releases
    images = [p for p in pictures(folders[0]) if not p.stem.casefold().endswith("_superpixels")]
    reading.add_paired(images, pictures(folders[1]), class_name=reading.class_name, defect="lesion")


def is_colon_db_frames(root: Path) -> bool:
    """CVC-ColonDB's original 300 frames: `1.bmp` beside its mask `p1.bmp`."""
    names = {p.name.casefold() for p in pictures(root, (".bmp",))}
    return any(re.fullmatch(r"\d+\.bmp", n) and f"p{n}" in names for n in names)


def read_colon_db_frames(reading: Reading) -> None:
    """The 300 frames of the original page, which are not the papers' 380 pictures."""
    files = pictures(reading.root, (".bmp",))
    masks = {p.stem.casefold()[1:]: p for p in files if re.fullmatch(r"p\d+", p.stem, re.IGNORECASE)}
    for image in (p for p in files if p.stem.isdecimal()):
        reading.add(image, 1, masks.pop(image.stem, None), defect="polyp")
    reading.left_over(masks.values())
    reading.notes.append("the original 300 frames; the papers use 380 others from the polyp package")


def clinic_db_folders(root: Path) -> Path | None:
    """The folder that holds `Original` and `Ground Truth`: the root, or `PNG` or `TIF` in it."""
    for home in (root, *(root / name for name in ("PNG", "TIF", "TIFF"))):
        if child(home, "Original") is not None and child(home, "Ground Truth") is not None:
            return home
    return None


def is_clinic_db(root: Path) -> bool:
    """CVC-ClinicDB as distributed."""
    return clinic_db_folders(root) is not None


def is_surely_clinic_db(root: Path) -> bool:
    """Whether it is no other pair of such folders: its pictures are numbered."""
    home = clinic_db_folders(root)
    original = child(home, "Original") if home is not None else None
    return original is not None and all(p.stem.isdecimal() for p in pictures(original))


def read_clinic_db(reading: Reading) -> None:
    """CVC-ClinicDB: `Original` beside `Ground Truth`, paired by number."""
    home = clinic_db_folders(reading.root)
    original, truth = (child(home, n) if home is not None else None for n in ("Original", "Ground Truth"))
    if original is None or truth is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no folders Original and Ground Truth")
    reading.add_paired(pictures(original), pictures(truth), class_name=reading.class_name, defect="polyp")


def is_kvasir(root: Path) -> bool:
    """Kvasir-SEG as distributed: `images`, `masks` and `kavsir_bboxes.json` (its spelling)."""
    boxes = child(root, "kavsir_bboxes.json", "kvasir_bboxes.json")
    return boxes is not None and image_mask_folders(root) is not None


def is_tn3k(root: Path) -> bool:
    """TN3K as distributed: `test-image` beside `test-mask`, here or in `tn3k`."""
    return _tn3k_home(root) is not None


def _tn3k_home(root: Path) -> Path | None:
    return next(
        (p for p in (root, root / "tn3k") if (p / "test-image").is_dir() and (p / "test-mask").is_dir()), None
    )


def read_tn3k(reading: Reading) -> None:
    """TN3K: the test part; its training part, where present, is the split "train"."""
    home = _tn3k_home(reading.root)
    if home is None:
        raise WrongLayout(f"{printable_name(reading.root)}: no folders test-image and test-mask")
    for split, name in (("test", "test"), ("train", "trainval")):
        images, masks = pictures(home / f"{name}-image"), pictures(home / f"{name}-mask")
        reading.add_paired(images, masks, class_name=reading.class_name, defect="nodule", split=split)
