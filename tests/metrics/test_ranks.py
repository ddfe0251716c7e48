"""Keys below a threshold: sorted and counted part by part, against comparing each with each."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish.metrics import MetricOptions, PixelMetrics, ranks
from blemish.metrics.ranks import Counted, Sorted, rank, sorts_slowly

LEAST, MOST = -(2**31), 2**31 - 1
ranges = st.sampled_from(
    [(0, 0), (5, 9), (-1, 1), (0, 255), (-70000, 70000), (LEAST, MOST), (MOST - 3, MOST)]
)
patched = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few hundred keys make several chunks, parts and pieces."""
    monkeypatch.setattr(ranks, "CHUNK", 64)
    monkeypatch.setattr(ranks, "PART_BITS", 16)
    monkeypatch.setattr(ranks, "AT_ONCE", 32)
    monkeypatch.setattr(ranks, "FEW", 2)


def some_keys(limits: tuple[int, int], count: int, seed: int) -> np.ndarray:
    low, high = limits
    return np.random.default_rng(seed).integers(low, high, count, dtype=np.int32, endpoint=True)


@pytest.mark.usefixtures("small_steps")
@patched
@given(ranges, ranges, st.integers(1, 300), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_both_count_as_comparing_each_does(
    limits: tuple[int, int], asked: tuple[int, int], count: int, thresholds: int, seed: int
) -> None:
    keys = some_keys(limits, count, seed)
    levels = np.concatenate([some_keys(asked, thresholds, seed + 1), keys[: thresholds // 2]])
    levels = np.sort(levels)[::-1].copy()
    for kind in (Sorted, Counted):
        mine = keys.copy()
        counts = kind(mine)
        assert np.array_equal(np.sort(mine), np.sort(keys))
        for some in (levels, levels[len(levels) // 2 :]):
            at_or_below, below = counts.count(some)
            assert np.array_equal(at_or_below, (keys <= some[:, None]).sum(axis=1))
            assert np.array_equal(below, (keys < some[:, None]).sum(axis=1))


@pytest.mark.parametrize("limits", [(0, 3), (0, 1 << 19), (900_000_000, 1_065_353_216), (LEAST, MOST)])
def test_millions_count_alike(limits: tuple[int, int]) -> None:
    keys = some_keys(limits, 700_000, 0)
    levels = np.unique(some_keys(limits, 3000, 1))[::-1].copy()
    one, other = Sorted(keys.copy()).count(levels), Counted(keys.copy()).count(levels)
    assert np.array_equal(one, other)


def test_a_short_tie_and_a_long_one() -> None:
    keys = np.repeat(np.array([1, 3, 7], dtype=np.int32), [2, 100, 5])
    at_or_below, below = Sorted(keys).count(np.array([7, 3, 1], dtype=np.int32))
    assert at_or_below.tolist() == [107, 102, 2] and below.tolist() == [102, 2, 0]


def test_many_int32_are_counted_where_sorting_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    many = np.zeros(ranks.MANY, dtype=np.int32)
    for slow, kind in ((True, Counted), (False, Sorted)):
        monkeypatch.setattr(ranks, "sorts_slowly", lambda slow=slow: slow)
        assert type(rank(many)) is kind
        assert type(rank(many[1:])) is Sorted and type(rank(many.astype(np.float64))) is Sorted


@pytest.mark.parametrize(("slow", "expected"), [(4.0, False), (6.0, True)])
def test_slow_is_told_by_the_clock(slow: float, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # three runs over 32-bit keys, then three over halves of them, which take one second each
    ends = iter([time for seconds in [slow] * 3 + [1.0] * 3 for time in (0.0, seconds)])
    monkeypatch.setattr(ranks.time, "perf_counter", lambda: next(ends))
    assert sorts_slowly.__wrapped__() is expected


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("protocol", ["exact", "anomalyclip"])
def test_metrics_are_the_same_either_way(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    images = []
    for levels in (4, 50, 10**9):
        mask = rng.random((20, 30)) < 0.2
        scores = np.round((rng.normal(size=mask.shape) + mask) * levels) / levels
        images.append((scores.astype(np.float32), mask))

    def values(slow: bool) -> list[dict[str, float]]:
        monkeypatch.setattr(ranks, "MANY", 1)
        monkeypatch.setattr(ranks, "sorts_slowly", lambda: slow)
        metrics, other = (PixelMetrics(MetricOptions(protocol=protocol)) for _ in range(2))
        found = []
        for one in images:  # computed between updates, pickled and merged
            metrics.update(*one)
            found.append(metrics.compute())
        assert type(metrics._store._ranks) is (Counted if slow else Sorted)  # type: ignore[union-attr]
        other.update(*images[1])
        other.compute()
        metrics = pickle.loads(pickle.dumps(metrics))
        metrics.merge(other)
        found.append(metrics.compute())
        return [{name: value.value for name, value in one.items()} for one in found]

    assert values(slow=True) == values(slow=False)


def test_a_pickled_state_holds_its_pixels_once() -> None:
    metrics = PixelMetrics()
    mask = np.zeros((300, 300), dtype=bool)
    mask[:3, :3] = True
    metrics.update(np.random.default_rng(0).random(mask.shape, dtype=np.float32), mask)
    before = len(pickle.dumps(metrics))
    metrics.compute()
    assert len(pickle.dumps(metrics)) <= before
