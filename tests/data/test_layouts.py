"""Every dataset's layout as distributed and as prepared is recognised and read; what is odd is said, not guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from blemish.data.catalog import CATALOG
from blemish.data.check import check_dataset
from blemish.data.layouts import Dataset, open_dataset
from blemish.data.samples import load_mask, load_pixels
from blemish.errors import BadDataset, UnknownName
from dataset_trees import (
    TREES,
    mvtec_class,
    put,
    put_crack,
    put_labelme,
    put_mask,
    put_text,
)


def kinds(dataset: Dataset) -> list[str]:
    return [p.kind for p in dataset.problems]


def test_every_dataset_has_a_tree() -> None:
    assert set(TREES) == set(CATALOG)


@pytest.mark.parametrize("named", [False, True], ids=["recognised", "named"])
@pytest.mark.parametrize("name", TREES)
def test_as_distributed(name: str, named: bool, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path)
    root = tmp_path / tree.root
    dataset = open_dataset(root, name if named else None)
    assert (dataset.name, dataset.layout) == (name, tree.layout)
    assert dataset.counts() == tree.counts
    assert not dataset.problems
    assert dataset.entry is CATALOG[name]
    for sample in dataset.samples:
        pixels = load_pixels(sample)
        mask = load_mask(sample, pixels.shape[:2])
        assert (mask is None) == (sample.label == 1 and not tree.masks)
        if mask is not None:
            assert mask.any() == bool(sample.label) and set(np.unique(mask)) <= {0, 255}
            assert mask.mean() < 140
    found = check_dataset(dataset).problems
    assert {p.kind for p in found if not p.remark} <= {"count_differs", "missing_class"}


@pytest.mark.parametrize("name", TREES)
def test_training_pictures_are_apart(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path)
    whole, test = (open_dataset(tmp_path / tree.root, split=split) for split in ("all", "test"))
    train = [s for s in whole.samples if s.split == "train"]
    assert {*whole.samples} == {*train, *test.samples} and len(whole.samples) == len(train) + len(
        test.samples
    )
    has_training = {"mvtec", "visa", "mpdd", "btad", "ksdd", "ksdd2", "dagm", "dtd_synthetic", "tn3k"}
    assert bool(train) == (name in has_training)
    if train:
        assert [*open_dataset(tmp_path / tree.root, split="train").samples] == train
    else:
        with pytest.raises(BadDataset, match="split train"):
            open_dataset(tmp_path / tree.root, split="train")


# --- the odd ones


def test_only_some_kinds_of_defects(tmp_path: Path) -> None:
    tree = TREES["mvtec"](tmp_path)
    whole = open_dataset(tmp_path / tree.root)
    kind = next(s.defect for s in whole.samples if s.label == 1)
    part = whole.of_defects([kind])
    assert [s for s in part.samples if s.label == 0] == [s for s in whole.samples if s.label == 0]
    assert {s.defect for s in part.samples if s.label == 1} == {kind}
    assert f"only {kind}" in part.notes
    with pytest.raises(UnknownName, match="kind of defect"):
        whole.of_defects(["nothing of the kind"])


def test_ksdd_in_halves_and_thirds(tmp_path: Path) -> None:
    TREES["ksdd"](tmp_path)
    halves = open_dataset(tmp_path, split="all")
    # 25 rows: the mark on rows 11 to 13 is cut by the border at 12; the one on rows 20, 21 of 26 lies below
    assert [s.box for s in halves.samples][:2] == [(0, 0, 9, 12), (0, 12, 9, 25)]
    assert [(s.image.parent.name, s.box[1]) for s in halves.samples if s.label and s.box] == [
        *(("kos01", 0), ("kos01", 12)),
        ("kos02", 13),
    ]
    assert all(s.split == "test" for s in halves.samples if s.label)
    assert halves.counts() == {"electrical_commutators": (5, 3)}
    thirds = open_dataset(tmp_path, "ksdd:thirds", "all")
    assert [s.box for s in thirds.samples][:3] == [(0, 0, 9, 8), (0, 8, 9, 16), (0, 16, 9, 25)]
    assert thirds.counts() == {"electrical_commutators": (10, 2)}
    assert sum(s.split == "test" and not s.label for s in thirds.samples) == 3  # a quarter, rounded up
    assert any("thirds" in note for note in thirds.notes) and any("halves" in note for note in halves.notes)
    assert open_dataset(tmp_path, "ksdd:thirds").samples == open_dataset(tmp_path, "ksdd:thirds").samples
    with pytest.raises(BadDataset, match="ksdd:quarters"):
        open_dataset(tmp_path, "ksdd:quarters")


def test_ksdd_draws_its_test_quarter_as_scikit_learn_does(tmp_path: Path) -> None:
    from sklearn.model_selection import train_test_split

    TREES["ksdd"](tmp_path)
    normal = [s for s in open_dataset(tmp_path, split="all").samples if not s.label]
    drawn = [s for s in normal if s.split == "test"]
    wanted = train_test_split(range(len(normal)), test_size=0.25, random_state=42)[1]
    assert sorted(wanted) == [normal.index(s) for s in drawn]


def test_ksdd_without_a_label_or_with_a_damaged_one(tmp_path: Path) -> None:
    TREES["ksdd"](tmp_path)
    (tmp_path / "kos01/Part0_label.bmp").unlink()
    (tmp_path / "kos02/Part1_label.bmp").write_bytes(b"BM")
    dataset = open_dataset(tmp_path)
    assert kinds(dataset) == ["image_without_mask", "unreadable"]
    assert {s.image.parent.name for s in dataset.samples} == {"kos03", "kos04"} or dataset.samples


def test_prepared_ksdd_says_how_it_was_cut(tmp_path: Path) -> None:
    root = tmp_path / "SDD"
    for part in range(3):
        put(root / f"electrical commutators/test/good/kos01_Part5_{part}.png")
    put(root / "electrical commutators/test/defect/kos02_Part5_0.png")
    put_mask(root / "electrical commutators/ground_truth/defect/kos02_Part5_0.png")
    dataset = open_dataset(root)
    assert dataset.name == "ksdd" and any("thirds" in note for note in dataset.notes)
    assert dataset.prompt_name("electrical_commutators") == "electrical commutators"


def test_visa_by_another_table_and_without_one(tmp_path: Path) -> None:
    TREES["visa"](tmp_path)
    assert open_dataset(tmp_path, "visa:2cls_fewshot").counts() == {"candle": (2, 0)}
    with pytest.raises(BadDataset, match="2cls_highshot"):
        open_dataset(tmp_path, "visa:2cls_highshot")
    (tmp_path / "split_csv/1cls.csv").unlink()
    without = open_dataset(tmp_path)
    assert without.counts() == {"candle": (4, 3), "pcb1": (4, 3)} and "1cls.csv" in without.notes[0]


def test_visa_official_conversion(tmp_path: Path) -> None:
    for protocol in ("1cls", "2cls_highshot"):
        for name in ("candle", "fryum"):
            home = tmp_path / "visa_pytorch" / protocol / name
            put(home / "train/good/0002.JPG")
            put(home / "test/good/0000.JPG")
            put(home / "test/bad/000.JPG")
            put_mask(home / "ground_truth/bad/000.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.layout) == ("visa", "visa_1cls")
    assert dataset.counts() == {"candle": (1, 1), "fryum": (1, 1)}
    assert [s.mask and s.mask.name for s in dataset.samples] == ["000.png", None, "000.png", None]


def test_dagm_older_release(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / f"Class3/{number}.png", mode="L")
    put(tmp_path / "Class3_def/1.png", mode="L")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "dagm" and dataset.counts() == {"Class3": (2, 1)}
    assert "no masks" in dataset.notes[0]


def test_bsd_defects_only(tmp_path: Path) -> None:
    TREES["bsd"](tmp_path)
    put_labelme(tmp_path / "label/stray.json")
    dataset = open_dataset(tmp_path, "bsd:defects")
    assert dataset.counts() == {"ball_screw_drive": (0, 2)} and kinds(dataset) == ["mask_without_image"]


def test_gc_boxes_only_on_request(tmp_path: Path) -> None:
    TREES["gc"](tmp_path)
    dataset = open_dataset(tmp_path, "gc:boxes")
    mask = load_mask(dataset.samples[0], (12, 16))
    assert mask is not None and mask[1:5, 2:6].all() and (mask > 0).sum() == 16
    assert "not comparable" in dataset.notes[0]


def test_msd_in_folders_with_normal_ones(tmp_path: Path) -> None:
    for defect in ("oil", "scratch", "stain"):
        put(tmp_path / f"{defect}/{defect}_1.jpg")
        put_mask(tmp_path / f"ground_truth_1/{defect}_1.png", value=2)
    put(tmp_path / "good/1.jpg")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "msd" and dataset.counts() == {"phone_screen": (1, 3)}
    assert {s.defect for s in dataset.samples} == {"oil", "scratch", "stain", "good"}


def test_road_takes_value_2_and_leaves_pictures_without_truth(tmp_path: Path) -> None:
    TREES["road"](tmp_path)
    crack = put_crack(tmp_path / "groundTruth/001.mat")
    dataset = open_dataset(tmp_path)
    mask = load_mask(dataset.samples[0], crack.shape)
    assert mask is not None and np.array_equal(mask > 0, crack)
    assert dataset.notes == ("2 pictures without ground truth were left out",)
    prepared = tmp_path / "road"
    mvtec_class(prepared, ("crack",))
    put_mask(prepared / "ground_truth/crack/000_mask.png", value=1)
    first = open_dataset(prepared, "road").samples[0]  # not a label map any more
    assert first.mask_rule == ">0" and load_mask(first, (12, 16)).any()  # type: ignore[union-attr]


def test_jpeg_masks_are_cut_at_127(tmp_path: Path) -> None:
    TREES["kvasir"](tmp_path)
    sample = open_dataset(tmp_path).samples[0]
    mask = load_mask(sample, (48, 64))
    assert sample.mask_rule == ">127" and mask is not None
    drawn = np.zeros((48, 64), dtype=bool)
    drawn[:24, :32] = True
    assert ((mask > 0) == drawn).mean() > 0.995


def test_brain_mri_is_not_read_twice(tmp_path: Path) -> None:
    TREES["brain_mri"](tmp_path)
    dataset = open_dataset(tmp_path)
    assert "brain_tumor_dataset" in dataset.notes[0]
    put_text(tmp_path / "meta.json.txt", "{}")
    assert open_dataset(tmp_path / "brain_tumor_dataset").name == "brain_mri"


def test_covid_findings_are_named_by_the_user(tmp_path: Path) -> None:
    TREES["covid19"](tmp_path)
    assert open_dataset(tmp_path, "covid19:COVID,Viral Pneumonia").counts() == {"chest": (3, 3)}
    with pytest.raises(BadDataset, match=r"Flu.*Viral Pneumonia"):
        open_dataset(tmp_path, "covid19:Flu")
    first = tmp_path / "first release"
    put(first / "NORMAL/NORMAL (1).png")
    put(first / "COVID-19/COVID-19 (1).png")
    assert open_dataset(first).counts() == {"chest": (1, 1)}


def test_isic_as_anomaly_clip_arranges_it(tmp_path: Path) -> None:
    put(tmp_path / "skin/test/ISBI2016_ISIC_Part1_Test_Data/ISIC_0000003.jpg")
    put_mask(tmp_path / "skin/ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_0000003_Segmentation.png")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "isic" and dataset.samples[0].mask is not None


def test_colon_db_frames_and_clinic_db_in_two_formats(tmp_path: Path) -> None:
    for number in (1, 2):
        put(tmp_path / f"colon/{number}.bmp")
        put_mask(tmp_path / f"colon/p{number}.bmp")
        for home in ("PNG", "TIF"):
            put(tmp_path / f"clinic/{home}/Original/{number}.{home.lower()}")
            put_mask(tmp_path / f"clinic/{home}/Ground Truth/{number}.{home.lower()}")
    colon, clinic = (open_dataset(tmp_path / name) for name in ("colon", "clinic"))
    assert colon.name == "colon_db" and colon.counts() == {"colon": (0, 2)} and "380" in colon.notes[0]
    assert clinic.name == "clinic_db" and clinic.counts() == {"colon": (0, 2)}


def test_head_ct_labels(tmp_path: Path) -> None:
    TREES["head_ct"](tmp_path)
    assert [s.label for s in open_dataset(tmp_path).samples] == [1, 1, 0, 0]
    put(tmp_path / "head_ct/head_ct/007.png")
    assert "1 pictures" in open_dataset(tmp_path).notes[0]
    put_text(tmp_path / "labels.csv", "id, hemorrhage\n0,5\n")
    with pytest.raises(BadDataset, match="line 2"):
        open_dataset(tmp_path)


def test_medical_sets_packed_in_mvtec_layout(tmp_path: Path) -> None:
    put(tmp_path / "Br35H/brain/test/good/1.tif")
    put(tmp_path / "Br35H/brain/test/defect/2.tif")
    dataset = open_dataset(tmp_path / "Br35H")
    assert (dataset.name, dataset.layout, dataset.counts()) == ("br35h", "mvtec_layout", {"brain": (1, 1)})
    put(tmp_path / "data/colon/test/defect/2.tif")
    assert open_dataset(tmp_path / "data").entry is None  # four sets call their class colon


def test_ham_in_two_parts_and_sizes(tmp_path: Path) -> None:
    for part, number, size in ((1, 24306, (60, 45)), (2, 34320, (45, 60)), (2, 34321, (62, 45))):
        put(tmp_path / f"HAM10000_images_part_{part}/ISIC_00{number}.jpg", size)
        home = tmp_path / "HAM10000_segmentations_lesion_tschandl"
        put_mask(home / f"ISIC_00{number}_segmentation.png", size)
    dataset = open_dataset(tmp_path)
    assert dataset.counts() == {"object": (0, 3)} and check_dataset(dataset).ok
    assert check_dataset(dataset).classes[0].sizes == 3
    put_mask(home / "ISIC_0034320_segmentation.png", (60, 45))
    assert [p.kind for p in check_dataset(dataset).problems if p.fatal] == ["mask_size"]


def test_other_people_s_data_of_the_same_shape_are_not_taken_for_a_paper_s(tmp_path: Path) -> None:
    put(tmp_path / "labelme/data/1.jpg")
    put_labelme(tmp_path / "labelme/label/1.json")
    put(tmp_path / "voc/JPEGImages/2007_000033.jpg")
    put_mask(tmp_path / "voc/SegmentationClass/2007_000033.png", value=1)
    put(tmp_path / "pairs/Original/leaf.png")
    put_mask(tmp_path / "pairs/Ground Truth/leaf.png")
    put(tmp_path / "types/type-1/good/1.png")
    put(tmp_path / "types/type-1/bad/1.png")
    for name, meant in (("labelme", "bsd"), ("voc", "msd"), ("pairs", "clinic_db"), ("types", None)):
        assert open_dataset(tmp_path / name).entry is None
        if meant:
            assert open_dataset(tmp_path / name, meant).samples[0].mask is not None
