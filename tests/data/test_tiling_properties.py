"""Cutting pictures, resizing and joining maps: what must hold for every size and every kind of tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blemish.data.transforms import (
    SQUARES,
    Box,
    TileBlender,
    cut_boxes,
    map_to_size,
    preprocess,
    resize_mask,
)

few = settings(max_examples=25, deadline=None)
sides = st.integers(1, 48)
kinds = st.one_of(st.just(SQUARES), st.integers(1, 30))


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def boxes_of(size: tuple[int, int], tile: int | str, overlap: float) -> tuple[Box, ...]:
    return cut_boxes(size, tile, overlap) or (Box(0, 0, size[1], size[0]),)


@few
@given(sides, sides, kinds, st.floats(0, 0.9), st.booleans(), st.integers(0, 99), st.randoms())
def test_the_order_of_tiles_does_not_matter(
    height: int, width: int, tile: int | str, overlap: float, even: bool, seed: int, random: object
) -> None:
    boxes = list(boxes_of((height, width), tile, overlap))
    maps = {box: noise(box.y1 - box.y0, box.x1 - box.x0, seed=seed + i) for i, box in enumerate(boxes)}
    joined = []
    for order in (boxes, random.sample(boxes, len(boxes))):  # type: ignore[attr-defined]
        blender = TileBlender(height, width, even)
        for box in order:
            blender.add(box, maps[box])
        joined.append(blender.result())
    np.testing.assert_allclose(joined[0], joined[1], atol=1e-5)


@few
@given(sides, sides, kinds, st.floats(0, 0.9), st.booleans(), st.integers(0, 99))
def test_a_joined_map_stays_within_its_tiles(
    height: int, width: int, tile: int | str, overlap: float, even: bool, seed: int
) -> None:
    low, high = np.full((height, width), np.inf), np.full((height, width), -np.inf)
    blender = TileBlender(height, width, even)
    for number, box in enumerate(boxes_of((height, width), tile, overlap)):
        part = noise(box.y1 - box.y0, box.x1 - box.x0, seed=seed + number) * 10 - 5
        blender.add(box, part)
        place = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        low[place], high[place] = np.minimum(low[place], part), np.maximum(high[place], part)
    result = blender.result()
    assert (result >= low - 1e-5).all() and (result <= high + 1e-5).all()


@few
@given(sides, sides, sides, sides, st.integers(0, 99))
def test_resized_maps_stay_in_range_and_turn_with_the_picture(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    given_map = noise(height, width, seed=seed) * 4 - 2
    resized = map_to_size(given_map, (rows, columns))
    assert resized.shape == (rows, columns) and resized.dtype == np.float32
    assert resized.min() >= given_map.min() - 1e-5 and resized.max() <= given_map.max() + 1e-5
    np.testing.assert_allclose(
        map_to_size(np.ascontiguousarray(given_map.T), (columns, rows)), resized.T, atol=1e-5
    )
    np.testing.assert_allclose(
        map_to_size(given_map[:, ::-1].copy(), (rows, columns)), resized[:, ::-1], atol=1e-5
    )
    np.testing.assert_allclose(map_to_size(given_map * 2, (rows, columns)), resized * 2, atol=1e-5)


@few
@given(sides, sides, st.integers(1, 24), st.integers(0, 255))
def test_a_plain_picture_stays_plain(height: int, width: int, side: int, level: int) -> None:
    plain = np.full((height, width, 3), level, dtype=np.uint8)
    mean, std = (0.5, 0.25, 0.0), (0.5, 2.0, 1.0)
    pixels = preprocess(plain, side, mean, std)
    assert pixels.shape == (3, side, side)
    for channel in range(3):
        np.testing.assert_allclose(pixels[channel], (level / 255 - mean[channel]) / std[channel], atol=1e-5)


@few
@given(sides, sides, st.integers(1, 24), st.integers(1, 24), st.booleans())
def test_full_and_empty_masks_stay_so(height: int, width: int, rows: int, columns: int, full: bool) -> None:
    mask = np.full((height, width), 255 if full else 0, dtype=np.uint8)
    resized = resize_mask(mask, (rows, columns))
    assert resized.shape == (rows, columns) and (resized == full).all()


@pytest.mark.parametrize("tile", [SQUARES, 5, None])
def test_one_pixel_is_seen_whole(tile: int | str | None) -> None:
    assert cut_boxes((1, 1), tile) == ()
