"""Every golden metric case, exact and streaming; see tests/golden/metrics/README.md."""

from __future__ import annotations

import math
import pickle
from functools import cache

import numpy as np
import pytest
from metric_cases import CASES, COMPARED, EXPECTED, REFUSED, all_values, counts, gather, images, tolerance

from blemish.errors import BadImage
from blemish.metrics import ClassMetrics, MetricOptions, Value, mean_over_classes

MODES = ("exact", "streaming")
FLOAT_NOISE = 1e-12


@cache
def values(name: str, mode: str) -> dict[str, Value]:
    return all_values(name, mode)


def metrics_of(name: str) -> dict[str, float | None]:
    expected = CASES[name]["expected"]
    return {k: v for k, v in expected.items() if not k.startswith("n_") and "_n_tied" not in k}


@pytest.mark.parametrize("name", COMPARED)
def test_counts(name: str) -> None:
    found = counts(name)
    expected = {k: v for k, v in CASES[name]["expected"].items() if k.startswith("n_")}
    assert expected
    assert {k: found[k] for k in expected} == expected


@pytest.mark.parametrize("name", COMPARED)
def test_exact(name: str) -> None:
    for metric, expected in metrics_of(name).items():
        value = values(name, "exact")[metric]
        if expected is None:
            assert math.isnan(value.value) and value.reason, metric
        else:
            assert value.bound == 0 and value.reason is None, metric
            assert value.value == pytest.approx(expected, rel=0, abs=tolerance(metric)), metric


@pytest.mark.parametrize("name", COMPARED)
def test_streaming_within_its_bound(name: str) -> None:
    for metric, expected in metrics_of(name).items():
        value = values(name, "streaming")[metric]
        if expected is None:
            assert math.isnan(value.value) and value.reason, metric
        else:
            assert value.bound >= 0, metric
            allowed = value.bound + tolerance(metric) + FLOAT_NOISE
            assert value.value == pytest.approx(expected, rel=0, abs=allowed), metric


@pytest.mark.parametrize("name", ["smooth", "smooth518", "saturated", "nonsquare"])
def test_streaming_bounds_are_small(name: str) -> None:
    found = values(name, "streaming")
    limits = {
        "pixel_auroc": 1e-5,
        "pixel_ap": 1e-4,
        "pixel_f1max": 5e-5,
        "pixel_iou": 5e-5,
        "pixel_aupro": 5e-5,
    }
    for metric, limit in limits.items():
        assert found[metric].bound < limit, metric


@pytest.mark.parametrize("name", ["ties16", "ties2", "constant"])
def test_bins_of_one_score_leave_nothing_open(name: str) -> None:
    for metric in ("pixel_auroc", "pixel_ap", "pixel_f1max_threshold", "pixel_iou_strict", "pixel_aupro"):
        assert values(name, "streaming")[metric].bound < FLOAT_NOISE, metric


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("mode", MODES)
def test_refused_naming_the_image(name: str, mode: str) -> None:
    metrics = ClassMetrics(MetricOptions(mode=mode))
    refused = []
    for i, image in enumerate(images(name)):
        before = pickle.dumps(metrics)
        try:
            metrics.update(**image)
        except BadImage as error:
            refused.append((i, str(error)))
            assert pickle.dumps(metrics) == before
            break
    [(index, text)] = refused
    assert f"map {index}" in text and f"map {index}" in CASES[name]["error"]


@pytest.mark.parametrize("group", EXPECTED["datasets"])
def test_means_over_classes(group: str) -> None:
    dataset = EXPECTED["datasets"][group]
    means = mean_over_classes({name: values(name, "exact") for name in dataset["classes"]})
    for metric, expected in dataset["mean"].items():
        assert means[metric].value == pytest.approx(expected, rel=0, abs=tolerance(metric)), metric
        assert means[metric].used == dataset["n_classes_used"][metric], metric
        assert means[metric].classes == len(dataset["classes"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ragged", "float64", "missing_regions", "ties16", "smooth"])
def test_order_and_parts_change_nothing(name: str, mode: str) -> None:
    options = MetricOptions(mode=mode)
    whole = values(name, mode)
    order = np.random.default_rng(3).permutation(len(images(name)))
    merged = gather(name, options, iter(order[:2]))
    for part in np.array_split(order[2:], 3):
        other = pickle.loads(pickle.dumps(gather(name, options, iter(part))))
        other.merge(merged)
        merged = other
    for metric, value in merged.compute().items():
        assert value.value == pytest.approx(whole[metric].value, rel=0, abs=1e-12), metric
        assert value.bound == pytest.approx(whole[metric].bound, rel=0, abs=1e-12), metric


@pytest.mark.parametrize("name", ["smooth", "saturated", "negative32"])
def test_exact_ignores_increasing_rescaling(name: str) -> None:
    options = MetricOptions()
    metrics = ClassMetrics(options)
    for image in images(name):
        metrics.update(**image | {"anomaly_map": np.arctan(image["anomaly_map"].astype(np.float64)) * 7 - 3})
    found = metrics.compute()
    for metric in ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_iou", "pixel_aupro"):
        assert found[metric].value == pytest.approx(values(name, "exact")[metric].value, rel=0, abs=1e-12), (
            metric
        )
