"""Small trees in the true layouts of the 23 datasets: folders, names, endings and mask values as distributed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Counts = dict[str, tuple[int, int]]
SIZE = (16, 12)


@dataclass(frozen=True)
class Tree:
    """What a drawn tree must be read as: layout, class -> (normal, anomalous) test pictures, masks at all."""

    layout: str
    counts: Counts
    masks: bool = True
    root: str = ""


def put(path: Path, size: tuple[int, int] = SIZE, mode: str = "RGB") -> Path:
    """A picture of its own for every path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(str(path).encode()))
    pixels = generator.integers(60, 200, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def put_mask(path: Path, size: tuple[int, int] = SIZE, value: int = 255, empty: bool = False) -> Path:
    """A mask with a rectangle of `value` that covers a quarter of the picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    if not empty:
        mask[: size[1] // 2, : size[0] // 2] = value
    Image.fromarray(mask).save(path, **({"quality": 40} if path.suffix.lower() == ".jpg" else {}))
    return path


def put_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_meta(path: Path, test: dict[str, list[dict]], train: dict[str, list[dict]] | None = None) -> Path:
    return put_text(path, json.dumps({"train": train or {}, "test": test}))


def entry(image: str, mask: str | None = "", cls: str = "candle", anomaly: int = 0, specie: str = "") -> dict:
    return {
        "img_path": image,
        "mask_path": mask,
        "cls_name": cls,
        "specie_name": specie,
        "anomaly": anomaly,
    }


def put_labelme(path: Path, size: tuple[int, int] = SIZE) -> Path:
    polygon = [[1.0, 1.0], [8.0, 1.5], [8.0, 7.0], [1.0, 7.0]]
    contents = {
        "version": "4.5.6",
        "shapes": [{"label": "pitting", "points": polygon, "shape_type": "polygon"}],
        "imageData": "AAAA" * 100,
        "imageHeight": size[1],
        "imageWidth": size[0],
    }
    return put_text(path, json.dumps(contents))


def put_crack(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A CrackForest label map: 1 road, 2 crack, 3 road enclosed by cracks. Returns where the crack is."""
    from scipy.io import savemat

    labels = np.ones((size[1], size[0]), dtype=np.uint16)
    labels[2:10, 2:10] = 2
    labels[4:8, 4:8] = 3
    kind = [("Segmentation", "O"), ("Boundaries", "O")]
    truth = np.zeros((1, 1), dtype=kind)
    truth["Segmentation"][0, 0], truth["Boundaries"][0, 0] = labels, (labels == 2).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"groundTruth": truth})
    return labels == 2


def put_boxes(path: Path, box: tuple[int, int, int, int], size: tuple[int, int] = SIZE) -> Path:
    names = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    inner = "".join(f"<{key}>{value}</{key}>" for key, value in names.items())
    size_text = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>1</depth></size>"
    found = f"<object><name>1_chongkong</name><bndbox>{inner}</bndbox></object>"
    return put_text(path, f"<annotation>{size_text}{found}</annotation>")


def mvtec_class(
    folder: Path,
    defects: tuple[str, ...] = ("broken",),
    normal: str = "good",
    mode: str = "RGB",
    train: int = 1,
) -> None:
    """One class folder: two normal test pictures, two of each defect."""
    for number in range(train):
        put(folder / f"train/{normal}/{number:03d}.png", mode=mode)
    for number in range(2):
        put(folder / f"test/{normal}/{number:03d}.png", mode=mode)
        for defect in defects:
            put(folder / f"test/{defect}/{number:03d}.png", mode=mode)
            put_mask(folder / f"ground_truth/{defect}/{number:03d}_mask.png")


def mvtec(root: Path) -> Tree:
    mvtec_class(root / "bottle", ("broken_large", "contamination"))
    mvtec_class(root / "grid", ("bent",), mode="L")
    for name in ("bottle", "grid"):
        put_text(root / name / "readme.txt", "MVTec AD")
        put_text(root / name / "license.txt", "CC BY-NC-SA 4.0")
    return Tree("mvtec_layout", {"bottle": (2, 4), "grid": (2, 2)})


def visa(root: Path) -> Tree:
    rows = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        for number in range(4):
            image = f"{name}/Data/Images/Normal/{number:04d}.JPG"
            put(root / image)
            rows.append(f"{name},{'test' if number < 2 else 'train'},normal,{image},")
        for number in range(3):
            image, mask = (f"{name}/Data/{kind}/Anomaly/{number:03d}" for kind in ("Images", "Masks"))
            put(root / f"{image}.JPG")
            put_mask(root / f"{mask}.png", value=number + 1)
            rows.append(f"{name},test,anomaly,{image}.JPG,{mask}.png")
        put_text(root / name / "image_anno.csv", "image,label,mask\n")
    put_text(root / "split_csv/1cls.csv", "\n".join(rows))
    put_text(root / "split_csv/2cls_fewshot.csv", "\n".join(rows[:3]))
    return Tree("visa_csv", {"candle": (2, 3), "pcb1": (2, 3)})


