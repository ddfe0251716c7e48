"""Thresholds: best F1 and false-alarm rates, checked by running the decisions of `Result`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blemish.calibrate import ThresholdFinder, Thresholds, _Histogram, binomial_rate
from blemish.errors import BadImage, BadOption
from blemish.metrics import ImageMetrics, PixelMetrics
from blemish.types import Result

Picture = tuple[float, int, np.ndarray, np.ndarray | None]


def gathered(pictures: list[Picture], map_range: tuple[float, float] = (0.0, 1.0)) -> ThresholdFinder:
    finder = ThresholdFinder(map_range)
    for picture in pictures:
        finder.update(*picture)
    return finder


def scores_only(normal: list[float], anomalous: list[float]) -> ThresholdFinder:
    """Maps are the scores: one pixel each."""
    pairs = [(s, 0) for s in normal] + [(s, 1) for s in anomalous]
    one = np.ones((1, 1), dtype=bool)
    return gathered(
        [(s, label, np.full((1, 1), s, np.float32), one if label else None) for s, label in pairs]
    )


def drawn(seed: int, count: int = 40, levels: int | None = None, power: float = 1.0) -> list[Picture]:
    """Normal and anomalous pictures in turns, some of the latter without a mask. levels: for ties."""
    rng = np.random.default_rng(seed)
    pictures: list[Picture] = []
    for i in range(count):
        label = i % 2
        size = tuple(rng.integers(3, 9, size=2))
        mask = (rng.random(size) < 0.3) & bool(label)
        values = rng.random(size) ** power * 0.7 + 0.3 * mask * rng.random(size)
        score = float(rng.random() + 0.5 * label)
        if levels:
            values, score = np.round(values * levels) / levels, round(score * levels) / levels
        anomaly_map = values.astype(np.float32)
        pictures.append((np.float32(score).item(), label, anomaly_map, mask if i % 8 != 5 else None))
    return pictures


def decided(pictures: list[Picture], thresholds: Thresholds) -> dict[str, int]:
    """What `Result` says of each picture with these thresholds after a way through JSON, counted."""
    image, pixel = json.loads(json.dumps([thresholds.image, thresholds.pixel]))
    keys = ("false", "true", "regions", "hits", "pixel_false", "pixel_true", "negatives", "positives")
    counts = dict.fromkeys(keys, 0)
    for score, label, anomaly_map, mask in pictures:
        result = Result(score, anomaly_map, image, pixel)
        counts["true" if label else "false"] += bool(result.is_anomalous)
        marked = result.mask
        assert marked is not None
        inside = np.zeros_like(marked) if label == 0 else mask
        if label == 0:
            counts["regions"] += bool(result.regions)
        if inside is not None:
            counts["hits"] += bool((marked & inside).any())
            counts["pixel_true"] += int((marked & inside).sum())
            counts["pixel_false"] += int((marked & ~inside).sum())
            counts["positives"] += int(inside.sum())
            counts["negatives"] += int((~inside).sum())
    return counts


def assert_rates_are_decisions(pictures: list[Picture], found: Thresholds) -> None:
    counts = decided(pictures, found)
    for rate, key in (
        (found.false_alarms, "false"),
        (found.detections, "true"),
        (found.region_alarms, "regions"),
        (found.region_detections, "hits"),
    ):
        assert rate is not None and rate.count == counts[key], key
    assert found.pixel_false_alarms == counts["pixel_false"] / counts["negatives"]
    assert found.pixel_detections == counts["pixel_true"] / counts["positives"]
    true, false = counts["pixel_true"], counts["pixel_false"]
    assert found.pixel_f1 == pytest.approx(2 * true / (true + false + counts["positives"]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("levels", "power"), [(None, 1.0), (12, 1.0), (None, 6.0)])
def test_best_f1_is_that_of_the_metrics(seed: int, levels: int | None, power: float) -> None:
    pictures = drawn(seed, levels=levels, power=power)
    found = gathered(pictures).best_f1()
    images, pixels = ImageMetrics(), PixelMetrics()
    for score, label, anomaly_map, mask in pictures:
        images.update(score, label)
        if label == 0 or mask is not None:
            pixels.update(anomaly_map, np.zeros(anomaly_map.shape, bool) if mask is None else mask)
    assert found.image_f1 == pytest.approx(images.compute()["image_f1max"].value)
    assert found.pixel_f1 == pytest.approx(pixels.compute()["pixel_f1max"].value, abs=1e-3)  # bins
    wanted = images.compute()["image_f1max_threshold"].value
    below = max((score for score, *_ in pictures if score < wanted), default=wanted)
    assert found.image is not None and below <= found.image <= wanted
    assert (found.normal, found.anomalous, found.masks) == (20, 20, 15)
    assert_rates_are_decisions(pictures, found)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.31])
@pytest.mark.parametrize("pixel_rate", [None, 0.05])
def test_rates_at_a_false_alarm_rate_are_decisions(seed: int, rate: float, pixel_rate: float | None) -> None:
    pictures = drawn(seed, levels=None if seed % 2 else 20)
    found = gathered(pictures).at_false_alarm_rate(rate, pixel_rate)
    assert_rates_are_decisions(pictures, found)
    assert found.false_alarms is not None and found.region_alarms is not None
    assert found.false_alarms.count <= rate * 20
    if pixel_rate is None:
        assert found.region_alarms.count <= rate * 20
    else:
        normal = np.concatenate([m.ravel() for _, label, m, _ in pictures if label == 0])
        assert found.pixel is not None
        assert (normal > np.float32(found.pixel)).mean() <= pixel_rate
        lower = np.float32(found.pixel) * np.float32(1 - 1e-4)
        assert (normal > lower - np.float32(1 / 20)).mean() > pixel_rate  # no higher than it has to be


def test_saturated_maps_are_told_apart() -> None:
    """Near the upper end of the range, bins are no wider than float32 values are apart."""
    top = [np.float32(1)]
    for _ in range(40):
        top.append(np.nextafter(top[-1], np.float32(0)))
    anomalous, normal = np.array(top[1:20]), np.array(top[20:])
    mask = np.ones((1, 19), dtype=bool)
    found = gathered([(0.9, 1, anomalous[None], mask), (0.1, 0, normal[None], None)])
    best = found.best_f1()
    assert best.pixel_f1 == 1 and best.pixel is not None and normal.max() <= best.pixel < anomalous.min()
    rate = found.at_false_alarm_rate(0.5)
    assert rate.pixel is not None and normal.max() <= rate.pixel < anomalous.max()
    assert not rate.notes


def test_gaps_are_halved() -> None:
    found = scores_only([0.1, 0.2], [0.4, 0.5]).best_f1()
    assert found.image == pytest.approx(0.3) and found.pixel == pytest.approx(0.3, abs=1e-5)
    assert found.image_f1 == found.pixel_f1 == 1
    assert found.false_alarms is not None and (found.false_alarms.low, found.false_alarms.count) == (0, 0)


def test_neighbouring_scores() -> None:
    for low in (np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))):
        high = np.nextafter(low, np.float32(1))
        best = scores_only([float(low)] * 3, [float(high)] * 3).best_f1()
        rate = scores_only([float(low)] * 3 + [float(high)], []).at_false_alarm_rate(0.45)
        for found in (best, rate):
            assert found.image == float(high)
            for kind in (float, np.float32):  # scores of either type are judged alike
                assert kind(high) >= found.image and not kind(low) >= found.image
    exact = float(np.nextafter(0.5, 1))  # nothing between two float64
    finder = scores_only([0.5], [])
    finder.update(exact, 1, np.zeros((1, 1), np.float32), None)
    assert finder.best_f1().image == exact


@pytest.mark.parametrize("low", [0.0, -0.0, -1.0, -1e-30])
def test_scores_and_maps_around_zero(low: float) -> None:
    """The two signs of zero are one value."""
    pictures = [
        (low, 0, np.full((1, 2), low, np.float32), None),
        (0.0, 0, np.array([[0.0, -0.0]], np.float32), None),
        (0.5, 1, np.array([[0.0, 0.5]], np.float32), np.array([[False, True]])),
    ]
    finder = gathered(pictures, (-1.0, 1.0))
    for found in (finder.best_f1(), finder.at_false_alarm_rate(0.5), finder.at_false_alarm_rate(0.5, 0.3)):
        assert_rates_are_decisions(pictures, found)
    assert finder.best_f1().pixel_f1 == 1


def test_the_worst_case_calls_everything_anomalous() -> None:
    found = scores_only([0.8, 0.9], [0.1, 0.2]).best_f1()
    assert found.false_alarms is not None and found.false_alarms.value == 1
    assert found.image is not None and found.image < 0.1 and "every image" in found.notes[0]


def test_missing_kinds_leave_no_threshold() -> None:
    empty = np.zeros((2, 2), dtype=np.float32)
    found = gathered([(0.1, 0, empty, None)]).best_f1()
    assert found.image is None and found.pixel is None and found.false_alarms is None
    assert "no anomalous images" in found.notes[0] and "masks" in found.notes[1]
    found = gathered([(0.1, 0, empty, None), (0.5, 1, empty, None)]).best_f1()
    assert found.image is not None and found.pixel is None and found.detections is not None
    assert "no normal" in gathered([(0.5, 1, empty, None)]).best_f1().notes[0]
    with pytest.raises(BadOption, match="needs normal images"):
        gathered([(0.5, 1, empty, None)]).at_false_alarm_rate(0.1)


def test_an_empty_mask_of_an_anomalous_picture_is_all_normal_pixels() -> None:
    pictures = drawn(3)
    empty: Picture = (0.7, 1, np.full((4, 4), 0.95, np.float32), np.zeros((4, 4), dtype=bool))
    found = gathered([*pictures, empty]).best_f1()
    counts = decided([*pictures, empty], found)
    assert found.pixel_false_alarms == counts["pixel_false"] / counts["negatives"]
    assert found.masks == 15


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, float("nan")])
def test_impossible_rates(rate: float) -> None:
    with pytest.raises(BadOption, match="false-alarm rate is"):
        scores_only([0.1], []).at_false_alarm_rate(rate)
    with pytest.raises(BadOption, match="pixel false-alarm rate is"):
        scores_only([0.1], []).at_false_alarm_rate(0.1, rate)


@pytest.mark.parametrize(
    ("count", "rate", "rank"), [(99, 0.01, 99), (100, 0.05, 96), (19, 0.1, 18), (9, 0.5, 5)]
)
def test_split_conformal_rank(count: int, rate: float, rank: int) -> None:
    """The threshold is just above the ceil((n + 1)(1 - rate))-th smallest normal score."""
    scores = np.random.default_rng(1).random(count).astype(np.float32).astype(float)
    found = scores_only(list(scores), []).at_false_alarm_rate(rate)
    ordered = np.sort(scores)
    assert rank == int(np.ceil(round((count + 1) * (1 - rate), 9)))
    following = ordered[rank] if rank < count else np.inf
    assert found.image is not None and ordered[rank - 1] < found.image < min(
        following, ordered[rank - 1] + 1e-5
    )
    assert found.false_alarms is not None and not found.notes
    assert found.false_alarms.count == count - rank
    expected = stats.beta(count + 1 - rank, rank)
    assert found.false_alarms.value == pytest.approx(expected.mean())
    assert (found.false_alarms.low, found.false_alarms.high) == pytest.approx(expected.interval(0.95))


def test_too_few_normal_images_say_what_they_promise() -> None:
    found = scores_only([0.1 * i for i in range(1, 9)], [0.75]).at_false_alarm_rate(0.01)
    assert found.image is not None and 0.8 < found.image < 0.8001
    assert found.pixel is not None and 0.8 <= np.float32(found.pixel) < 0.8001
    assert found.false_alarms is not None and found.false_alarms.value == pytest.approx(1 / 9)
    assert found.false_alarms.count == 0 and len(found.notes) == 1
    assert "8 normal images" in found.notes[0] and "takes 99" in found.notes[0] and "0.11" in found.notes[0]
    assert not scores_only([0.01 * i for i in range(99)], []).at_false_alarm_rate(0.01).notes
    assert scores_only([0.01 * i for i in range(98)], []).at_false_alarm_rate(0.01).notes


def test_new_images_keep_the_promise() -> None:
    """Over many calibrations: the mean rate is the one expected, and the intervals hold it 95 times in 100."""
    rng = np.random.default_rng(0)
    rates, inside = [], []
    for _ in range(150):
        finder = ThresholdFinder()
        for score in rng.random(60):
            finder.update(score, 0, np.zeros((1, 1), np.float32), None)
        found = finder.at_false_alarm_rate(0.1)
        assert found.image is not None and found.false_alarms is not None
        rates.append(1 - found.image)  # of a uniform score
        inside.append(found.false_alarms.low <= rates[-1] <= found.false_alarms.high)
    expected = 6 / 61
    assert abs(np.mean(rates) - expected) < 0.01 and 0.9 < np.mean(inside) < 0.99


def test_ties_do_not_raise_more_alarms() -> None:
    finder = scores_only([0.2] * 50 + [0.7] * 50, [0.7, 0.9])
    found = finder.at_false_alarm_rate(0.3)
    assert found.false_alarms is not None and found.false_alarms.count == 0  # 0.7 would be half of them
    assert found.image is not None and 0.7 < found.image < 0.71


@pytest.mark.parametrize(("count", "total"), [(0, 7), (7, 7), (3, 40), (1, 1), (0, 1)])
def test_clopper_pearson(count: int, total: int) -> None:
    rate = binomial_rate(count, total)
    interval = stats.binomtest(count, total).proportion_ci(0.95, method="exact")
    assert rate is not None and (rate.low, rate.high) == pytest.approx((interval.low, interval.high))
    assert (rate.value, rate.count, rate.total) == (count / total, count, total)
    assert binomial_rate(0, 0) is None


def test_maps_that_reach_the_top_are_remarked_upon() -> None:
    found = gathered([(0.1, 0, np.ones((2, 2), np.float32), None)] * 20).at_false_alarm_rate(0.1)
    assert "no pixel can be above" in found.notes[0]


@pytest.mark.parametrize(
    ("score", "label", "anomaly_map", "mask"),
    [
        (float("nan"), 0, np.zeros((2, 2), np.float32), None),
        (0.1, 2, np.zeros((2, 2), np.float32), None),
        (0.1, 0, np.full((2, 2), np.inf, np.float32), None),
        (0.1, 0, np.zeros((0, 2), np.float32), None),
        (0.1, 1, np.zeros((2, 2), np.float32), np.zeros((2, 3), bool)),
    ],
)
def test_refused_pictures_add_nothing(
    score: float, label: int, anomaly_map: np.ndarray, mask: np.ndarray | None
) -> None:
    finder = gathered(drawn(0))
    before = finder.best_f1()
    with pytest.raises(BadImage):
        finder.update(score, label, anomaly_map, mask)
    assert finder.best_f1() == before and finder.counts == (20, 20, 15)


floats = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**99), max_value=2.0**99)
FLOATS = st.lists(st.one_of(floats, st.floats(0, 1, width=32)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(FLOATS, st.sampled_from([1.0, 4.0, 0.0, -1.0]))
def test_bins_keep_the_order(values: list[float], high: float) -> None:
    ordered = np.sort(np.array(values, dtype=np.float32))
    histogram = _Histogram(1, high)
    numbers = histogram._number(ordered)
    assert (np.diff(numbers) >= 0).all() and numbers.min() >= 0
    assert (np.diff(numbers)[np.diff(ordered) == 0] == 0).all()  # also of the two zeros
    histogram.add(0, ordered)
    used, counts = histogram.falling()
    assert counts.sum() == len(ordered) == histogram.totals[0] and (np.diff(used) < 0).all()
    for value, number in zip(ordered, numbers, strict=True):
        low, top = histogram.bounds(int(number))
        if 0 <= value <= 2 * high or high <= 0:
            assert low <= value <= top
        if abs(float(value)) > 1e-30:
            assert histogram.above(float(top)) == (ordered > top).sum() or not 0 <= value <= 2 * high


def test_memory_does_not_grow_with_pictures() -> None:
    finder = ThresholdFinder()
    rng = np.random.default_rng(0)
    for _ in range(30):
        finder.update(0.1, 0, rng.random((60, 60), dtype=np.float32), None)
    size = finder._pixels._counts.nbytes
    for _ in range(30):
        finder.update(0.1, 0, rng.random((60, 60), dtype=np.float32), None)
    assert finder._pixels._counts.nbytes <= 1.3 * size < 40e6
