"""What must hold of the metrics whatever the scores: invariances, symmetries, parts and the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.errors import BlemishError
from blemish.metrics import ClassMetrics, ImageMetrics, MetricOptions, PixelMetrics, Value, mean_over_classes

Pairs = list[tuple[np.ndarray, np.ndarray]]
few = settings(max_examples=15, deadline=None)
BY_ORDER = ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_iou", "pixel_aupro")
modes = st.sampled_from(["exact", "streaming"])


@st.composite
def images(draw: st.DrawFn) -> Pairs:
    """Up to four maps with masks, with ties; the first has both kinds of pixels."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([3, 9, 1000]))
    found = []
    for number in range(draw(st.integers(1, 4))):
        height, width = draw(st.integers(4, 10)), draw(st.integers(4, 10))
        mask = rng.random((height, width)) < draw(st.sampled_from([0.0, 0.1, 0.5]))
        if number == 0:
            mask[:2, :2] = [[True, False], [False, True]]
        scores = np.round((rng.random(mask.shape) + 0.2 * mask) * levels) / levels
        found.append((scores.astype(np.float32), mask))
    return found


def values(pairs: Pairs, **options: object) -> dict[str, Value]:
    metrics = PixelMetrics(MetricOptions(**options))  # type: ignore[arg-type]
    for one in pairs:
        metrics.update(*one)
    return metrics.compute()


def close(one: dict[str, Value], other: dict[str, Value], names: tuple[str, ...] = BY_ORDER) -> None:
    for name in names:
        assert one[name].value == pytest.approx(other[name].value, rel=0, abs=1e-9, nan_ok=True), name


@few
@given(images(), st.sampled_from([0.001, 1.0, 300.0]), st.sampled_from([-5.0, 0.0, 2.0]))
def test_a_rising_change_of_scores_changes_no_ranking(pairs: Pairs, scale: float, shift: float) -> None:
    # in float64, where it merges no two levels
    changed = [(np.arctan(scores.astype(np.float64)) * scale + shift, mask) for scores, mask in pairs]
    close(values(pairs), values(changed))


@few
@given(images(), st.integers(0, 3), st.booleans())
def test_turned_and_mirrored_pictures_are_worth_the_same(pairs: Pairs, turns: int, mirrored: bool) -> None:
    def move(array: np.ndarray) -> np.ndarray:
        return np.rot90(array[:, ::-1] if mirrored else array, turns)

    close(values(pairs), values([(move(scores), move(mask)) for scores, mask in pairs]))


@few
@given(images(), st.integers(2, 3))
def test_pictures_counted_twice_are_worth_the_same(pairs: Pairs, times: int) -> None:
    close(values(pairs), values(pairs * times))


@few
@given(images())
def test_reversed_scores_reverse_auroc(pairs: Pairs) -> None:
    reverse = values([(-scores, mask) for scores, mask in pairs])
    assert values(pairs)["pixel_auroc"].value + reverse["pixel_auroc"].value == pytest.approx(1, abs=1e-9)


@few
@given(images(), modes)
def test_values_lie_in_their_range(pairs: Pairs, mode: str) -> None:
    found = values(pairs, mode=mode)
    share = sum(int(mask.sum()) for _, mask in pairs) / sum(mask.size for _, mask in pairs)
    for name in BY_ORDER:
        assert -1e-12 <= found[name].value <= 1 + 1e-12, name
    # calling every pixel anomalous is one of the thresholds
    assert found["pixel_f1max"].value + found["pixel_f1max"].bound >= 2 * share / (1 + share) - 1e-9
    f1 = found["pixel_f1max"].value
    assert found["pixel_iou"].value == pytest.approx(
        f1 / (2 - f1), abs=1e-9 + found["pixel_f1max"].bound + found["pixel_iou"].bound
    )


@few
@given(images(), modes)
def test_a_map_that_is_the_mask_is_perfect(pairs: Pairs, mode: str) -> None:
    found = values([(mask.astype(np.float32), mask) for _, mask in pairs], mode=mode)
    for name in BY_ORDER:
        assert abs(found[name].value - 1) <= found[name].bound + 1e-9, name


@few
@given(images(), modes, st.integers(0, 4), st.integers(0, 4))
def test_parts_joined_in_any_tree_are_the_whole(pairs: Pairs, mode: str, first: int, second: int) -> None:
    cuts = sorted((min(first, len(pairs)), min(second, len(pairs))))
    parts = []
    for begin, end in zip([0, *cuts], [*cuts, len(pairs)], strict=True):  # some of them empty
        part = PixelMetrics(MetricOptions(mode=mode))
        for one in pairs[begin:end]:
            part.update(*one)
        parts.append(part)
    parts[1].merge(parts[2])  # right to left; the tests beside this one go left to right
    parts[0].merge(parts[1])
    whole, joined = values(pairs, mode=mode), parts[0].compute()
    assert whole.keys() == joined.keys()
    close(whole, joined)


SCORES = st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.booleans()), min_size=2, max_size=30)


@few
@given(SCORES, st.integers(0, 30), st.randoms())
def test_image_metrics_know_no_order_and_no_parts(
    scored: list[tuple[float, bool]], cut: int, random: object
) -> None:
    whole, one, other = ImageMetrics(), ImageMetrics(), ImageMetrics()
    for number, (score, label) in enumerate(scored):
        whole.update(score, label, str(number))
        (one if number < cut else other).update(score, label, str(number))
    other.merge(one)
    for name, value in whole.compute().items():
        assert other.compute()[name].value == pytest.approx(value.value, rel=1e-12, abs=1e-12, nan_ok=True), (
            name
        )
        assert other.compute()[name].reason == value.reason


@few
@given(images(), st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans())
def test_a_refused_picture_changes_nothing(pairs: Pairs, bad: float, shape: bool) -> None:
    metrics = ClassMetrics()
    for scores, mask in pairs:
        metrics.update(1, float(scores.max()), scores, mask)
    before = metrics.compute()
    scores, mask = pairs[0][0].copy(), pairs[0][1]
    scores[-1, -1] = bad
    with pytest.raises(BlemishError) as caught:
        metrics.update(0, 0.5, scores[:-1] if shape else scores, mask, "broken.png")
    assert "broken.png" in str(caught.value) and "\n" not in str(caught.value)
    after = metrics.compute()
    assert {k: (v.value, v.reason) for k, v in after.items() if v.defined} == {
        k: (v.value, v.reason) for k, v in before.items() if v.defined
    }
    assert metrics.images.counts == (len(pairs), 0)


@few
@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=6))
def test_the_mean_is_of_the_defined(found: list[float | None]) -> None:
    classes = {
        str(number): {"x": Value(float("nan"), "no") if value is None else Value(value)}
        for number, value in enumerate(found)
    }
    mean, known = mean_over_classes(classes)["x"], [value for value in found if value is not None]
    assert (mean.used, mean.classes) == (len(known), len(found))
    assert mean.value == pytest.approx(np.mean(known) if known else np.nan, nan_ok=True)
