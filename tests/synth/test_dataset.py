"""Generated datasets follow MVTec's folder layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blemish.synth import DEFECTS, MATERIALS, SHAPES, write_dataset


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


def test_no_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count is 0"):
        write_dataset(tmp_path, 0, seed=1)
