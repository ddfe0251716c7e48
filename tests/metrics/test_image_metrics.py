"""Image metrics against scikit-learn, their refusals, class states and means."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from blemish.errors import BadImage, BadOption
from blemish.metrics import ClassMetrics, ImageMetrics, Value, mean_over_classes


def gathered(scores: list[float], labels: list[int]) -> ImageMetrics:
    metrics = ImageMetrics()
    for one in zip(scores, labels, strict=True):
        metrics.update(*one)
    return metrics


def f1(labels: list[int], positive: np.ndarray) -> float:
    return 2 * float(np.sum(positive * np.array(labels))) / (float(positive.sum()) + sum(labels))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([-1.5, -0.0, 0.0, 0.25, 0.5, 3.0]), st.integers(0, 1)),
        min_size=2,
        max_size=20,
    )
)
def test_equals_scikit_learn(items: list[tuple[float, int]]) -> None:
    scores, labels = [s for s, _ in items], [y for _, y in items]
    found = {name: value.value for name, value in gathered(scores, labels).compute().items()}
    if not any(labels):
        assert all(math.isnan(value) for value in found.values())
        return
    candidates = {t: f1(labels, np.array(scores) >= t) for t in scores}
    best = max(candidates.values())
    threshold = min(t for t, f1 in candidates.items() if f1 > best - 1e-12)
    positive = np.array(scores) >= threshold
    assert found["image_f1max"] == pytest.approx(best, abs=1e-12)
    assert found["image_f1max_threshold"] == threshold
    assert found["image_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert found["image_tpr"] == pytest.approx(positive[np.array(labels) == 1].mean(), abs=1e-12)
    assert found["image_tpr"] + found["image_fnr"] == 1
    if all(labels):
        assert math.isnan(found["image_auroc"]) and math.isnan(found["image_tnr"])
        return
    assert found["image_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found["image_fpr"] == pytest.approx(positive[np.array(labels) == 0].mean(), abs=1e-12)
    assert found["image_tnr"] + found["image_fpr"] == 1


def test_reasons() -> None:
    assert ImageMetrics().compute()["image_auroc"].reason == "no images"
    assert gathered([1.0], [0]).compute()["image_ap"].reason == "no anomalous image"
    assert gathered([1.0], [1]).compute()["image_auroc"].reason == "no normal image"


@pytest.mark.parametrize(("score", "label"), [(math.nan, 0), (math.inf, 1), (0.5, 2), (0.5, -1)])
def test_bad_images_are_refused_by_name(score: float, label: int) -> None:
    metrics = ImageMetrics()
    with pytest.raises(BadImage, match=r"a\.png"):
        metrics.update(score, label, name="a.png")
    assert len(metrics) == 0


def test_curve() -> None:
    curve = gathered([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]).curve()
    area = float(np.sum(np.diff(curve.fpr) * (curve.tpr[1:] + curve.tpr[:-1]) / 2))
    assert area == pytest.approx(0.75)


def test_class_state_keeps_images_without_masks_at_image_level() -> None:
    metrics = ClassMetrics()
    metrics.update(label=1, score=0.9)
    metrics.update(label=0, score=0.1, anomaly_map=np.zeros((2, 2)))
    found = metrics.compute()
    assert found["image_auroc"] == Value(1.0)
    assert found["pixel_auroc"].reason == "no masks"


def test_a_refused_map_leaves_the_image_out_too() -> None:
    metrics = ClassMetrics()
    with pytest.raises(BadImage, match=r"b\.png"):
        metrics.update(1, 0.9, np.full((2, 2), np.nan), np.ones((2, 2)), name="b.png")
    with pytest.raises(BadImage, match="image 0"):
        metrics.update(1, math.nan, np.zeros((2, 2)), np.ones((2, 2)))
    with pytest.raises(BadOption, match="together"):
        metrics.update(score=0.5)
    assert len(metrics.images) == 0 and metrics.pixels.images == 0


def test_mean_leaves_undefined_classes_out() -> None:
    means = mean_over_classes(
        {
            "a": {"image_auroc": Value(0.5, bound=0.2), "image_ap": Value(math.nan, "no images")},
            "b": {"image_auroc": Value(1.0), "image_ap": Value(math.nan, "no images")},
            "c": {"image_auroc": Value(math.nan, "no images")},
        }
    )
    assert (means["image_auroc"].value, means["image_auroc"].used, means["image_auroc"].classes) == (
        0.75,
        2,
        3,
    )
    assert means["image_auroc"].bound == pytest.approx(0.1)
    assert math.isnan(means["image_ap"].value) and means["image_ap"].used == 0
