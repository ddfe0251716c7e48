"""Generated datasets follow MVTec's folder layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.errors import BadOption, OutputError, UnknownName
from blemish.synth import (
    DEFECTS,
    MATERIALS,
    SHAPES,
    TRAINING,
    Families,
    SynthOptions,
    write_dataset,
    write_pictures,
)


def test_layout(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", 24, seed=3, size=96)
    pictures = sorted((tmp_path / "set").glob("*/test/*/*.png"))
    assert len(pictures) == 24
    kinds = {path.parent.name for path in pictures}
    assert "good" in kinds
    assert len(kinds) > 3
    for path in pictures:
        group, kind = path.parents[2], path.parent.name
        assert group.name in (*SHAPES, *MATERIALS)
        mask = group / "ground_truth" / kind / f"{path.stem}_mask.png"
        assert mask.exists() == (kind != "good")
        with Image.open(path) as image:
            assert image.size == (96, 96)
            assert image.mode == "RGB"
        if kind != "good":
            assert kind in DEFECTS
            values = np.asarray(Image.open(mask))
            assert values.shape == (96, 96)
            assert set(np.unique(values)) == {0, 255}
    assert not list(tmp_path.rglob("*.part"))


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    first, second = (write_dataset(tmp_path / name, 5, seed=1, size=96) for name in ("a", "b"))
    names = sorted(p.relative_to(first) for p in first.rglob("*.png"))
    assert names == sorted(p.relative_to(second) for p in second.rglob("*.png"))
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)


def test_more_pictures_extend_the_set(tmp_path: Path) -> None:
    short = {p.name for p in write_dataset(tmp_path / "a", 3, seed=1, size=96).rglob("0*.png")}
    long = {p.name for p in write_dataset(tmp_path / "b", 6, seed=1, size=96).rglob("0*.png")}
    assert short < long


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_processes_change_no_bit(tmp_path: Path) -> None:
    one, two = (write_dataset(tmp_path / str(n), 18, seed=5, size=80, workers=n) for n in (1, 2))
    assert files(one) == files(two)


def test_a_run_is_resumed(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "set", 12, seed=5, size=80)
    whole = files(out)
    lost = sorted(name for name in whole if name.endswith(".png") and "/test/" in name)[::3]
    for name in lost:
        (out / name).unlink()
    seen: list[tuple[int, int]] = []
    summary = write_pictures(
        out, 12, 5, 80, workers=1, on_progress=lambda done, total, error: seen.append((done, total))
    )
    assert files(out) == whole
    assert (summary.pictures, summary.drawn) == (12, len(lost))
    assert seen[0] == (12 - len(lost), 12) and seen[-1] == (12, 12)
    assert write_pictures(out, 6, 5, 80).drawn == 0
    about = json.loads((out / "synth.json").read_text())
    assert (about["count"], about["seed"], about["size"]) == (12, 5, 80)
    assert "CC0" in (out / "README.md").read_text()


def test_pictures_are_kept_as_they_are(tmp_path: Path) -> None:
    out = write_dataset(tmp_path / "set", 3, seed=5, size=80)
    first = next(out.glob("*/test/*/000000.png"))
    first.write_bytes(b"mine")
    write_dataset(out, 4, seed=5, size=80)
    assert first.read_bytes() == b"mine"
    assert len(list(out.glob("*/test/*/*.png"))) == 4


@pytest.mark.parametrize(("seed", "size", "families"), [(6, 80, None), (5, 96, None), (5, 80, TRAINING)])
def test_other_settings_are_refused(tmp_path: Path, seed: int, size: int, families: Families | None) -> None:
    out = write_dataset(tmp_path / "set", 2, seed=5, size=80)
    before = files(out)
    with pytest.raises(OutputError, match="other settings"):
        write_dataset(out, 2, seed, size, families=families)
    assert files(out) == before


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"made_by": "me"}'])
def test_a_foreign_folder_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "synth.json").write_text(content)
    with pytest.raises(OutputError, match="choose another folder"):
        write_dataset(tmp_path, 2, seed=5, size=80)
    (tmp_path / "synth.json").rename(tmp_path / "notes.txt")
    with pytest.raises(OutputError, match="something else"):
        write_dataset(tmp_path, 2, seed=5, size=80)
    with pytest.raises(OutputError):
        write_dataset(tmp_path / "notes.txt", 2, seed=5, size=80)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    for count, size, workers in ((0, 80, 1), (1, 63, 1), (1, 5000, 1), (1, 80, 0)):
        with pytest.raises(BadOption):
            write_dataset(tmp_path / "set", count, 0, size, workers=workers)
    with pytest.raises(BadOption, match="seed is -1"):
        SynthOptions(seed=-1)
    with pytest.raises(UnknownName, match="did you mean 'held_out'"):
        SynthOptions(families="heldout")
    assert not (tmp_path / "set").exists()


def test_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count is 0"):
        write_dataset(tmp_path, 0, seed=1)
