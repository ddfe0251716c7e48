"""`blemish info` on datasets, `--prepare`, and `blemish list datasets`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blemish.cli import main
from dataset_trees import TREES, mvtec_class, put, put_mask, put_text


@pytest.fixture
def widget(tmp_path: Path) -> Path:
    mvtec_class(tmp_path / "widget")
    return tmp_path / "widget"


def test_a_dataset_in_order(widget: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(widget)]) == 0
    out, err = capfd.readouterr()
    assert "read as mvtec_layout" in out and "nothing is off" in out and not err
    row = next(line for line in out.splitlines() if line.startswith("widget"))
    assert row.split() == ["widget", "2", "2", "2", "1", "16×12"]


def test_something_off_is_status_1(widget: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number in range(15):
        put_mask(widget / f"ground_truth/broken/9{number}_mask.png")
    assert main(["info", str(widget)]) == 1
    out, _ = capfd.readouterr()
    assert out.count("mask_without_image") == 11 and "and 5 more" in out and "15 things are off" in out
    assert main(["info", str(widget), "--json"]) == 1
    values = json.loads(capfd.readouterr().out)
    assert values["kind"] == "dataset" and len(values["problems"]) == 15


def test_expected_counts_and_licence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TREES["mvtec"](tmp_path)
    assert main(["info", str(tmp_path)]) == 1
    out, _ = capfd.readouterr()
    assert (
        "mvtec (MVTec AD)" in out and "CC BY-NC-SA 4.0" in out and "2 of 20" in out and "missing_class" in out
    )
    assert "4 of 467" in next(line for line in out.splitlines() if line.startswith("all"))


def test_medical_sets_carry_the_note(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TREES["isic"](tmp_path)
    main(["info", str(tmp_path)])
    assert "not for diagnosis" in capfd.readouterr().out


def test_dataset_and_image_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    TREES["ksdd"](tmp_path)
    assert main(["info", str(tmp_path), "--dataset", "ksdd:thirds"]) == 1  # the counts of this small tree
    assert "cut into thirds" in capfd.readouterr().out
    assert main(["info", str(tmp_path), "--image-size", "1", "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["image_size"] == 1
    assert main(["info", str(tmp_path), "--dataset", "kssd"]) == 2
    assert "did you mean 'ksdd'" in capfd.readouterr().err
    assert main(["info", str(tmp_path), "--image-size", "0"]) == 2


def test_lists_and_bare_folders(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "1.png")
    assert main(["info", str(tmp_path)]) == 0
    out, _ = capfd.readouterr()
    assert "1 without a label" in out and "no labels" in out
    path = put_text(tmp_path / "list.csv", "image_path,label_index\n1.png,0\n")
    assert main(["info", str(path)]) == 0
    assert "read as table" in capfd.readouterr().out


def test_folders_that_hold_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 2
    assert "no pictures" in capfd.readouterr().err
    put_text(tmp_path / "meta.json", "{")
    put(tmp_path / "1.png")
    assert main(["info", str(tmp_path)]) == 2
    assert "damaged JSON" in capfd.readouterr().err


def test_backbones_are_still_described(small_backbone: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(small_backbone)]) == 0
    assert "backbone" in capfd.readouterr().out
    assert main(["info", str(small_backbone / "config.json")]) == 2


def test_names_cannot_speak_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mvtec_class(tmp_path / "wid\x1b[31mget")
    assert main(["info", str(tmp_path)]) == 0
    assert "\x1b" not in capfd.readouterr().out


def test_prepare(widget: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["info", str(widget), "--prepare", str(out)]) == 0
    assert "5 pictures of widget" in capfd.readouterr().err
    assert (out / "meta.json").is_file() and main(["info", str(out)]) == 0
    assert main(["info", str(widget), "--prepare", str(widget / "new")]) == 2
    assert "lies in the dataset itself" in capfd.readouterr().err
    (widget / "test/good/000.png").write_bytes(b"")
    assert main(["info", str(widget), "--prepare", str(tmp_path / "other")]) == 1
    _, err = capfd.readouterr()
    assert "000.png" in err and "4 pictures of widget" in err and "1 left out" in err


def test_list_datasets(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    out, _ = capfd.readouterr()
    row = next(line for line in out.splitlines() if line.startswith("visa "))
    assert all(
        text in row for text in ("12 classes", "962 normal", "1200 anomalous", "CC BY 4.0", "spot-diff")
    )
    assert len(out.splitlines()) == 26
    assert main(["list", "datasets", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["datasets"]
    assert rows[0]["name"] == "mvtec" and rows[0]["anomalous"] == 1258 and len(rows[0]["classes"]) == 15
