"""Layouts that belong to no one dataset: MVTec-style trees, lists of files, labelled and bare folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish.data.catalog import CATALOG
from blemish.data.layouts import Dataset, open_dataset
from blemish.data.reading import pair_by_stem
from blemish.data.samples import load_mask
from blemish.errors import BadDataset, BadOption, UnknownName
from dataset_trees import (
    entry,
    mvtec,
    mvtec_class,
    put,
    put_mask,
    put_meta,
    put_text,
)


def kinds(dataset: Dataset) -> list[str]:
    return [p.kind for p in dataset.problems]


# --- MVTec layout


@pytest.mark.parametrize("normal", ["good", "ok", "normal", "NORMAL", "no"])
def test_normal_folder_names(normal: str, tmp_path: Path) -> None:
    mvtec_class(tmp_path / "widget", normal=normal, train=0)
    dataset = open_dataset(tmp_path / "widget")
    assert dataset.counts() == {"widget": (2, 2)} and dataset.entry is None


def test_mvtec_without_masks_nested_and_as_class_folder(tmp_path: Path) -> None:
    mvtec(tmp_path / "mvtec" / "inner")
    assert open_dataset(tmp_path / "mvtec").classes == ("bottle", "grid")
    single = open_dataset(tmp_path / "mvtec/inner/bottle")
    assert single.classes == ("bottle",)
    mvtec_class(tmp_path / "wrapped/bottle/bottle")
    mvtec_class(tmp_path / "wrapped/grid/grid")
    assert open_dataset(tmp_path / "wrapped").counts() == {"bottle": (2, 2), "grid": (2, 2)}
    put(tmp_path / "plain/a/test/good/1.png")
    put(tmp_path / "plain/a/test/bad/1.png")
    assert [s.mask for s in open_dataset(tmp_path / "plain").samples] == [None, None]


def test_two_datasets_side_by_side_are_not_mixed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        for product in ("nut", "bolt"):
            mvtec_class(tmp_path / name / product)
    with pytest.raises(BadDataset, match="one, two"):
        open_dataset(tmp_path)


def test_masks_left_over_are_loud(tmp_path: Path) -> None:
    mvtec_class(tmp_path / "bottle")
    put_mask(tmp_path / "bottle/ground_truth/broken/777_mask.png")
    put_mask(tmp_path / "bottle/ground_truth/scratched/000_mask.png")
    put_text(tmp_path / "bottle/ground_truth/broken/Thumbs.db", "")
    put_text(tmp_path / "bottle/ground_truth/broken/.DS_Store", "")
    dataset = open_dataset(tmp_path)
    assert kinds(dataset) == ["mask_without_image"] * 2
    assert all(
        s.mask is not None and s.mask.stem == f"{s.image.stem}_mask" for s in dataset.samples if s.label
    )


def test_a_user_s_single_bottle_is_not_mvtec(tmp_path: Path) -> None:
    mvtec_class(tmp_path / "bottle")
    assert open_dataset(tmp_path).entry is None
    assert open_dataset(tmp_path, "mvtec").entry is CATALOG["mvtec"]
    for number in ("01", "02"):
        mvtec_class(tmp_path / "parts" / number)
    assert open_dataset(tmp_path / "parts").entry is None
    mvtec_class(tmp_path / "mvtec_anomaly_detection" / "bottle")
    assert open_dataset(tmp_path / "mvtec_anomaly_detection" / "bottle").name == "mvtec"


# --- lists


def test_meta_json_goes_before_the_tree(tmp_path: Path) -> None:
    mvtec(tmp_path)
    test = {
        "grid": [entry("grid/test/bent/000.png", "grid/ground_truth/bent/000_mask.png", "grid", 1, "bent")],
        "bottle": [entry("bottle/test/good/000.png", "", "bottle", 0, "good")],
    }
    put_meta(tmp_path / "meta.json", test, {"bottle": [entry("bottle/train/good/000.png", cls="bottle")]})
    dataset = open_dataset(tmp_path, split="all")
    assert dataset.layout == "meta_json" and dataset.classes == ("grid", "bottle") and dataset.name == "mvtec"
    assert dataset.counts() == {"grid": (0, 1), "bottle": (2, 0)}
    assert open_dataset(tmp_path, "mvtec_layout").counts() == {"bottle": (2, 4), "grid": (2, 2)}


def test_vcp_meta_beside_the_folder(tmp_path: Path) -> None:
    image, mask = (f"visa/candle/{p}/anomaly/visa_097_001097" for p in ("test", "ground_truth"))
    put(tmp_path / f"{image}.bmp")
    put_mask(tmp_path / f"{mask}.png")
    row = entry(f"{image}.bmp", f"{mask}.png", "candle", 1, "anomaly") | {"dataset_name": "visa"}
    path = put_meta(tmp_path / "meta_visa.json", {"candle": [row]}, {"candle": [entry("")]})
    for root in (tmp_path / "visa", path, tmp_path):
        dataset = open_dataset(root, split="all")
        assert dataset.counts() == {"candle": (0, 1)} and dataset.samples[0].mask is not None
        assert dataset.name == "visa" or root == tmp_path
    put_meta(tmp_path / "meta_mvtec.json", {})
    with pytest.raises(BadDataset, match=r"meta_mvtec.json, meta_visa.json"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("prefix", ["/home/someone/data/", "D:\\data\\", "data/"])
def test_paths_that_no_longer_exist_are_found_by_their_longest_tail(prefix: str, tmp_path: Path) -> None:
    put(tmp_path / "brain/test/bad/1.png")
    put(tmp_path / "1.png")
    path = f"{prefix}brain/test/bad/1.png"
    put_meta(tmp_path / "meta.json", {"brain": [entry(path, prefix, "brain", 1)]})
    sample = open_dataset(tmp_path).samples[0]
    assert sample.image == tmp_path / "brain/test/bad/1.png" and sample.mask is None


def test_an_absolute_path_that_exists_is_taken(tmp_path: Path) -> None:
    image = put(tmp_path / "elsewhere/1.png")
    put_meta(tmp_path / "set/meta.json", {"a": [entry(str(image), str(tmp_path), "a", 1)]})
    sample = open_dataset(tmp_path / "set").samples[0]
    assert sample.image == image and sample.mask is None  # the scripts write a folder where there is no mask


def test_wild_meta(tmp_path: Path) -> None:
    for number in range(4):
        put(tmp_path / f"Class1/Test/{number}.png")
    rows = [entry(f"Class1/Test/{i}.png", None if i else "", "Class1", i % 2) for i in range(4)]
    rows[1]["anomaly"] = "1"
    contents = {"Train": {"Class1": []}, "Test": {"Class1": [*rows, entry(""), entry("../../etc/1.png")]}}
    put_text(tmp_path / "meta.json", "\ufeff" + json.dumps(contents))
    dataset = open_dataset(tmp_path)
    assert dataset.counts() == {"Class1": (2, 2)} and kinds(dataset) == ["escaping_path"]
    assert "../../etc/1.png" in dataset.problems[0].text
    assert any("name no picture" in note for note in dataset.notes)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "damaged JSON"),
        ('{"test": {"a": [{"img_path": "1.png", "anomaly": 7}]}}', r"test/a\[0\].*7"),
        ('{"test": {"a": [3]}}', r"test/a\[0\]"),
        ('{"test": [3]}', "list"),
        ('{"test": {"a": [{"img_path": 3, "anomaly": 0}]}}', "expected text"),
        ('{"test": {"a": [{"img_path": "gone.png", "anomaly": 0}]}}', "none of them exists"),
    ],
)
def test_bad_meta_is_refused_in_a_line(text: str, complaint: str, tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    put_text(tmp_path / "meta.json", text)
    with pytest.raises(BadDataset, match=complaint) as caught:
        open_dataset(tmp_path, "meta_json")
    assert len(str(caught.value).splitlines()) == 1


def test_a_stale_meta_gives_way_to_the_tree(tmp_path: Path) -> None:
    mvtec(tmp_path)
    put_meta(tmp_path / "meta.json", {"a": [entry("/gone/away.png")]})
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "mvtec_layout" and "none of them exists" in dataset.notes[0]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["train", "test", "Train", "x"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["img_path", "mask_path", "anomaly", "a"]), inner, max_size=3
                )
            ),
            max_leaves=8,
        ),
    )
)
def test_any_json_gives_samples_or_a_bad_dataset(
    tmp_path_factory: pytest.TempPathFactory, contents: dict
) -> None:
    root = tmp_path_factory.mktemp("meta")
    put_text(root / "meta.json", json.dumps(contents))
    try:
        open_dataset(root, "meta_json", "all")
    except BadDataset as error:
        assert str(error)


def test_json_lines(tmp_path: Path) -> None:
    put(tmp_path / "a/1.png")
    put(tmp_path / "a/2.png")
    put_mask(tmp_path / "a/2_mask.png")
    rows = [
        {"image_path": "a/1.png", "label": 0.0, "class_name": "a"},
        {"image_path": "a/2.png", "label": 1.0, "class_name": "a", "mask_path": "a/2_mask.png"},
    ]
    path = put_text(tmp_path / "full-shot.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n")
    for root in (tmp_path, path):
        dataset = open_dataset(root)
        assert dataset.layout == "json_lines" and dataset.counts() == {"a": (1, 1)}
    put_text(path, '{"image_path": \n')
    with pytest.raises(BadDataset, match="line 1"):
        open_dataset(path)


def test_table(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"{number}.png")
    put_mask(tmp_path / "m.png")
    rows = "image_path,label_index,split,mask_path\n0.png,0,train,\n1.png,0,test,\n2.png,1,test,m.png\n"
    path = put_text(tmp_path / "list.csv", rows)
    put_text(tmp_path / "notes.csv", "author,year\n")
    for root in (tmp_path, path):
        dataset = open_dataset(root)
        assert dataset.layout == "table" and dataset.counts() == {"object": (1, 1)}
        assert dataset.samples[1].mask == tmp_path / "m.png"
    assert len(open_dataset(path, split="all").samples) == 3


# --- labelled and bare folders


def test_folders_by_their_names(tmp_path: Path) -> None:
    for number in (0, 10, 2):
        put(tmp_path / f"good/{number}.jpg")
        put(tmp_path / f"crack/{number}.jpg")
        put(tmp_path / f"colour/{number}.jpg")
        put_mask(tmp_path / f"mask/crack/{number}.png")
        put_mask(tmp_path / f"mask/colour/{number}.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "folder" and dataset.counts() == {"object": (3, 6)}
    assert all(
        s.mask and s.mask.parent.name == s.defect and s.mask.stem == s.image.stem
        for s in dataset.samples
        if s.label
    )
    assert [s.image.stem for s in dataset.samples[:3]] == ["0", "2", "10"]
    named = open_dataset(tmp_path, "folder:normal=good,abnormal=crack,mask=mask/crack")
    assert named.counts() == {"object": (3, 3)} and not named.problems
    with pytest.raises(BadDataset, match="scratch"):
        open_dataset(tmp_path, "folder:normal=good,abnormal=scratch")
    with pytest.raises(BadDataset, match="not understood"):
        open_dataset(tmp_path, "folder:bad")
    put(tmp_path / "bad/1.jpg")
    assert "colour, crack" in open_dataset(tmp_path).notes[0]


def test_masks_of_normal_pictures_are_no_leftovers(tmp_path: Path) -> None:
    put(tmp_path / "normal/a.png")
    put(tmp_path / "abnormal/b.png")
    put_mask(tmp_path / "masks/a.png", empty=True)
    put_mask(tmp_path / "masks/b_GT.PNG")
    put_mask(tmp_path / "masks/c.png")
    dataset = open_dataset(tmp_path)
    assert [p.path.name for p in dataset.problems if p.path] == ["c.png"]


def test_bare_folder_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path / "pics/b/2.png")
    put(tmp_path / "pics/1.png")
    put_mask(tmp_path / "pics/1_mask.png")
    dataset = open_dataset(tmp_path / "pics")
    assert [s.label for s in dataset.samples] == [None, None] and dataset.counts() == {"object": (0, 0)}
    assert load_mask(dataset.samples[0], (12, 16)) is None
    assert len(open_dataset(tmp_path / "pics", "folder").samples) == 2


def test_unknown_images_beside_masks(tmp_path: Path) -> None:
    put(tmp_path / "images/x.jpg")
    put_mask(tmp_path / "masks/x_segmentation.png")
    dataset = open_dataset(tmp_path)
    assert (
        dataset.layout == "images_masks" and dataset.entry is None and dataset.counts() == {"object": (0, 1)}
    )


def test_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no pictures"):
        open_dataset(tmp_path)
    with pytest.raises(BadDataset, match="no such folder"):
        open_dataset(tmp_path / "gone")
    with pytest.raises(UnknownName, match="did you mean 'mvtec'"):
        open_dataset(tmp_path, "mvtek")
    with pytest.raises(BadOption, match="validation"):
        open_dataset(tmp_path, split="validation")
    put(tmp_path / "1.png")
    with pytest.raises(BadDataset, match=r"does not look like visa: expected split_csv/1cls.csv"):
        open_dataset(tmp_path, "visa")
    with pytest.raises(UnknownName, match="class"):
        open_dataset(tmp_path).of_class("nut")


# --- pairing

NAMES = st.lists(st.from_regex(r"[a-c0-2]{1,2}", fullmatch=True), unique=True, max_size=6)
MARK = st.sampled_from(["", "_mask", "_GT", "_label", "_Segmentation"])


@given(NAMES, NAMES, MARK, st.sampled_from([".png", ".PNG", ".bmp"]))
def test_pairs_are_by_name_and_complete(images: list[str], masks: list[str], mark: str, ending: str) -> None:
    pictures = [Path(f"{name}.jpg") for name in images]
    files = [Path("gt") / f"{name}{mark}{ending}" for name in masks]
    pairs, left = pair_by_stem(pictures, files)
    assert {p.stem for p in pairs} == {*images} & {*masks}
    assert all(mask.stem == image.stem + mark for image, mask in pairs.items())
    assert sorted([*pairs.values(), *left]) == sorted(files)


def test_a_mask_serves_one_picture(tmp_path: Path) -> None:
    pairs, left = pair_by_stem([Path("a.jpg"), Path("a.png")], [Path("m/a.png"), Path("m/a_mask.png")])
    assert len({*pairs.values()}) == 2 and not left
    pairs, _ = pair_by_stem([Path("a.jpg"), Path("a.png")], [Path("m/a.png")])
    assert pairs == {Path("a.png"): Path("m/a.png")}
