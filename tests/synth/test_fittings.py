"""Normal features change a picture visibly and keep its shape, kind and range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blemish.synth.fields import bounds, close
from blemish.synth.fittings import FITTINGS, fit


@pytest.mark.parametrize("fitting", FITTINGS)
def test_each_feature_is_visible(fitting: Callable[..., np.ndarray]) -> None:
    plain = np.full((3, 96, 96), 0.5, dtype=np.float32)
    drawn = [fitting(np.random.default_rng(seed), plain) for seed in range(6)]
    assert all(image.shape == plain.shape and image.dtype == np.float32 for image in drawn)
    assert np.mean([float(np.abs(image - plain).max()) for image in drawn]) > 0.1


def test_fit_stays_in_range() -> None:
    plain = np.full((3, 96, 96), 0.95, dtype=np.float32)
    for seed in range(10):
        image = fit(np.random.default_rng(seed), plain)
        assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0


def test_closing_bridges_gaps_up_to_twice_the_radius_only() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[10:20, 4:10] = mask[10:20, 13:20] = True
    assert close(mask, 2.0)[15, 11]
    assert not close(mask, 1.0)[15, 11]
    assert (close(mask, 2.0) >= mask).all()


def test_bounds() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    assert bounds(mask, 2) is None
    mask[5, 29] = True
    assert bounds(mask, 2) == (slice(3, 8), slice(27, 30))
