"""Generated pictures: the same seed gives the same bits, masks fit the visible change, families are respected."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from blemish.errors import UnknownName
from blemish.synth import DEFECTS, HELD_OUT, MATERIALS, SHAPES, TRAINING, Families, draw
from blemish.synth.draw import MIN_SIZE, draw_pair
from blemish.synth.families import DEFECT_FUNCTIONS, MATERIAL_FUNCTIONS

SIZE = 128


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("seed", range(6))
def test_the_same_seed_gives_the_same_picture(seed: int) -> None:
    first, second = draw(rng(seed), SIZE), draw(rng(seed), SIZE)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert (first.caption, first.states, first.defect_type) == (
        second.caption,
        second.states,
        second.defect_type,
    )


def test_other_seeds_give_other_pictures() -> None:
    images = [draw(rng(seed), SIZE).image.tobytes() for seed in range(12)]
    assert len(set(images)) == 12


@pytest.mark.parametrize("size", [128, 160, 225, 320])
def test_any_size(size: int) -> None:
    for seed in range(3):
        picture = draw(rng(seed, size), size)
        assert picture.image.shape == (size, size, 3)
        assert picture.image.dtype == np.uint8
        assert picture.mask.shape == (size, size)
        assert picture.mask.dtype == np.bool_


def test_too_small_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 16"):
        draw(rng(0), 16)


def test_mask_is_empty_exactly_on_normal_pictures() -> None:
    for seed in range(60):
        picture = draw(rng(seed), SIZE)
        assert picture.mask.any() == (picture.defect_type is not None)
        assert picture.material in MATERIALS
        assert picture.shape in SHAPES


@pytest.mark.parametrize("wanted", [True, False])
def test_the_caller_decides_about_the_defect(wanted: bool) -> None:
    for seed in range(20):
        assert (draw(rng(seed), SIZE, defect=wanted).defect_type is not None) is wanted


def test_about_sixty_percent_are_defective() -> None:
    defective = sum(draw(rng(7, seed), SIZE).defect_type is not None for seed in range(150))
    assert 70 <= defective <= 110


def test_masks_cover_the_visible_change() -> None:
    """Compared with the same shot without the defect: change lies in the mask, and the mask lies on change.

    The margins leave room for JPEG blocks, for soft ends and for unchanged pixels inside one solid defect.
    """
    recall, on_change, beside_change, beyond = [], [], [], []
    for seed in range(100):
        picture, clean = draw_pair(rng(11, seed), SIZE, defect=True)
        change = np.abs(picture.image.astype(int) - clean.astype(int)).max(axis=2)
        around = ndimage.binary_dilation(picture.mask, iterations=2)
        if (change >= 24).any():
            recall.append(float(around[change >= 24].mean()))
        on_change.append(float((change >= 6)[picture.mask].mean()))
        beside_change.append(float((ndimage.maximum_filter(change, 3) >= 6)[picture.mask].mean()))
        beyond.append(int(change[~around].max()))
    assert np.mean(recall) > 0.98
    assert min(recall) > 0.6
    assert np.mean(on_change) > 0.85
    assert np.mean(beside_change) > 0.98
    assert np.mean(beyond) < 20


def test_normal_shot_equals_its_twin() -> None:
    picture, clean = draw_pair(rng(3), SIZE, defect=False)
    assert np.array_equal(picture.image, clean)


def test_defect_sizes_span_tiny_to_large() -> None:
    areas = np.array([draw(rng(5, seed), SIZE, defect=True).mask.mean() for seed in range(120)])
    assert areas.min() < 0.002
    assert areas.max() > 0.08
    assert areas.max() < 0.8


@pytest.mark.parametrize("name", DEFECTS)
def test_every_defect_type_can_be_drawn_alone(name: str) -> None:
    families = Families(defects=(name,))
    assert draw(rng(1), SIZE, defect=True, families=families).defect_type == name
    assert draw(rng(1), MIN_SIZE, defect=True, families=families).mask.any()


@pytest.mark.parametrize("name", MATERIALS)
def test_every_material_fills_the_picture(name: str) -> None:
    texture = MATERIAL_FUNCTIONS[name](rng(2), 96)
    assert texture.image.shape == (3, 96, 96)
    assert texture.image.dtype == np.float32
    assert np.isfinite(texture.image).all()
    assert float(texture.image.std()) > 0


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_can_be_drawn(name: str) -> None:
    picture = draw(rng(4), SIZE, families=Families(shapes=(name,)))
    assert picture.shape == name
    assert float(picture.image.std()) > 1


@pytest.mark.parametrize("families", [TRAINING, HELD_OUT])
def test_families_are_respected(families: Families) -> None:
    for seed in range(40):
        picture = draw(rng(9, seed), SIZE, families=families)
        assert picture.material in families.materials
        assert picture.shape in families.shapes
        assert picture.defect_type is None or picture.defect_type in families.defects


def test_training_and_held_out_share_no_material_and_no_defect() -> None:
    assert not set(TRAINING.materials) & set(HELD_OUT.materials)
    assert not set(TRAINING.defects) & set(HELD_OUT.defects)
    assert set(TRAINING.defects) | set(HELD_OUT.defects) == set(DEFECTS) == set(DEFECT_FUNCTIONS)
    assert set(TRAINING.materials) | set(HELD_OUT.materials) == set(MATERIALS)


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UnknownName, match="did you mean 'scratch'"):
        Families(defects=("scrach",))
    with pytest.raises(UnknownName):
        Families().without(materials=("adamant",))
    with pytest.raises(ValueError, match="no shape to draw"):
        Families(shapes=())


def test_impossible_families_are_refused() -> None:
    families = Families(materials=("plastic",), shapes=("surface",), defects=("short",))
    with pytest.raises(ValueError, match="none of the defects short"):
        draw(rng(0), SIZE, defect=True, families=families)
    assert draw(rng(0), SIZE, defect=False, families=families).defect_type is None
