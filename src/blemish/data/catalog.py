"""One row per known dataset: classes, counts, masks, licence, source. Plain data; the readers stand elsewhere."""

from __future__ import annotations

from collections.abc import Iterable

from blemish.data.catalog_entry import CatalogEntry, Counts, plain

__all__ = ["CATALOG", "GENERIC", "CatalogEntry", "Counts", "find_entry", "plain"]

BY_NC_SA = "CC BY-NC-SA 4.0"
UNSTATED = "not stated"
KAGGLE_TERMS = "terms of its Kaggle page"

# Classes that several sets share, and that say nothing about which it is.
SHARED_NAMES = ("brain", "colon", "skin", "thyroid", "chest", "rail", "road")

MVTEC = {
    "bottle": (20, 63),
    "cable": (58, 92),
    "capsule": (23, 109),
    "carpet": (28, 89),
    "grid": (21, 57),
    "hazelnut": (40, 70),
    "leather": (32, 92),
    "metal_nut": (22, 93),
    "pill": (26, 141),
    "screw": (41, 119),
    "tile": (33, 84),
    "toothbrush": (12, 30),
    "transistor": (60, 40),
    "wood": (19, 60),
    "zipper": (32, 119),
}
VISA = {
    "candle": (100, 100),
    "capsules": (60, 100),
    "cashew": (50, 100),
    "chewinggum": (50, 100),
    "fryum": (50, 100),
    "macaroni1": (100, 100),
    "macaroni2": (100, 100),
    "pcb1": (100, 100),
    "pcb2": (100, 100),
    "pcb3": (101, 100),
    "pcb4": (101, 100),
    "pipe_fryum": (50, 100),
}
MPDD = {
    "bracket_black": (32, 47),
    "bracket_brown": (26, 51),
    "bracket_white": (30, 30),
    "connector": (30, 14),
    "metal_plate": (26, 71),
    "tubes": (32, 69),
}
BTAD = {"01": (21, 49), "02": (30, 200), "03": (400, 41)}
DTD = (
    "Woven_001",
    "Woven_127",
    "Woven_104",
    "Stratified_154",
    "Blotchy_099",
    "Woven_068",
    "Woven_125",
    "Marbled_078",
    "Perforated_037",
    "Mesh_114",
    "Fibrous_183",
    "Matted_069",
)

