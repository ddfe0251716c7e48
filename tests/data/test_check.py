"""What a check finds: each kind of problem in a tree that has it, and none in a tree that is right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.catalog import CATALOG
from blemish.data.check import Report, check_dataset
from blemish.data.layouts import open_dataset
from dataset_trees import TREES, entry, mvtec, mvtec_class, put, put_mask, put_meta, put_text


def kinds(report: Report, remark: bool = False) -> list[str]:
    return sorted(p.kind for p in report.problems if p.remark == remark)


def check(root: Path, name: str | None = None, split: str = "all", **options: int) -> Report:
    return check_dataset(open_dataset(root, name, split), **options)


@pytest.fixture
def widget(tmp_path: Path) -> Path:
    """A class folder with nothing wrong in it."""
    mvtec_class(tmp_path / "widget", train=2)
    return tmp_path / "widget"


def test_nothing_is_off(widget: Path) -> None:
    report = check(widget)
    assert report.ok and not report.problems and report.expected is None and report.total == (2, 2)
    row = report.classes[0]
    assert (row.name, row.normal, row.anomalous, row.train, row.masks) == ("widget", 2, 2, 2, 2)
    assert row.smallest == row.largest == (16, 12) and row.sizes == 1


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    put(tmp_path / "1.png")
    put_text(tmp_path / "2.png", "no picture")
    put(tmp_path / "3.png")
    put(tmp_path / "4.png")
    put_text(tmp_path / "4_mask.png", "no mask")
    rows = [entry("1.png"), entry("2.png"), entry("gone.png")]
    rows += [entry("3.png", "gone_mask.png", anomaly=1), entry("4.png", "4_mask.png", anomaly=1)]
    put_meta(tmp_path / "meta.json", {"candle": rows})
    report = check(tmp_path)
    assert kinds(report) == ["missing", "missing", "unreadable", "unreadable"]
    assert all(p.fatal and p.path is not None and p.path.name in p.text for p in report.problems)
    assert not report.ok


def test_a_picture_cut_short(widget: Path) -> None:
    path = put(widget / "test/good/long.jpg", (200, 200))
    path.write_bytes(path.read_bytes()[:-400])
    report = check(widget)
    assert kinds(report) == ["unreadable"] and "cut short" in report.problems[0].text


def test_masks_of_another_size(widget: Path) -> None:
    put_mask(widget / "ground_truth/broken/000_mask.png", (12, 16))
    put_mask(widget / "ground_truth/broken/001_mask.png", (32, 24))
    report = check(widget)
    assert kinds(report) == ["mask_size"] and kinds(report, True) == ["mask_scaled"]
    wrong = next(p for p in report.problems if p.kind == "mask_size")
    assert wrong.fatal and "12×16" in wrong.text and "16×12" in wrong.text


def test_masks_without_a_picture_and_the_reverse(widget: Path) -> None:
    (widget / "ground_truth/broken/000_mask.png").rename(widget / "ground_truth/broken/9_mask.png")
    assert kinds(check(widget)) == ["image_without_mask", "mask_without_image"]
    shutil.rmtree(widget / "ground_truth")
    report = check(widget)
    assert report.ok and kinds(report, True) == ["no_masks"]
    assert "pixel metrics will be n/a" in report.problems[0].text


def test_empty_masks_and_masks_that_vanish(widget: Path) -> None:
    put_mask(widget / "ground_truth/broken/000_mask.png", empty=True)
    large = np.zeros((400, 400), dtype=np.uint8)
    large[7, 7] = 255
    Image.fromarray(large).save(widget / "ground_truth/broken/001_mask.png")
    put(widget / "test/broken/001.png", (400, 400))
    assert kinds(check(widget)) == ["empty_mask"]
    report = check(widget, image_size=20)
    assert kinds(report) == ["empty_after_resize", "empty_mask"] and report.image_size == 20
    assert any("20×20" in p.text for p in report.problems)


def test_values_of_masks(widget: Path) -> None:
    put_mask(widget / "ground_truth/broken/000_mask.png", value=3)
    (widget / "ground_truth/broken/001_mask.png").unlink()
    put(widget / "test/broken/001.png", (67, 45))
    put_mask(widget / "ground_truth/broken/001_mask.jpg", (67, 45))
    report = check(widget)
    texts = " ".join(p.text for p in report.problems)
    assert report.ok and kinds(report, True) == ["mask_values"] * 2
    assert "class ids" in texts and "JPEG" in texts


def test_jpeg_masks_with_the_right_rule_are_not_remarked(tmp_path: Path) -> None:
    TREES["kvasir"](tmp_path)
    assert "mask_values" not in kinds(check(tmp_path), True)


def test_one_label_only(tmp_path: Path) -> None:
    mvtec_class(tmp_path / "part")
    shutil.rmtree(tmp_path / "part/test/good")
    report = check(tmp_path)
    assert report.ok and kinds(report, True) == ["one_label_only"]
    assert "image AUROC will be n/a" in report.problems[0].text


def test_duplicates(widget: Path) -> None:
    shutil.copy(widget / "test/good/000.png", widget / "test/good/005.png")
    report = check(widget)
    assert report.ok and kinds(report, True) == ["duplicate"]
    shutil.copy(widget / "train/good/000.png", widget / "test/good/005.png")
    report = check(widget)
    assert kinds(report) == ["duplicate"] and "for training and for testing" in report.problems[0].text
    shutil.copy(widget / "test/broken/000.png", widget / "test/good/005.png")
    report = check(widget)
    assert kinds(report) == ["duplicate"] and "different labels" in report.problems[0].text


def test_halves_of_one_picture_are_no_duplicates(tmp_path: Path) -> None:
    TREES["ksdd"](tmp_path)
    assert "duplicate" not in kinds(check(tmp_path)) + kinds(check(tmp_path), True)


def test_counts_beside_the_papers(tmp_path: Path) -> None:
    mvtec(tmp_path)
    put(tmp_path / "widget/test/good/1.png")
    report = check(tmp_path, "mvtec")
    found = kinds(report)
    assert found.count("missing_class") == 13 and found.count("count_differs") == 2
    assert found.count("extra_class") == 1 and report.expected == (467, 1258)
    assert "2 normal and 4 anomalous test pictures, the papers count 20 and 63" in " ".join(
        p.text for p in report.problems
    )
    one = check(tmp_path / "bottle", "mvtec")
    assert kinds(one) == ["count_differs"] and one.classes[0].expected == (20, 63)


def test_full_counts_are_right(tmp_path: Path) -> None:
    for name, (normal, anomalous) in CATALOG["mpdd"].per_class.items():
        for number in range(normal):
            put(tmp_path / f"{name}/test/good/{number}.png", (4, 3))
        for number in range(anomalous):
            put(tmp_path / f"{name}/test/hole/{number}.png", (4, 3))
            put_mask(tmp_path / f"{name}/ground_truth/hole/{number}_mask.png", (4, 3))
    report = check(tmp_path)
    assert report.ok and report.total == report.expected == (176, 282)
    (tmp_path / "tubes/test/hole/3.png").unlink()
    assert kinds(check(tmp_path)) == ["count_differs", "mask_without_image"]


def test_other_ways_of_counting_are_right_too(tmp_path: Path) -> None:
    for number in range(394):
        put(tmp_path / f"bsd/bsd/test/defect/{number}.png", (2, 2))
    assert check(tmp_path / "bsd").ok
    put(tmp_path / "bsd/bsd/test/defect/more.png", (2, 2))
    report = check(tmp_path / "bsd")
    assert kinds(report) == ["count_differs"] and "with pitting only" in report.problems[-1].text


def test_escaping_paths(tmp_path: Path) -> None:
    put(tmp_path / "set/1.png")
    put(tmp_path / "2.png")
    put_meta(tmp_path / "set/meta.json", {"a": [entry("1.png"), entry("../2.png"), entry("x/../../2.png")]})
    report = check(tmp_path / "set")
    assert kinds(report) == ["escaping_path"] * 2 and report.total == (1, 0)


def test_threads_change_nothing_and_progress_is_told(tmp_path: Path) -> None:
    mvtec(tmp_path)
    (tmp_path / "bottle/test/good/000.png").write_bytes(b"")
    dataset = open_dataset(tmp_path)
    told: list[tuple[int, int, str | None]] = []
    one = check_dataset(dataset, threads=1, on_progress=lambda *given: told.append(given))
    assert one == check_dataset(dataset, threads=4)
    assert told == [(i, 10, None) for i in range(1, 11)]


def test_as_plain_values(widget: Path) -> None:
    (widget / "test/good/000.png").unlink()
    put_meta(widget / "meta.json", {"widget": [entry("test/good/000.png"), entry("test/good/001.png")]})
    values = check(widget).to_dict()
    assert values["kind"] == "dataset" and values["ok"] is False and values["layout"] == "meta_json"
    assert values["problems"][0]["kind"] == "missing"
    assert values["classes"][0]["smallest"] == (16, 12)