def mpdd(root: Path) -> Tree:
    mvtec_class(root / "MPDD/bracket_black", ("hole", "scratches"))
    mvtec_class(root / "MPDD/tubes", ("anomalous",))
    return Tree("mvtec_layout", {"bracket_black": (2, 4), "tubes": (2, 2)})


def btad(root: Path) -> Tree:
    home = root / "BTech_Dataset_transformed"
    for name, image, mask in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        put(home / f"{name}/train/ok/0000.{image}")
        put(home / f"{name}/test/ok/0010.{image}")
        put(home / f"{name}/test/ko/0001.{image}")
        put_mask(home / f"{name}/ground_truth/ko/0001.{mask}")
    return Tree("mvtec_layout", {f"0{i}": (1, 1) for i in (1, 2, 3)})


def ksdd(root: Path) -> Tree:
    """Four pictures of 9 by 25 or 26: one marked across the middle, one in the last third."""
    for number in range(4):
        size = (9, 25 + number % 2)
        put(root / f"kos{number + 1:02d}/Part{number}.jpg", size, "L")
        label = np.zeros((size[1], size[0]), dtype=np.uint8)
        if number == 0:
            label[11:14, 3:6] = 255
        elif number == 1:
            label[20:22, 3:6] = 255
        Image.fromarray(label).save(root / f"kos{number + 1:02d}/Part{number}_label.bmp")
    return Tree("ksdd_parts", {"electrical_commutators": (2, 3)})


def ksdd2(root: Path) -> Tree:
    for split, numbers in (("train", range(10000, 10002)), ("test", range(20000, 20004))):
        for number in numbers:
            put(root / f"{split}/{number}.png", (11, 30))
            put_mask(root / f"{split}/{number}_GT.png", (11, 30), empty=number % 4 != 0)
    put(root / "test/20001 (copy).png", (11, 30))
    return Tree("ksdd2_flat", {"electrical_commutators": (3, 1)})


def dagm(root: Path) -> Tree:
    for name in ("Class1", "Class10"):
        for split in ("Train", "Test"):
            for number in (576, 577, 578):
                put(root / f"{name}/{split}/{number:04d}.PNG", mode="L")
            put_mask(root / f"{name}/{split}/Label/0577_label.PNG")
            put_text(root / f"{name}/{split}/Label/Labels.txt", "1\n577\t1\t0577.PNG\t0\t0577_label.PNG\n")
    return Tree("dagm_labels", {"Class1": (2, 1), "Class10": (2, 1)})


def dtd_synthetic(root: Path) -> Tree:
    for name in ("Woven_001", "Mesh_114"):
        mvtec_class(root / "DTD-Synthetic" / name, ("bad",))
    return Tree("mvtec_layout", {"Woven_001": (2, 2), "Mesh_114": (2, 2)})


def bsd(root: Path) -> Tree:
    for number in range(4):
        put(root / f"data/KGT1-S-{number}_crop_0.jpg", (20, 10 + number))
        if number < 2:
            put_labelme(root / f"label/KGT1-S-{number}_crop_0.json", (20, 10 + number))
    put_text(root / "image_data.json", "{}")
    return Tree("bsd_labelme", {"ball_screw_drive": (2, 2)})


def gc(root: Path) -> Tree:
    for folder in (1, 2, 10):
        stem = f"img_0{folder}_425000001"
        put(root / f"{folder}/{stem}.jpg", mode="L")
        put_boxes(root / f"lable/{stem}.xml", (3, 2, 6, 5))
    return Tree("gc_boxes", {"steel_sheet": (0, 3)}, masks=False)


def msd(root: Path) -> Tree:
    for number, defect in enumerate(("Oil", "Scratch", "Stain"), start=1):
        put(root / f"JPEGImages/{defect}_0001.jpg")
        put_mask(root / f"SegmentationClass/{defect}_0001.png", value=number)
    put_text(root / "ImageSets/Segmentation/test.txt", "Oil_0001\n")
    return Tree("msd_voc", {"phone_screen": (0, 3)})


def road(root: Path) -> Tree:
    for number in (1, 2, 118, 201, 301):
        put(root / f"image/{number:03d}.jpg")
        if number < 200:
            put_crack(root / f"groundTruth/{number:03d}.mat")
            put_text(root / f"seg/{number:03d}.seg", "seg")
    return Tree("road_mat", {"road": (0, 3)})


