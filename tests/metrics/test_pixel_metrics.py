"""Pixel metrics against scikit-learn on generated scores, refusals, options, merging."""

from __future__ import annotations

import logging
import math
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from blemish.errors import BadImage, BadOption, UnknownName
from blemish.metrics import ClassMetrics, MetricOptions, PixelMetrics, Value

RANKED = ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_iou", "pixel_aupro")


def reference(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> dict[str, float]:
    """The metrics by scikit-learn; AUPRO as a weighted ROC curve."""
    labels = np.concatenate([m.ravel() for m in masks])
    scores = np.concatenate([m.ravel() for m in maps]).astype(np.float64)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))
    weights = np.concatenate([pixel_weights(m).ravel() for m in masks])
    fpr, pro, _ = roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
    below = fpr < limit
    x = np.append(fpr[below], limit)
    y = np.append(pro[below], at(limit, fpr, pro))
    return {
        "pixel_auroc": roc_auc_score(labels, scores),
        "pixel_ap": average_precision_score(labels, scores),
        "pixel_f1max": f1,
        "pixel_iou": f1 / (2 - f1),
        "pixel_aupro": float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / limit),
    }


def at(limit: float, fpr: np.ndarray, pro: np.ndarray) -> float:
    """The curve's value where it first reaches `limit`."""
    i = int(np.flatnonzero(fpr >= limit)[0])
    share = (limit - fpr[i - 1]) / (fpr[i] - fpr[i - 1])
    return float(pro[i - 1] + share * (pro[i] - pro[i - 1]))


def pixel_weights(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    weights = np.ones(mask.shape)
    for region in range(1, count + 1):
        weights[labels == region] = 1 / np.sum(labels == region)
    return weights


def gathered(maps: list[np.ndarray], masks: list[np.ndarray], **options: Any) -> PixelMetrics:
    metrics = PixelMetrics(MetricOptions(**options))
    for one in zip(maps, masks, strict=True):
        metrics.update(*one)
    return metrics


@st.composite
def classes(draw: st.DrawFn) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A few small images of one class, with ties when few levels are drawn."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 50, 0]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    scale = draw(st.sampled_from([1.0, -3.0, 1e-4, 1e5]))
    maps, masks = [], []
    for i in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(4, 12), min_size=2, max_size=2)))
        mask = rng.random(shape) < draw(st.sampled_from([0.02, 0.2, 0.6]))
        if i == 0:
            mask[:2, :2] = [[True, False], [False, True]]
        scores = rng.random(shape) + 0.3 * mask
        maps.append(((np.round(scores * levels) / levels if levels else scores) * scale).astype(dtype))
        masks.append(mask)
    return maps, masks


@settings(max_examples=30, deadline=None)
@given(classes(), st.sampled_from([0.05, 0.3, 1.0]))
def test_equals_scikit_learn(drawn: tuple[list[np.ndarray], list[np.ndarray]], limit: float) -> None:
    expected = reference(*drawn, limit)
    exact = gathered(*drawn, fpr_limit=limit).compute()
    streaming = gathered(*drawn, fpr_limit=limit, mode="streaming").compute()
    for name, value in expected.items():
        assert exact[name].value == pytest.approx(value, rel=0, abs=1e-9), name
        allowed = streaming[name].bound + 1e-9
        assert streaming[name].value == pytest.approx(value, rel=0, abs=allowed), name


@settings(max_examples=20, deadline=None)
@given(classes(), st.booleans())
def test_streaming_threshold_and_protocols_are_within_bounds(
    drawn: tuple[list[np.ndarray], list[np.ndarray]], strict: bool
) -> None:
    options = {"strict_iou": strict, "protocol": "anomalyclip", "fpr_limit": 0.7}
    exact = gathered(*drawn, **options).compute()
    streaming = gathered(*drawn, mode="streaming", **options).compute()
    for name, value in exact.items():
        if value.defined and streaming[name].defined:
            scale = max(1.0, abs(value.value))
            assert abs(value.value - streaming[name].value) <= streaming[name].bound + 1e-9 * scale, name


@settings(max_examples=20, deadline=None)
@given(classes(), st.sampled_from(["exact", "streaming"]), st.randoms())
def test_merging_in_any_order_gives_identical_results(
    drawn: tuple[list[np.ndarray], list[np.ndarray]], mode: str, random: Any
) -> None:
    pairs = list(zip(*drawn, strict=True))
    whole = gathered(*drawn, mode=mode).compute()
    random.shuffle(pairs)
    parts = [gathered([a], [b], mode=mode) for a, b in pairs]
    total = PixelMetrics(MetricOptions(mode=mode))
    for part in parts:
        total.merge(pickle.loads(pickle.dumps(part)))
    for name, value in total.compute().items():
        if mode == "exact":
            assert value == whole[name]
        else:
            assert value.value == pytest.approx(whole[name].value, rel=1e-12, abs=1e-12)


