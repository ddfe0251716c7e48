"""Settings and configuration files as typed options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blemish.config import PredictOptions, parse_settings, read_config, typed_options
from blemish.deploy.export_options import ExportOptions
from blemish.deploy.serve_options import ServeOptions
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
    with pytest.raises(BadOption, match=r"""no value; for an empty text write --set 'noun=""'$"""):
        parse_settings(["noun="])
    assert parse_settings(['noun=""']) == {"noun": ""}


def test_configuration_files(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("image-size = 40\n")
    assert read_config(path) == {"image_size": 40}
    for text in ("image_size: 4", "[predict]\nsave = 'map'\n"):
        path.write_text(text)
        with pytest.raises(BadOption, match=r"c\.toml"):
            read_config(path)


def test_commands_refuse_the_same_seeds_and_counts() -> None:
    from blemish.run.calibrate import CalibrateOptions
    from blemish.run.evaluate_options import EvaluateOptions
    from blemish.run.recipe import TrainOptions

    kinds: tuple[tuple[type, dict[str, Any]], ...] = (
        (PredictOptions, {}),
        (ServeOptions, {}),
        (ExportOptions, {"out": "m.onnx"}),
        (EvaluateOptions, {}),
        (CalibrateOptions, {"data": "d"}),
        (TrainOptions, {"method": "coop"}),
    )
    for kind, needed in kinds:
        assert kind(**needed, seed=2**63 - 1).seed == 2**63 - 1
        for seed in (-1, 2**63):
            with pytest.raises(BadOption, match=f"seed is {seed}; expected 0 to 9223372036854775807"):
                kind(**needed, seed=seed)
        for name in {"batch_size", "threads"} & set(kind.__dataclass_fields__):
            if kind is not ExportOptions:  # whose threads `blemish.load` checks
                with pytest.raises(BadOption, match=f"{name} is 0; expected at least 1"):
                    kind(**needed, **{name: 0})


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
