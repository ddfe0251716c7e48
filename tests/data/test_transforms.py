"""Resizing, masks, tiles: against PIL and torch, and properties that hold for every size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.data.transforms import (
    SQUARES,
    Box,
    TileBlender,
    cut_boxes,
    map_to_size,
    preprocess,
    resize_mask,
    squares,
    tiles,
)
from blemish.errors import BadOption

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("given_size", "size"), [((30, 50), 28), ((30, 50), (42, 56)), ((1, 1), 14), ((28, 28), 28)]
)
def test_preprocess_is_pil_bicubic_then_normalised(
    given_size: tuple[int, int], size: int | tuple[int, int]
) -> None:
    image = (noise(*given_size, 3) * 255).astype(np.uint8)
    height, width = (size, size) if isinstance(size, int) else size
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    expected = (resized / 255.0 - MEAN) / STD
    result = preprocess(image, size, MEAN, STD)
    assert result.dtype == np.float32 and result.shape == (3, height, width) and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-6)


def test_masks() -> None:
    large = (noise(40, 60) > 0.7).astype(np.uint8) * np.uint8(255)
    resized = resize_mask(large, (15, 20))
    bilinear = np.asarray(Image.fromarray(large).resize((20, 15), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resized, bilinear / 255 > 0.5)
    assert resized.dtype == np.bool_ and resized.any() and not resized.all()


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(1, 40)] * 4), st.integers(0, 99))
def test_map_to_size_equals_torch(sizes: tuple[int, int, int, int], seed: int) -> None:
    import torch

    source = noise(*sizes[:2], seed=seed)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(source)[None, None], sizes[2:], mode="bilinear"
    )
    result = map_to_size(source, sizes[2:])
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected[0, 0].numpy(), atol=2e-5)


def test_map_to_size_over_several_strips_and_identity() -> None:
    import torch

    source = noise(37, 53)
    assert map_to_size(source, (37, 53)) is source
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(source)[None, None], (1500, 1400), mode="bilinear"
    )
    np.testing.assert_allclose(map_to_size(source, (1500, 1400)), expected[0, 0].numpy(), atol=1e-5)


@given(st.floats(0, 4, width=32), st.integers(1, 60), st.integers(1, 60))
def test_constant_maps_stay_constant_to_the_bit(value: float, height: int, width: int) -> None:
    assert (map_to_size(np.full((7, 5), value, np.float32), (height, width)) == np.float32(value)).all()


shapes = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50), st.floats(0, 0.9))


@settings(deadline=None)
@given(shapes)
def test_tiles_cover_the_picture_with_equal_boxes(case: tuple[int, int, int, float]) -> None:
    width, height, tile, overlap = case
    boxes = tiles(width, height, tile, overlap)
    covered = np.zeros((height, width), dtype=bool)
    for box in boxes:
        assert (box.x1 - box.x0, box.y1 - box.y0) == (min(tile, width), min(tile, height))
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
        covered[box.y0 : box.y1, box.x0 : box.x1] = True
    assert covered.all() and len(set(boxes)) == len(boxes)


def test_tiles_examples_and_refusals() -> None:
    assert tiles(30, 20, 100, 0.5) == [(0, 0, 30, 20)]
    assert [box.x0 for box in tiles(100, 40, 40, 0.25)] == [0, 30, 60]
    assert [box.x0 for box in tiles(95, 40, 40, 0.25)] == [0, 30, 55]
    for tile, overlap in ((0, 0.2), (10, -0.1), (10, 0.95), (10, float("nan"))):
        with pytest.raises(BadOption, match="expected"):
            tiles(100, 100, tile, overlap)


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_squares_cover_the_picture_evenly(width: int, height: int) -> None:
    boxes, side = squares(width, height), min(width, height)
    assert len(boxes) == -(-max(width, height) // side)
    assert all((box.x1 - box.x0, box.y1 - box.y0) == (side, side) for box in boxes)
    assert boxes[0][:2] == (0, 0) and boxes[-1][2:] == (width, height)
    starts = [box.x0 + box.y0 for box in boxes]
    steps = {later - earlier for earlier, later in itertools.pairwise(starts)}
    assert not steps or (max(steps) <= side and max(steps) - min(steps) <= 1)


def test_what_is_cut_and_what_is_seen_whole() -> None:
    assert cut_boxes((30, 45), SQUARES) == (Box(0, 0, 30, 30), Box(15, 0, 45, 30))
    assert cut_boxes((45, 30), SQUARES) == (Box(0, 0, 30, 30), Box(0, 15, 30, 45))
    assert cut_boxes((30, 30), SQUARES) == cut_boxes((30, 45), None) == cut_boxes((30, 45), 45) == ()
    assert cut_boxes((30, 45), 30, 0.0) == tuple(tiles(45, 30, 30, 0.0))


def test_even_blending_is_the_mean() -> None:
    blender = TileBlender(4, 6, even=True)
    for value, box in enumerate(squares(6, 4)):
        blender.add(box, np.full((4, 4), value, np.float32))
    assert blender.result().tolist() == [[0, 0, 0.5, 0.5, 1, 1]] * 4


@settings(deadline=None, max_examples=50)
@given(shapes, st.floats(-3, 3, width=32))
def test_blended_constants_stay_constant_to_the_bit(case: tuple[int, int, int, float], value: float) -> None:
    width, height, tile, overlap = case
    blender = TileBlender(height, width)
    for box in tiles(width, height, tile, overlap):
        blender.add(box, np.full((box.y1 - box.y0, box.x1 - box.x0), value, np.float32))
    assert (blender.result() == np.float32(value)).all()


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(0, 99))
def test_blending_cuttings_of_one_map_gives_it_back(case: tuple[int, int, int, float], seed: int) -> None:
    width, height, tile, overlap = case
    whole = noise(height, width, seed=seed)
    blender = TileBlender(height, width)
    for box in tiles(width, height, tile, overlap):
        blender.add(box, whole[box.y0 : box.y1, box.x0 : box.x1])
    np.testing.assert_allclose(blender.result(), whole, atol=1e-6)


def test_seams_between_unequal_tiles_are_smooth() -> None:
    blender = TileBlender(64, 160)
    for level, box in enumerate(tiles(160, 64, 64, 0.5)):
        blender.add(box, np.full((64, 64), level % 2, np.float32))
    steps = np.abs(np.diff(blender.result(), axis=1))
    assert steps.max() < 0.08
    assert blender.result().max() > 0.95 and blender.result().min() >= 0


def test_blender_refuses_what_does_not_fit_or_cover() -> None:
    blender = TileBlender(10, 10)
    box = tiles(10, 10, 6, 0)[0]
    with pytest.raises(ValueError, match="does not fit"):
        blender.add(box, np.zeros((5, 6), np.float32))
    blender.add(box, np.zeros((6, 6), np.float32))
    with pytest.raises(ValueError, match="64 pixels are covered by no tile"):
        blender.result()