_ROWS = (
    CatalogEntry(
        "mvtec",
        "MVTec AD",
        tuple(MVTEC),
        (467, 1258),
        BY_NC_SA,
        "https://www.mvtec.com/company/research/datasets/mvtec-ad",
        per_class=MVTEC,
        train=3629,
        folders=("mvtec_ad", "mvtec_anomaly_detection", "mvtecad", "mvad"),
        odd="grid, screw and zipper are single-channel",
    ),
    CatalogEntry(
        "visa",
        "VisA",
        tuple(VISA),
        (962, 1200),
        "CC BY 4.0",
        "https://github.com/amazon-science/spot-diff",
        per_class=VISA,
        train=8659,
        folders=("visa_pytorch", "visa_20220922", "1cls"),
        prompts={f"pcb{i}": "printed circuit board" for i in range(1, 5)}
        | {"macaroni1": "macaroni", "macaroni2": "macaroni", "pipe_fryum": "pipe fryum"},
        odd="raw masks hold class ids and look black; the papers use split_csv/1cls.csv",
    ),
    CatalogEntry(
        "mpdd",
        "MPDD",
        tuple(MPDD),
        (176, 282),
        BY_NC_SA,
        "https://github.com/stepanje/MPDD",
        per_class=MPDD,
        odd="partial downloads lack classes",
    ),
    CatalogEntry(
        "btad",
        "BTAD",
        tuple(BTAD),
        (451, 290),
        BY_NC_SA,
        "http://avires.dimi.uniud.it/papers/btad/btad.zip",
        per_class=BTAD,
        train=1799,
        folders=("btech", "beantech", "BTech_Dataset_transformed"),
        prompts=dict.fromkeys(BTAD, "object"),
        odd="normal folder ok; image and mask endings differ by class (01 bmp/png, 02 png/png, 03 bmp/bmp)",
    ),
    CatalogEntry(
        "ksdd",
        "KolektorSDD",
        ("electrical_commutators",),
        (181, 74),
        BY_NC_SA,
        "https://www.vicos.si/resources/kolektorsdd/",
        also={"cut in thirds": (286, 54)},
        folders=("sdd", "ksdd", "kolektor"),
        class_aliases=("electrical commutators", "SDD", "KSDD", "KolektorSDD"),
        odd="cut in halves (AnomalyCLIP) or, as ksdd:thirds, in thirds (AdaCLIP, ViP2-CLIP: 286, 54); "
        "results on the two are not comparable",
    ),
    CatalogEntry(
        "ksdd2",
        "KolektorSDD2",
        ("electrical_commutators",),
        (894, 110),
        BY_NC_SA,
        "https://www.vicos.si/resources/kolektorsdd2/",
        class_aliases=("KSDD2", "KolektorSDD2", "SDD2"),
        odd="every picture has a mask file; label = the mask is not empty; 230 pixels wide",
    ),
    CatalogEntry(
        "dagm",
        "DAGM 2007",
        tuple(f"Class{i}" for i in range(1, 11)),
        (6996, 1054),
        "public, terms not checked",
        "https://zenodo.org/records/12750201",
        folders=("dagm2007", "DAGM_KaggleUpload"),
        prompts={f"Class{i}": "texture" for i in range(1, 11)},
        odd="weak labels: ellipses much larger than the defect",
    ),
    CatalogEntry(
        "dtd_synthetic",
        "DTD-Synthetic",
        DTD,
        (357, 947),
        f"{UNSTATED}; DTD is for research",
        "link in https://github.com/zqhang/AnomalyCLIP (Aota et al., WACV 2023)",
        folders=("dtd", "dtdsynthetic"),
        prompts={name: f"{name.split('_')[0].lower()} texture" for name in DTD},
        odd="not DTD itself; one more folder level than the scripts expect",
    ),
    CatalogEntry(
        "bsd",
        "BSData",
        ("ball_screw_drive",),
        (710, 394),
        "CC BY-SA 4.0",
        "https://github.com/2Obe/BSData",
        also={"with pitting only": (0, 394)},
        folders=("BSData-main", "BSData-master"),
        class_aliases=("BSD",),
        odd="labelme polygons; VCP-CLIP uses the 394 with pitting only (bsd:defects)",
    ),
    CatalogEntry(
        "gc",
        "GC10-DET",
        ("steel_sheet",),
        (0, 2300),
        UNSTATED,
        "https://github.com/lvxiaoming2019/GC10-DET-Metallic-Surface-Defect-Datasets",
        masks=False,
        folders=("gc10", "gc10det"),
        class_aliases=("GC", "GC10"),
        odd="boxes only: filled boxes as masks with gc:boxes, not comparable with published figures",
    ),
    CatalogEntry(
        "msd",
        "MSD",
        ("phone_screen",),
        (0, 1200),
        "repository under GPL-3.0",
        "https://github.com/jianzhang96/MSD",
        also={"with the normal ones": (20, 1200)},
        folders=("MSD-main", "MSD-master"),
        class_aliases=("MSD",),
        odd="Pascal VOC folders with class-id masks; the 20 normal images are a separate archive",
    ),
    CatalogEntry(
        "road",
        "CrackForest",
        ("road",),
        (0, 118),
        "non-commercial research only",
        "https://github.com/cuilimeng/CrackForest-dataset",
        mask_rule="==2",
        folders=("cfd", "CrackForest-dataset", "CrackForest-dataset-master"),
        odd="in the .mat files 2 is crack and 3, 4 intact road; 37 pictures have no ground truth",
    ),
    CatalogEntry(
        "rsdd",
        "RSDDs",
        ("rail",),
        (0, 195),
        UNSTATED,
        "https://ieee-dataport.org/documents/rsdds",
        mask_rule=">127",
        folders=("rsdd", "RSDDs dataset"),
        class_aliases=("RSDD", "RSDDs"),
        odd="strips of 160×1000 and 55×1250, which squashing to a square destroys",
    ),
    CatalogEntry(
        "head_ct",
        "HeadCT",
        ("brain",),
        (100, 100),
        KAGGLE_TERMS,
        "https://www.kaggle.com/datasets/felipekitamura/head-ct-hemorrhage",
        masks=False,
        folders=("head-ct-hemorrhage",),
        class_aliases=("headct", "head_ct"),
        odd="labels.csv, header 'id, hemorrhage' with a space",
        medical=True,
    ),
    CatalogEntry(
        "brain_mri",
        "BrainMRI",
        ("brain",),
        (98, 155),
        KAGGLE_TERMS,
        "https://www.kaggle.com/datasets/navoneel/brain-mri-images-for-brain-tumor-detection",
        masks=False,
        folders=("brain_tumor_dataset", "brain-mri-images-for-brain-tumor-detection"),
        class_aliases=("brainmri", "brain_mri"),
        odd="the archive holds the data twice",
        medical=True,
    ),
    CatalogEntry(
        "br35h",
        "Br35H",
        ("brain",),
        (1500, 1500),
        KAGGLE_TERMS,
        "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
        masks=False,
        folders=("brain-tumor-detection",),
        class_aliases=("br35h",),
        odd="only yes and no count; pred and the Mask-RCNN folder are extra",
        medical=True,
    ),
    CatalogEntry(
        "covid19",
        "COVID-19",
        ("chest",),
        (1341, 219),
        KAGGLE_TERMS,
        "https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
        masks=False,
        folders=("COVID-19_Radiography_Dataset", "COVID-19 Radiography Database"),
        class_aliases=("covid", "covid19"),
        odd="counts are of the first release; masks of later ones outline lungs; other findings by "
        "covid19:FOLDER,FOLDER",
        medical=True,
    ),
    CatalogEntry(
        "isic",
        "ISIC",
        ("skin",),
        (0, 379),
        "CC0 (as listed)",
        "https://challenge.isic-archive.com",
        folders=("isic2016", "ISBI2016"),
        class_aliases=("isic",),
        odd="the test part of task 1 of 2016",
        medical=True,
    ),
    CatalogEntry(
        "colon_db",
        "CVC-ColonDB",
        ("colon",),
        (0, 380),
        "research use",
        "http://mv.cvc.uab.es/projects/colon-qa/cvccolondb",
        folders=("colondb",),
        class_aliases=("colondb", "CVC-ColonDB"),
        odd="the 380 PNGs are of the polyp package; the original page offers 300 other frames as .bmp",
        medical=True,
    ),
    CatalogEntry(
        "clinic_db",
        "CVC-ClinicDB",
        ("colon",),
        (0, 612),
        "research use",
        "https://polyp.grand-challenge.org/CVCClinicDB/",
        folders=("clinicdb",),
        class_aliases=("clinicdb", "CVC-ClinicDB"),
        odd="polyp benchmarks' test folders hold only 62 of the 612",
        medical=True,
    ),
    CatalogEntry(
        "kvasir",
        "Kvasir-SEG",
        ("colon",),
        (0, 1000),
        "research and education only",
        "https://datasets.simula.no/kvasir-seg/",
        mask_rule=">127",
        folders=("kvasir",),
        class_aliases=("kvasir", "Kvasir-SEG"),
        odd="JPEG masks; polyp benchmarks' test folders hold only 100 of the 1,000",
        medical=True,
    ),
    CatalogEntry(
        "endo",
        "EndoTect",
        ("colon",),
        (0, 200),
        "terms not checked",
        "https://endotect.com",
        folders=("EndoTect_2020_Segmentation_Test_Dataset", "endotect2020"),
        class_aliases=("endo", "endotect"),
        medical=True,
    ),
    CatalogEntry(
        "tn3k",
        "TN3K",
        ("thyroid",),
        (0, 614),
        f"code MIT, data {UNSTATED}",
        "https://github.com/haifangong/TRFE-Net-for-thyroid-nodule-segmentation",
        mask_rule=">127",
        class_aliases=("tn3k",),
        odd="JPEG masks; only the test part is used; DDTI and TG3K beside it are other sets",
        medical=True,
    ),
)

