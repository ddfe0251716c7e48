"""Prepared copies: MVTec layout, lossless, whole, resumable, never where the originals are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.data.layouts import Dataset, open_dataset
from blemish.data.prepare import prepare
from blemish.data.samples import load_mask, load_pixels
from blemish.errors import BadDataset, OutputError
from dataset_trees import TREES, entry, mvtec, put, put_meta


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def pixels_of(dataset: Dataset) -> list[tuple[object, ...]]:
    """What a dataset means: class, label, split, pixels and mask of every sample."""
    found = []
    for sample in dataset.samples:
        pixels = load_pixels(sample)
        mask = load_mask(sample, pixels.shape[:2])
        outline = None if mask is None else mask.tobytes()
        found.append((sample.class_name, sample.label, sample.split, pixels.tobytes(), outline))
    return sorted(found, key=str)


@pytest.mark.parametrize("name", TREES)
def test_the_copy_means_the_same_and_the_original_is_untouched(name: str, tmp_path: Path) -> None:
    tree = TREES[name](tmp_path / "in")
    before = contents(tmp_path / "in")
    dataset = open_dataset(tmp_path / "in" / tree.root, split="all")
    out = prepare(dataset, tmp_path / name)
    assert contents(tmp_path / "in") == before
    copies = [open_dataset(out, layout, "all") for layout in ("meta_json", "mvtec_layout")]
    for copy in copies:
        assert pixels_of(copy) == pixels_of(dataset) and not copy.problems
    assert copies[0].entry is dataset.entry
    assert copies[0].classes == dataset.classes
    for path in out.rglob("*_mask.png"):
        with Image.open(path) as mask:
            assert mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 255}
    assert not list(out.rglob(".*"))


def test_names_of_kolektor_parts(tmp_path: Path) -> None:
    TREES["ksdd"](tmp_path / "in")
    out = prepare(open_dataset(tmp_path / "in", "ksdd:thirds", "all"), tmp_path / "ksdd")
    names = {p.name for p in out.rglob("*.png") if "test/defect" in str(p)}
    assert names == {"kos01_Part0_1.png", "kos02_Part1_2.png"}
    copy = open_dataset(out)
    assert copy.name == "ksdd" and any("thirds" in note for note in copy.notes)


def test_equal_names_stay_apart(tmp_path: Path) -> None:
    for folder in ("a", "b", "c/a"):
        put(tmp_path / f"in/bad/{folder}/1.png")
    put(tmp_path / "in/bad/1.jpg")
    put(tmp_path / "in/good/1.png")
    dataset = open_dataset(tmp_path / "in")
    assert pixels_of(open_dataset(prepare(dataset, tmp_path / "out"))) == pixels_of(dataset)


def test_an_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mvtec(tmp_path / "in")
    dataset = open_dataset(tmp_path / "in", split="all")

    def stop(done: int, total: int, error: str | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(dataset, tmp_path / "out", on_progress=stop)
    assert not (tmp_path / "out/meta.json").exists()
    early = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.png")}
    assert early
    monkeypatch.chdir(tmp_path)
    prepare(open_dataset(Path("in"), split="all"), Path("out"))
    assert all(p.stat().st_mtime_ns == time for p, time in early.items())
    assert pixels_of(open_dataset(tmp_path / "out", split="all")) == pixels_of(dataset)
    record = json.loads((tmp_path / "out/prepare.json").read_text())
    assert record["dataset"] == "mvtec" and record["licence"].startswith("CC BY-NC")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    mvtec(tmp_path / "in")
    dataset = open_dataset(tmp_path / "in")
    before = contents(tmp_path)
    for inside in ("in", "in/bottle/test/good", "in/new"):
        with pytest.raises(OutputError, match="lies in the dataset itself"):
            prepare(dataset, tmp_path / inside)
    with pytest.raises(OutputError, match="not an empty folder"):
        prepare(dataset, tmp_path)
    assert contents(tmp_path) == before
    prepare(dataset, tmp_path / "out")
    with pytest.raises(OutputError, match="another prepared dataset"):
        prepare(open_dataset(tmp_path / "in", split="all"), tmp_path / "out")
    put(tmp_path / "bare/1.png")
    with pytest.raises(BadDataset, match="1 of 1 pictures"):
        prepare(open_dataset(tmp_path / "bare"), tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_unreadable_pictures_are_left_out_and_told(tmp_path: Path) -> None:
    mvtec(tmp_path / "in")
    (tmp_path / "in/bottle/test/good/000.png").write_bytes(b"\x89PNG broken")
    told: list[str] = []
    dataset = open_dataset(tmp_path / "in")
    out = prepare(
        dataset, tmp_path / "out", on_progress=lambda d, t, error: told.append(error) if error else None
    )
    assert len(told) == 1 and "000.png" in told[0]
    assert len(open_dataset(out).samples) == len(dataset.samples) - 1


def test_names_in_a_list_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "in/1.png")
    put(tmp_path / "in/2.png")
    rows = [entry("1.png", specie="../../x", anomaly=1), entry("2.png", specie="..")]
    put_meta(tmp_path / "in/meta.json", {"../../evil/a": rows})
    out = prepare(open_dataset(tmp_path / "in"), tmp_path / "deep/deep/out")
    assert {p.parent for p in tmp_path.rglob("*") if p.is_file() and out not in p.parents} == {
        tmp_path / "in"
    }
    assert len(open_dataset(out).samples) == 2