def rsdd(root: Path) -> Tree:
    for kind, size in (("Type-I", (8, 50)), ("Type-II", (5, 60))):
        home = root / f"{kind} RSDDs dataset"
        for number in (1, 2):
            put(home / f"Rail surface images/rail_{number}.jpg", size, "L")
            put_mask(home / f"GroundTruth/rail_{number}.jpg", size)
    return Tree("rsdd_types", {"rail": (0, 4)})


def head_ct(root: Path) -> Tree:
    rows = ["id, hemorrhage"]
    for number in range(4):
        put(root / f"head_ct/head_ct/{number:03d}.png", (10 + number, 9), "RGBA" if number == 3 else "L")
        rows.append(f"{number},{int(number < 2)}")
    put_text(root / "labels.csv", "\n".join(rows))
    return Tree("head_ct_csv", {"brain": (2, 2)}, masks=False)


def brain_mri(root: Path) -> Tree:
    for home in (root, root / "brain_tumor_dataset"):
        for name in ("1 no.jpeg", "N2.JPG", "no 3.jpg"):
            put(home / "no" / name)
        for name in ("Y1.jpg", "Y2.png"):
            put(home / "yes" / name)
    return Tree("brain_mri_yes_no", {"brain": (3, 2)}, masks=False)


def br35h(root: Path) -> Tree:
    for number in range(3):
        put(root / f"no/no{number}.jpg")
        put(root / f"yes/y{number}.jpg")
        put(root / f"pred/pred{number}.jpg")
        put(root / f"Br35H-Mask-RCNN/TRAIN/y{number}.jpg")
    return Tree("br35h_yes_no", {"brain": (3, 3)}, masks=False)


def covid19(root: Path) -> Tree:
    for folder, count in (("COVID", 2), ("Normal", 3), ("Viral Pneumonia", 1), ("Lung_Opacity", 1)):
        for number in range(count):
            put(root / f"{folder}/images/{folder}-{number + 1}.png")
            put_mask(root / f"{folder}/masks/{folder}-{number + 1}.png")
        put_text(root / f"{folder}.metadata.xlsx", "")
    return Tree("covid19_findings", {"chest": (3, 2)}, masks=False)


def isic(root: Path) -> Tree:
    for number, size in (("0000003", (16, 12)), ("0000012", (20, 9))):
        put(root / f"ISBI2016_ISIC_Part1_Test_Data/ISIC_{number}.jpg", size)
        put_mask(root / f"ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_{number}_Segmentation.png", size)
    put(root / "ISBI2016_ISIC_Part1_Training_Data/ISIC_0000000.jpg")
    put_mask(root / "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_0000000_Segmentation.png")
    return Tree("isic_task1", {"skin": (0, 2)})


def colon_db(root: Path) -> Tree:
    for number in (1, 2, 10):
        put(root / f"CVC-ColonDB/images/{number}.png")
        put_mask(root / f"CVC-ColonDB/masks/{number}.png")
    return Tree("images_masks", {"colon": (0, 3)}, root="CVC-ColonDB")


def clinic_db(root: Path) -> Tree:
    for number in (1, 2, 10):
        put(root / f"Original/{number}.tif")
        put_mask(root / f"Ground Truth/{number}.tif")
    return Tree("clinic_db_original", {"colon": (0, 3)})


def kvasir(root: Path) -> Tree:
    for name in ("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"):
        put(root / f"images/{name}.jpg", (64, 48))
        put_mask(root / f"masks/{name}.jpg", (64, 48))
    put_text(root / "kavsir_bboxes.json", "{}")
    return Tree("kvasir_seg", {"colon": (0, 2)})


def endo(root: Path) -> Tree:
    home = root / "EndoTect_2020_Segmentation_Test_Dataset"
    for name in ("a1", "b2"):
        put(home / f"images/{name}.jpg")
        put_mask(home / f"masks/{name}.png")
    return Tree("images_masks", {"colon": (0, 2)})


def tn3k(root: Path) -> Tree:
    for number in range(3):
        for part in ("test", "trainval"):
            put(root / f"{part}-image/{number:04d}.jpg", (32, 24))
            put_mask(root / f"{part}-mask/{number:04d}.jpg", (32, 24))
    put_text(root / "tn3k-trainval-fold0.json", "{}")
    return Tree("tn3k_test", {"thyroid": (0, 3)})


TREES: dict[str, Callable[[Path], Tree]] = {
    f.__name__: f
    for f in (
        *(mvtec, visa, mpdd, btad, ksdd, ksdd2, dagm, dtd_synthetic, bsd, gc, msd, road, rsdd),
        *(head_ct, brain_mri, br35h, covid19, isic, colon_db, clinic_db, kvasir, endo, tn3k),
    )
}