CATALOG: dict[str, CatalogEntry] = {row.name: row for row in _ROWS}
# Layouts that belong to no one dataset, by the names that stand in for a dataset's.
GENERIC: dict[str, str] = {
    "mvtec_layout": "<class>/test/{good,<defect>} with ground_truth/<defect>; one class or several",
    "meta_json": "meta.json of the AnomalyCLIP, VCP-CLIP and AdaCLIP family",
    "folder": "normal, abnormal and mask folders, or just pictures without labels",
}


def find_entry(folders: Iterable[str], classes: Iterable[str]) -> CatalogEntry | None:
    """The row that a prepared folder belongs to, by the names of folder and classes; None when in doubt.

    folders: names the root goes by. classes: class names found. A folder's name decides together with its
    classes; without it, class names decide when at least two belong to one set, or one that no other set has.
    """
    found, names = tuple(classes), tuple(folders)
    for entry in CATALOG.values():
        if any(entry.knows_folder(name) for name in names) and entry.knows_classes(found):
            return entry
    for entry in CATALOG.values():
        telling = {plain(n) for n in entry.class_aliases if n not in SHARED_NAMES}
        if len(entry.classes) == 1 and found and {plain(n) for n in found} <= telling:
            return entry
        # 01, 02, 03 may be anybody's numbers
        if len(found) > 1 and entry.knows_classes(found) and not all(n.isdecimal() for n in found):
            return entry
    return None
