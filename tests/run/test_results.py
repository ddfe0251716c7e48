"""Results as data: what is written can be read back, damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blemish.errors import BadOption
from blemish.run.results import (
    METRICS,
    ClassResult,
    Counts,
    Evaluation,
    FailedImage,
    Histogram,
    ImageRow,
    Line,
    MeanScore,
    MethodResult,
    Protocol,
    Score,
    Speed,
    plain,
    read_results,
)


def sample() -> Evaluation:
    metrics = {name: Score(0.5, error_bound=1e-4) for name in METRICS}
    metrics["pixel_aupro"] = Score(None, "no masks")
    found = ClassResult(
        Counts(1, 2, 1),
        metrics,
        image_threshold=0.25,
        pixel_threshold=None,
        curves={"image_roc": Line((0.0, 0.5, 1.0), (0.0, 1.0, 1.0))},
        histogram=Histogram((0.0, 0.5, 1.0), (1, 0), (0, 2)),
        images=(
            ImageRow("a/test/good/0.png", 0, 0.1, "good"),
            ImageRow("a/1.png", 1, 0.3, "cut", (0, 0, 5, 9)),
        ),
        failed=(FailedImage("a/2.png", "damaged"),),
        notes=("no masks",),
    )
    protocol = Protocol(518, "exact", 0.3, 8, "exact", False, 4.0, "native")
    method = MethodResult(
        label="one",
        method="anomaly_clip",
        backbone="tiny",
        backbone_fingerprint="f",
        checkpoint="x.safetensors",
        checkpoint_sha256="s",
        auxiliary="drawn",
        options={"layers": [1.0, 6], "sigma": 4.0},
        image_size=224,
        precision="fp32",
        device="cpu",
        protocol=protocol,
        speed=Speed(0.2, 0.1, 2),
        peak_memory_mib=300.0,
        classes={"a": found},
        mean={"image_auroc": MeanScore(0.5, 1, 1), "pixel_aupro": MeanScore(None, 0, 1)},
    )
    other = replace(method, label="two", protocol=replace(protocol, resolution="native", smoothing=None))
    return Evaluation("set", "mvtec_layout", {"a": Counts(1, 2, 1)}, (method, other), notes=("n",))


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    evaluation = sample()
    path = tmp_path / "results.json"
    path.write_text(json.dumps(evaluation.to_json(), allow_nan=False))
    assert read_results(path) == evaluation
    values = json.loads(path.read_text())
    assert list(values)[:2] == ["format", "version"]
    first = values["methods"][0]
    assert first["classes"]["a"]["metrics"]["pixel_aupro"] == {
        "value": None,
        "reason": "no masks",
        "error_bound": 0.0,
    }
    assert first["protocol"]["resolution"] == 518 and values["methods"][1]["protocol"]["smoothing"] is None


def test_a_file_of_a_later_minor_change_can_be_read() -> None:
    values = plain(sample().to_json())
    values["more"] = 1
    values["methods"][0]["more"] = {"x": 2}
    del values["notes"]
    assert Evaluation.from_json(values) == replace(sample(), notes=())


def test_whole_numbers_stand_for_floats() -> None:
    values = plain(sample().to_json())
    values["methods"][0]["speed"]["encoder"] = 1
    encoder = Evaluation.from_json(values).methods[0].speed.encoder
    assert encoder == 1.0 and isinstance(encoder, float)


def test_failed_images_of_all_methods() -> None:
    assert sample().failed == {"a/2.png": "damaged"}
    assert sample().methods[0].speed.total == pytest.approx(0.3)


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: [], "no results"),
        (lambda v: v | {"format": "other"}, "no results"),
        (lambda v: v | {"version": 99}, "version 99"),
        (lambda v: _without(v, "dataset"), "dataset is missing"),
        (lambda v: v | {"dataset": 3}, "dataset is 3; expected str"),
        (lambda v: v | {"methods": {}}, "methods"),
        (lambda v: v | {"methods": [1]}, "methods: expected an object, got int"),
        (lambda v: v | {"classes": {"a": {"normal": 1.5}}}, r"classes\.a: normal is 1\.5; expected int"),
        (lambda v: v | {"classes": {"a": {"normal": True}}}, "expected int"),
    ],
)
def test_damage_is_named(change: Any, words: str) -> None:
    with pytest.raises(BadOption, match=words):
        Evaluation.from_json(change(plain(sample().to_json())), "x.json")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(BadOption, match="no such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(BadOption, match="damaged"):
        read_results(tmp_path / "x.json")