def test_compute_between_updates_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    maps, masks = list(rng.random((4, 20, 20))), list(rng.random((4, 20, 20)) < 0.1)
    metrics = PixelMetrics()
    for one in zip(maps, masks, strict=True):
        metrics.update(*one)
        metrics.compute()
    assert metrics.compute() == gathered(maps, masks).compute()


def test_float32_and_float64_parts_merge_without_rounding() -> None:
    rng = np.random.default_rng(1)
    maps = [rng.random((9, 9)).astype(np.float32), rng.random((9, 9)), rng.random((9, 9)).astype(np.float16)]
    masks = list(rng.random((3, 9, 9)) < 0.2)
    expected = reference(maps, masks, 0.3)
    for order in ([0, 1, 2], [1, 0, 2], [2, 0, 1]):
        total = PixelMetrics()
        for i in order:
            total.merge(gathered([maps[i]], [masks[i]]))
        found = total.compute()
        assert {n: found[n].value for n in RANKED} == pytest.approx(expected, abs=1e-12)


def test_many_pixels_cross_the_blocks() -> None:
    rng = np.random.default_rng(2)
    maps = [np.round(rng.random((300, 300)), 4).astype(np.float32) for _ in range(2)]
    masks = [rng.random((300, 300)) < 0.4 for _ in range(2)]
    found = gathered(maps, masks).compute()
    assert {n: found[n].value for n in RANKED} == pytest.approx(reference(maps, masks, 0.3), abs=1e-9)


@pytest.mark.parametrize("top", [1.0, 4.0])
def test_streaming_resolves_scores_that_saturate_at_the_top(top: float) -> None:
    rng = np.random.default_rng(3)
    mask = rng.random((60, 60)) < 0.2
    logits = rng.normal(size=(60, 60)) * 4 + 14 + 4 * mask
    scores = (top / (1 + np.exp(-logits))).astype(np.float64)  # nearly all above 0.999 of the top
    assert np.mean(scores > 0.999 * top) > 0.9
    exact = gathered([scores], [mask]).compute()
    streaming = gathered([scores], [mask], mode="streaming", score_range=(0.0, top)).compute()
    for name in RANKED:
        assert streaming[name].bound < 5e-3, name
        assert abs(streaming[name].value - exact[name].value) <= streaming[name].bound + 1e-12


@pytest.mark.parametrize(
    ("scores", "mask", "part"),
    [
        (np.zeros((3, 3)), np.zeros((3, 4), bool), r"\(3, 3\) and its mask \(3, 4\)"),
        (np.zeros(3), np.zeros(3, bool), r"\(3,\); expected \(H, W\)"),
        (np.zeros((0, 3)), np.zeros((0, 3), bool), "at least one pixel"),
        (np.zeros((2, 2), complex), np.zeros((2, 2), bool), "complex128"),
        (np.zeros((2, 2)), np.full((2, 2), np.nan), "mask of part.png"),
        (np.zeros((2, 2)), np.full((2, 2), "x"), "expected booleans"),
        (np.array([[0, np.nan]]), np.zeros((1, 2), bool), "nan at row 0, column 1"),
        (np.array([[0], [-np.inf]], np.float16), np.zeros((2, 1), bool), "-inf at row 1, column 0"),
    ],
)
def test_refusals_name_the_image_and_leave_the_state(scores: np.ndarray, mask: np.ndarray, part: str) -> None:
    metrics = gathered([np.eye(3)], [np.eye(3, dtype=bool)])
    before = metrics.compute()
    with pytest.raises(BadImage, match=part) as caught:
        metrics.update(scores, mask, name="part.png")
    assert "part.png" in str(caught.value)
    assert metrics.compute() == before and metrics.images == 1


def test_masks_of_every_type_agree() -> None:
    rng = np.random.default_rng(4)
    scores, mask = rng.random((8, 8)), rng.random((8, 8)) < 0.3
    forms = [mask, mask.astype(np.uint8) * 255, mask.astype(np.int64), np.where(mask, 0.51, 0.5)]
    results = [gathered([scores], [form]).compute() for form in forms]
    assert all(result == results[0] for result in results)


def test_undefined_values_say_why() -> None:
    assert {v.reason for v in PixelMetrics().compute().values()} == {"no masks"}
    normal = gathered([np.eye(3)], [np.zeros((3, 3), bool)]).compute()
    assert {v.reason for v in normal.values()} == {"no anomalous pixel"}
    full = gathered([np.eye(3)], [np.ones((3, 3), bool)]).compute()
    assert full["pixel_auroc"].reason == full["pixel_aupro"].reason == "no normal pixel"
    assert full["pixel_ap"] == Value(1.0)
    assert math.isnan(float(full["pixel_auroc"])) and not full["pixel_auroc"].defined


def test_options_are_checked() -> None:
    for wrong in ({"connectivity": 6}, {"fpr_limit": 0.0}, {"fpr_limit": 1.5}, {"score_range": (1.0, 1.0)}):
        with pytest.raises(BadOption, match=next(iter(wrong))):
            MetricOptions(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="anomalyclip"):
        MetricOptions(protocol="anomaly_clip")
    with pytest.raises(BadOption, match="cannot be merged"):
        PixelMetrics().merge(PixelMetrics(MetricOptions(connectivity=4)))
    with pytest.raises(BadOption, match="into itself"):
        (one := PixelMetrics()).merge(one)
    with pytest.raises(BadOption, match="gathered with"):
        PixelMetrics().compute(MetricOptions(mode="streaming"))


