"""Regions, sampled thresholds, growing buffers and bins by themselves."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from blemish.metrics import buffer as buffers
from blemish.metrics.buffer import HUGE_PAGE, Buffer
from blemish.metrics.exact import DoublePixels, SinglePixels
from blemish.metrics.regions import find_regions, sampled_area, sampled_thresholds
from blemish.metrics.streaming import BINS, Scale

FINITE = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize(("connectivity", "areas", "count"), [(8, [3, 3, 3, 1], 2), (4, [2, 2, 1, 1], 3)])
def test_areas_in_map_order(connectivity: int, areas: list[int], count: int) -> None:
    mask = np.zeros((7, 9), dtype=bool)
    mask[2, 3:5] = mask[3, 5] = mask[6, 8] = True
    regions = find_regions(mask, connectivity)
    assert regions.areas.tolist() == areas and regions.count == count and regions.rows == slice(2, 7)


def test_no_region() -> None:
    regions = find_regions(np.zeros((3, 3), dtype=bool), 8)
    assert regions.areas.size == 0 and regions.count == 0 and regions.rows == slice(0, 0)


@pytest.mark.parametrize("connectivity", [4, 8])
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.sampled_from([0.03, 0.3, 0.5, 0.6, 0.8, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_regions_equal_labelling(connectivity: int, shape: tuple[int, int], share: float, seed: int) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    structure = ndimage.generate_binary_structure(2, connectivity // 4)
    labels, count = ndimage.label(mask, structure)
    regions = find_regions(mask, connectivity)
    assert regions.count == count
    assert np.array_equal(regions.areas, np.bincount(labels.ravel())[labels[mask]])
    assert not mask[: regions.rows.start].any() and not mask[regions.rows.stop :].any()


@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_region_that_winds_is_one(connectivity: int) -> None:
    mask = np.ones((101, 101), dtype=bool)  # a comb whose teeth meet at alternating ends
    for i, row in enumerate(range(1, 101, 2)):
        mask[row] = False
        mask[row, 0 if i % 2 else -1] = True
    regions = find_regions(mask, connectivity)
    assert regions.count == 1 and (regions.areas == mask.sum()).all()
    assert find_regions(mask[:, 1:-1], connectivity).count == 51


@given(st.lists(st.tuples(FINITE, st.integers(1, 2**32 - 1)), min_size=1))
def test_packed_pixels_sort_by_score_then_area(pixels: list[tuple[float, int]]) -> None:
    areas = np.array([a for _, a in pixels])
    for form, dtype in ((SinglePixels, np.float32), (DoublePixels, np.float64)):
        scores = np.array([s for s, _ in pixels], dtype=dtype)
        packed = np.sort(form.pack(form.keys(scores), areas))
        keys, found_areas = form.unpack(packed)
        found = list(zip(form.scores(keys).tolist(), found_areas.tolist(), strict=True))
        assert found == sorted(zip(scores.tolist(), areas.tolist(), strict=True))
        assert all(form.first_of_tie(one) <= one for one in packed)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_keys_keep_the_order_and_the_scores(scores: list[float]) -> None:
    single = np.array([*scores, 0.0, -0.0], dtype=np.float32)
    keys = SinglePixels.keys(single)
    assert np.array_equal(SinglePixels.scores(keys), single)
    assert np.array_equal(keys[:, None] < keys, single[:, None] < single)
    above = single[single > 0]
    assert np.array_equal(SinglePixels.keys(above, positive=True), SinglePixels.keys(above))


@pytest.mark.parametrize("mapped", [False, buffers.MAPPED])
def test_buffer_keeps_items_while_it_grows(mapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers, "MAPPED", mapped)
    buffer, items = Buffer(np.dtype(np.float32)), np.arange(3_000_000, dtype=np.float32)
    for part in np.array_split(items, 41):
        buffer.extend(part)
    assert np.array_equal(buffer.view(), items) and len(buffer) == items.size
    assert buffer._array.nbytes < 1.1 * items.nbytes + HUGE_PAGE
    assert (buffer._memory is not None) == mapped
    buffer.view()[:] = items[::-1]
    buffer.sort()
    again = pickle.loads(pickle.dumps(buffer))
    again.extend(items)
    assert np.array_equal(again.view(), np.concatenate([items, items]))


def test_a_view_that_is_held_does_not_stop_a_buffer() -> None:
    buffer, items = Buffer(np.dtype(np.int32)), np.arange(1_000_000, dtype=np.int32)
    buffer.extend(items)
    held = buffer.view()
    for _ in range(3):
        buffer.extend(items)
    assert np.array_equal(held, items) and np.array_equal(buffer.view(), np.tile(items, 4))


@given(FINITE, FINITE, st.sampled_from([np.float32, np.float64]))
def test_sampled_thresholds(one: float, two: float, dtype: type) -> None:
    low, high = sorted((one, two))
    thresholds = sampled_thresholds(low, high, np.dtype(dtype))
    assert thresholds.dtype == dtype and thresholds[-1] == low and (np.diff(thresholds) <= 0).all()
    assert len(thresholds) == 1 if low == high else len(thresholds) <= 202
    if high - low > 0.01 * max(abs(low), abs(high), 1e-30):
        even = low + np.arange(200)[::-1] / 200 * (high - low)
        assert np.allclose(thresholds[-200:], even, rtol=0, atol=1e-3 * (high - low))


def test_sampled_area_has_no_corner_and_no_cut() -> None:
    fpr, pro = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.6, 1.0])
    assert sampled_area(fpr, pro, 0.3).value == pytest.approx(0.5)
    assert not sampled_area(fpr, pro, 0.15).defined


@given(st.lists(FINITE, min_size=1), st.sampled_from([(0.0, 1.0), (-1.0, 4.0), (0.0, 1e-3)]))
def test_bins_keep_the_order_and_hold_their_scores(scores: list[float], limits: tuple[float, float]) -> None:
    scale, ordered = Scale(*limits), np.sort(np.array(scores))
    index = scale.index(ordered)
    assert (np.diff(index) >= 0).all() and index.min() >= 0 and index.max() < BINS
    low, high = scale.edges(index)
    slack = 1e-12 * (np.abs(ordered) + limits[1] - limits[0])
    assert (low <= ordered + slack).all() and (ordered <= high + slack).all()


@pytest.mark.parametrize("towards", [0.0, 1.0])
def test_bins_are_fine_at_both_ends(towards: float) -> None:
    distance = 10.0 ** -np.arange(1, 13)
    low, high = Scale(0.0, 1.0).edges(Scale(0.0, 1.0).index(np.abs(towards - distance)))
    assert ((high - low) <= distance / 4000).all()


def test_metrics_need_no_torch() -> None:
    code = "import sys, blemish.metrics; sys.exit('torch' in sys.modules or 'sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
