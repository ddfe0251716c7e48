"""Masks are exact: they cover what differs from the same shot without the defect, and little else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from blemish.synth import DEFECTS, HELD_OUT, TRAINING, Families
from blemish.synth.camera import soften
from blemish.synth.draw import FAINT, Shot, shoot

EASY = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def check(shot: Shot, size: int) -> None:
    """The properties every mask has, on the exposed pictures (without noise and JPEG)."""
    difference = np.abs(soften(shot.lit - shot.clean, shot.camera)).max(axis=0)
    assert shot.mask.any() == bool(shot.defects)
    assert shot.mask.sum() >= 5 or not shot.defects
    assert shot.mask.mean() < 0.8
    if not shot.defects:
        assert not difference.any()
        return
    around = ndimage.binary_dilation(shot.mask, iterations=2)
    strong = difference > 0.08
    assert not strong.any() or around[strong].mean() > 0.7
    assert float(np.where(around, 0, difference).max()) < 0.4
    patches, count = ndimage.label(shot.mask, np.ones((3, 3)))
    assert np.min(ndimage.maximum(difference, patches, range(1, count + 1))) >= 0.6 * FAINT
    nearby = ndimage.maximum_filter(difference, 5)
    assert (nearby > 0.01)[shot.mask].mean() > 0.7


@EASY
@given(seed=st.integers(0, 2**32), size=st.sampled_from([64, 96, 160, 224]))
def test_any_picture(seed: int, size: int) -> None:
    check(shoot(np.random.default_rng(seed), size, None, Families()), size)


@EASY
@given(seed=st.integers(0, 2**32), families=st.sampled_from([TRAINING, HELD_OUT]))
def test_chosen_families(seed: int, families: Families) -> None:
    shot = shoot(np.random.default_rng(seed), 96, True, families)
    assert shot.defects and set(shot.defects) <= set(families.defects)
    check(shot, 96)


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect(name: str) -> None:
    for seed in range(4):
        shot = shoot(np.random.default_rng([8, seed]), 128, True, Families(defects=(name,)))
        assert set(shot.defects) == {name}
        check(shot, 128)


def test_faint_and_thin_defects_occur() -> None:
    """Some common defects change less than 8 % of the range; the masks of some are three pixels wide at most."""
    families = Families(
        defects=("scratch", "stain", "discolouration", "dent"), materials=("plastic", "paint")
    )
    faint = thin = 0
    for seed in range(90):
        shot = shoot(np.random.default_rng([9, seed]), 160, True, families)
        difference = np.abs(soften(shot.lit - shot.clean, shot.camera)).max(axis=0)
        faint += float(difference[shot.mask].max()) < 0.08
        thin += float(ndimage.distance_transform_edt(shot.mask).max()) <= 2
    assert faint >= 3 and thin >= 3
