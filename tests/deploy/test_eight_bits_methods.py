"""Methods with the text tower inside, in eight bits: how near maps and scores stay to fp32, in each kind of file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blemish
from blemish.data.transforms import preprocess
from blemish.deploy import parity
from blemish.deploy.engines import open_engine
from blemish.deploy.export import _save_openvino, export
from blemish.deploy.metadata import ModelMeta
from blemish.deploy.parity import Answers
from blemish.deploy.quantise import quantise_onnx, quantise_openvino

SIDE, COUNT = 96, 12


@pytest.fixture(scope="module", params=["vcp_clip", "vip2_clip"])
def exact(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModelMeta, list[np.ndarray], Answers]:
    """The fp32 model of an embedded checkpoint, network inputs, and its answers.

    Random weights would not do: their maps are constant to the fourth digit.
    """
    path = tmp_path_factory.mktemp(request.param) / "exact.onnx"
    export(blemish.load(request.param, image_size=SIDE, device="cpu", precision="fp32"), path)
    engine = open_engine(path)
    images = parity.drawn_samples(COUNT).images
    inputs = [preprocess(image, SIDE, engine.meta.mean, engine.meta.std) for image in images]
    return path, engine.meta, inputs, parity.answers(engine, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("measured", [False, True], ids=["weights", "calibrated"])
@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_near_to_fp32(exact: Any, kind: str, measured: bool, tmp_path: Path) -> None:
    path, meta, inputs, before = exact
    target = tmp_path / f"small.{kind}"
    ranges = inputs[: COUNT // 2] if measured else None
    if kind == "onnx":
        quantise_onnx(path, target, ranges, SIDE, meta.to_properties())
    else:
        import openvino

        small = quantise_openvino(openvino.Core().read_model(str(path)), ranges, SIDE)
        _save_openvino(small, target, meta.to_properties())
    after = parity.answers(open_engine(target, precision="fp32"), inputs)
    assert parity.map_correlation(after, before) > (0.93 if measured else 0.98)
    assert np.corrcoef(after.scores, before.scores)[0, 1] > (0.9 if measured else 0.99)
    # How far scores of different pictures lie apart is the measure of a change.
    changes = np.abs(after.scores - before.scores)
    assert 0 < changes.mean() < (0.08 if measured else 0.03) * np.ptp(before.scores)
