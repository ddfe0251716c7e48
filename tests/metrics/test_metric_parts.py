"""Regions, sampled thresholds, growing buffers and bins by themselves."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blemish.metrics.exact import Buffer, DoublePixels, SinglePixels
from blemish.metrics.regions import region_areas, sampled_area, sampled_thresholds
from blemish.metrics.streaming import BINS, Scale

FINITE = st.floats(-1e6, 1e6, width=32)


@pytest.mark.parametrize(("connectivity", "areas", "count"), [(8, [3, 3, 3, 1], 2), (4, [2, 2, 1, 1], 3)])
def test_areas_in_map_order(connectivity: int, areas: list[int], count: int) -> None:
    mask = np.zeros((7, 9), dtype=bool)
    mask[2, 3:5] = mask[3, 5] = mask[6, 8] = True
    found, regions = region_areas(mask, connectivity)
    assert found.tolist() == areas and regions == count


def test_no_region() -> None:
    areas, count = region_areas(np.zeros((3, 3), dtype=bool), 8)
    assert areas.size == 0 and count == 0


@given(st.lists(st.tuples(FINITE, st.integers(1, 2**32 - 1)), min_size=1))
def test_packed_pixels_sort_by_score_then_area(pixels: list[tuple[float, int]]) -> None:
    areas = np.array([a for _, a in pixels])
    for form, dtype in ((SinglePixels, np.float32), (DoublePixels, np.float64)):
        scores = np.array([s for s, _ in pixels], dtype=dtype)
        keys = np.sort(form.pack(scores, areas))
        found = list(zip(*(part.tolist() for part in form.unpack(keys)), strict=True))
        assert found == sorted(zip(scores.tolist(), areas.tolist(), strict=True))
        assert all(form.first_of_tie(key) <= key for key in keys)


def test_buffer_keeps_items_while_it_grows() -> None:
    buffer, items = Buffer(np.dtype(np.float32)), np.arange(300_000, dtype=np.float32)
    for part in np.array_split(items, 7):
        buffer.extend(part)
    assert np.array_equal(buffer.view(), items) and len(buffer) == items.size
    assert buffer._array.nbytes < 1.3 * items.nbytes


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
