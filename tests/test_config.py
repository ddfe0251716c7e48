"""Settings and configuration files as typed options."""

from __future__ import annotations

from pathlib import Path

import pytest

from blemish.config import PredictOptions, parse_settings, read_config, typed_options
from blemish.errors import BadOption, UnknownName


def test_settings_are_read_as_toml() -> None:
    pairs = [
        "a=1",
        "b=0.5",
        "c=true",
        "d=paper",
        'e="x y"',
        "f=[6, 12]",
        "g=(1,2)",
        "a=2",
        "h-i=False",
        "j=a/b-c.pth",
    ]
    assert parse_settings(pairs) == {
        **{"a": 2, "b": 0.5, "c": True, "d": "paper", "e": "x y", "f": [6, 12], "g": [1, 2]},
        **{"h_i": False, "j": "a/b-c.pth"},
    }
    for wrong in ("a", "=1", "a=", "a=[1", 'a="x', "a=1\nb=2", "a=b c"):
        with pytest.raises(BadOption):
            parse_settings([wrong])


def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("image-size = 40\n")
    assert read_config(path) == {"image_size": 40}
    for text in ("image_size: 4", "[predict]\nsave = 'map'\n"):
        path.write_text(text)
        with pytest.raises(BadOption, match=r"c\.toml"):
            read_config(path)


def test_typed_options() -> None:
    found = typed_options(
        PredictOptions, {"overlap": 0, "threads": "none", "save": ["map", "mask"]}, "predict"
    )
    assert found == {"overlap": 0.0, "threads": None, "save": ("map", "mask")}
    assert isinstance(found["overlap"], float)
    assert PredictOptions(save="map, overlay,map").kinds == ("map", "overlay")
    assert PredictOptions(save="none").kinds == ()
    with pytest.raises(UnknownName, match="did you mean 'image_size'"):
        typed_options(PredictOptions, {"image_sise": 3}, "predict")
    for key, value in (("tile", 1.5), ("tile", True), ("save", [1]), ("device", 3), ("device", None)):
        with pytest.raises(BadOption, match=f"option {key} of predict"):
            typed_options(PredictOptions, {key: value}, "predict")
