"""Results and feature requests check themselves."""

from __future__ import annotations

import numpy as np
import pytest

from blemish.types import FeatureSpec, Result


def result(values: np.ndarray, **fields: float) -> Result:
    return Result(score=0.7, map=values.astype(np.float32), **fields)


def test_regions_are_connected_diagonally_and_sorted_by_peak() -> None:
    values = np.zeros((6, 8))
    values[0, 0], values[1, 1] = 0.6, 0.7
    values[4:6, 5:8] = 0.9
    found = result(values, pixel_threshold=0.5).regions
    assert [(r.box, r.area) for r in found] == [((5, 4, 8, 6), 6), ((0, 0, 2, 2), 2)]
    assert [r.peak for r in found] == pytest.approx([0.9, 0.7])


def test_region_peaks_ignore_neighbours_inside_the_box() -> None:
    values = np.zeros((5, 5))
    values[0, :], values[:, 0] = 0.6, 0.6
    values[3, 3] = 0.9
    found = result(values, pixel_threshold=0.5).regions
    assert [(r.box, r.area) for r in found] == [((3, 3, 4, 4), 1), ((0, 0, 5, 5), 9)]
    assert [r.peak for r in found] == pytest.approx([0.9, 0.6])


def test_decisions_need_thresholds() -> None:
    plain = result(np.ones((2, 3)))
    assert plain.is_anomalous is None and plain.mask is None and plain.regions == []
    assert plain.size == (3, 2)
    assert result(np.ones((2, 3)), threshold=0.7).is_anomalous is True
    assert result(np.ones((2, 3)), threshold=0.71).is_anomalous is False
    assert result(np.ones((2, 3)), pixel_threshold=1.0).regions == []


@pytest.mark.parametrize("values", [np.full((2, 2), np.nan), np.full((2, 2), np.inf)])
def test_maps_must_be_finite(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        result(values)


def test_maps_must_be_float32_planes() -> None:
    with pytest.raises(ValueError, match="float32"):
        Result(score=0.0, map=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="float32"):
        Result(score=0.0, map=np.zeros((1, 2, 2), dtype=np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": ()}, "layers is empty"),
        ({"streams": ("xx",)}, "choose from qk, vv, qq, kk"),
        ({"position_resize": "cubic"}, "position_resize is 'cubic'"),
        ({"activation": "relu"}, "activation is 'relu'"),
    ],
)
def test_feature_requests_are_checked(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**fields)  # type: ignore[arg-type]