def test_bound_above_the_tolerance_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(5)
    maps, masks = [0.4 + 1e-6 * rng.random((30, 30))], [rng.random((30, 30)) < 0.3]
    with caplog.at_level(logging.WARNING):
        gathered(maps, masks, mode="streaming", tolerance=1.0).compute()
        assert not caplog.records
        gathered(maps, masks, mode="streaming", tolerance=1e-3).compute()
    assert any("pixel_auroc" in record.message for record in caplog.records)


def test_curve_integrates_to_the_metrics() -> None:
    rng = np.random.default_rng(6)
    mask = rng.random((80, 80)) < 0.1
    metrics = gathered([rng.normal(size=(80, 80)) + 2 * mask], [mask], fpr_limit=1.0)
    curve, values = metrics.curve(points=400), metrics.compute()
    assert len(curve.fpr) < 2 * 800 + 3
    assert (np.diff(curve.fpr) >= 0).all() and (np.diff(curve.tpr) >= 0).all()
    for name, y in (("pixel_auroc", curve.tpr), ("pixel_aupro", curve.pro)):
        area = float(np.sum(np.diff(curve.fpr) * (y[1:] + y[:-1]) / 2))
        assert area == pytest.approx(values[name].value, abs=2e-3)
    with pytest.raises(ValueError, match="anomalous and normal"):
        PixelMetrics().curve()


@settings(max_examples=30, deadline=None)
@given(classes(), st.sampled_from(["exact", "streaming"]), st.sampled_from([2, 3, 17, 200]))
def test_lines_for_drawing_run_from_corner_to_corner(
    drawn: tuple[list[np.ndarray], list[np.ndarray]], mode: str, points: int
) -> None:
    metrics = ClassMetrics(MetricOptions(mode=mode))
    for i, one in enumerate(zip(*drawn, strict=True)):
        metrics.update(i % 2, 0.25 * i, *one)
    lines = metrics.curves(points)
    assert set(lines) == {"pixel_roc", "pixel_pro"} | ({"image_roc"} if len(drawn[0]) > 1 else set())
    for x, y in lines.values():
        assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1) and 2 <= len(x) == len(y) <= points
        assert (np.diff(x) >= 0).all() and (np.diff(y) >= 0).all()
    if points == 200:
        values = metrics.compute(MetricOptions(mode=mode, fpr_limit=1.0))
        for name, metric in (("pixel_roc", "pixel_auroc"), ("pixel_pro", "pixel_aupro")):
            x, y = lines[name]
            assert np.trapezoid(y, x) == pytest.approx(values[metric].value, abs=0.02)


def test_lines_of_a_class_without_them() -> None:
    metrics = ClassMetrics()
    assert metrics.curves() == {}
    metrics.update(1, 0.5, np.eye(3), np.ones((3, 3), bool))
    assert metrics.curves() == {}
    with pytest.raises(BadOption, match="points is 1"):
        metrics.curves(1)


def part_of(seed: int) -> PixelMetrics:
    """One process's share of a class."""
    rng = np.random.default_rng(seed)
    maps = [rng.random((40, 50)).astype(np.float64 if seed == 2 else np.float32) - 0.3 for _ in range(3)]
    return gathered(maps, [rng.random((40, 50)) < 0.1 for _ in range(3)])


def test_processes_give_identical_results() -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        parts = pool.map(part_of, range(4))
    total, alone = PixelMetrics(), PixelMetrics()
    for seed in range(4):
        total.merge(parts[3 - seed])
        alone.merge(part_of(seed))
    assert total.compute() == alone.compute()


def test_every_width_and_layout_of_floats_is_read_without_rounding() -> None:
    rng = np.random.default_rng(7)
    half = rng.normal(size=(20, 30)).astype(np.float16)
    mask = rng.random((20, 30)) < 0.2
    expected = gathered([half.astype(np.float32)], [mask]).compute()
    for dtype in (np.float16, ">f2", ">f4", ">f8", np.float64):
        assert gathered([half.astype(dtype)], [mask]).compute() == expected
    for scores in (np.asfortranarray(half.astype(np.float32)), np.repeat(half, 2, axis=1)[:, ::2]):
        assert gathered([scores], [mask]).compute() == expected
    turned = gathered([half.astype(np.float32).T], [np.ascontiguousarray(mask.T)]).compute()
    assert turned == expected
    coarse = torch.from_numpy(half.astype(np.float32)).to(torch.bfloat16)
    assert gathered([coarse], [mask]).compute() == gathered([coarse.float().numpy()], [mask]).compute()
    fine = rng.random((20, 30))
    swapped = gathered([fine.astype(">f8")], [mask], mode="exact").compute()
    assert swapped == gathered([fine], [mask]).compute()
