"""Metrics that the authors' programs printed for their own maps: the `metric.*` values of the method sets."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from blemish.metrics import ClassMetrics, MetricOptions
from golden_data import folder

SETS = ("anomaly_clip", "vcp_clip", "vcp_clip_plus", "vip2_clip")
OPTIONS = MetricOptions(protocol="anomalyclip")
STRICT = MetricOptions(protocol="anomalyclip", strict_iou=True)
ONE_SAMPLE = ("pixel_iou", "best_threshold")  # may move by one pixel: looser by the sets' notes


def available() -> list[tuple[str, str]]:
    """(set, prefix) of every group of metrics whose maps are in the set."""
    found = []
    for name in SETS:
        path = folder(name) / "expected.safetensors"
        if not path.is_file():
            continue
        with safe_open(str(path), "np") as file:
            keys = set(file.keys())
        groups = {key.split("metric.")[0] for key in keys if "metric." in key}
        found += [(name, group) for group in sorted(groups) if map_name(name, group) in keys]
    return found


def map_name(name: str, group: str) -> str:
    """Where the maps are that a group's metrics were made from."""
    if name == "anomaly_clip":
        return f"{group}anomaly_map.smoothed"
    return f"{group}final.{'smoothed' if name == 'vip2_clip' else 'normalized'}"


def computed(maps: np.ndarray, masks: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    metrics = ClassMetrics(STRICT)
    for one in zip(labels, scores, maps, masks, strict=True):
        metrics.update(*one)
    values = {name: value.value for name, value in metrics.compute().items()}
    return values | {"best_threshold": values["pixel_f1max_threshold"]}


def test_every_set_is_compared() -> None:
    assert {"anomaly_clip", "vcp_clip"} <= {name for name, _ in available()}


@pytest.mark.parametrize(("name", "group"), available())
def test_method_set(name: str, group: str) -> None:
    expected = load_file(folder(name) / "expected.safetensors")
    inputs = load_file(folder(name) / "inputs.safetensors")
    masks = (inputs["masks"] if "masks" in inputs else inputs["mask"])[:, 0] > 0.5
    labels = (inputs["labels"] if "labels" in inputs else inputs["label"]).astype(int)
    scores = expected["image.score" if name == "anomaly_clip" else f"{group}final.image_score"]
    found = computed(expected[map_name(name, group)], masks, scores, labels)
    compared = {key: float(v.item()) for key, v in expected.items() if key.startswith(f"{group}metric.")}
    assert any("aupro" in key for key in compared)
    for key, value in compared.items():
        metric = key.removeprefix(f"{group}metric.").replace("-", "_")
        allowed = 5e-3 if metric in ONE_SAMPLE else 1e-6
        assert found[metric] == pytest.approx(value, rel=0, abs=allowed), key


def test_anomaly_clip_evaluation_set() -> None:
    tensors = load_file(folder("anomaly_clip") / "metrics.safetensors")
    metrics = ClassMetrics(OPTIONS)
    for i, anomaly_map in enumerate(tensors["input.maps"]):
        mask = tensors["input.masks"][i, 0]
        metrics.update(int(tensors["input.labels"][i]), tensors["input.scores"][i], anomaly_map, mask)
    found = metrics.compute()
    for name in ("image-auroc", "image-ap", "pixel-auroc", "pixel-aupro"):
        expected = float(tensors[f"expected.{name}"].item())
        assert found[name.replace("-", "_")].value == pytest.approx(expected, rel=0, abs=1e-6), name
