"""The colour scale, overlays, the colour bar and thumbnails."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from blemish.output.pictures import (
    color_bar_png,
    color_table,
    colorize,
    gallery_pair,
    overlay,
    png_bytes,
    thumbnail,
)

# Machado, Oliveira and Fernandes (2009), severity 1, for linear sRGB
DEFICIENCIES = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def linear(colors: np.ndarray) -> np.ndarray:
    unit = colors / 255
    return np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)


def lightness(rgb: np.ndarray) -> np.ndarray:
    """CIE L* of linear sRGB."""
    y = rgb @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 0.008856, 116 * np.cbrt(np.clip(y, 0, None)) - 16, 903.3 * y)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_lightness_rises_evenly_over_the_whole_scale() -> None:
    levels = lightness(linear(color_table().astype(float)))
    steps = np.diff(levels)
    assert (steps > 0).all() and levels[0] < 8 and levels[-1] > 90
    coarse = np.diff(levels[::15])
    assert coarse.max() < 1.7 * coarse.min()


@pytest.mark.parametrize("kind", DEFICIENCIES)
def test_the_scale_keeps_its_order_in_colour_blindness(kind: str) -> None:
    seen = np.clip(linear(color_table().astype(float)) @ np.array(DEFICIENCIES[kind]).T, 0, 1)
    assert (np.diff(lightness(seen)[::3]) > 0).all()


def test_colorize_is_fixed_to_the_range_not_to_the_image() -> None:
    table = color_table()
    values = np.array([[-5.0, 0.0, 1.0, 2.0, 9.0]], np.float32)
    np.testing.assert_array_equal(colorize(values, (0, 2))[0], table[[0, 0, 128, 255, 255]])
    dim = np.full((4, 4), 0.1, np.float32)
    assert (colorize(dim, (0, 1)) == table[26]).all()
    assert values[0, 0] == -5.0
    with pytest.raises(ValueError, match="map_range"):
        colorize(values, (1, 1))


def test_overlay_leaves_normal_areas_as_photo_and_marks_regions() -> None:
    image = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    values = np.zeros((80, 100), np.float32)
    values[30:50, 40:70] = 1
    np.testing.assert_array_equal(overlay(image, np.zeros_like(values), (0, 1)), image)
    plain = overlay(image, values, (0, 1))
    marked = overlay(image, values, (0, 1), values > 0.5)
    np.testing.assert_array_equal(plain[values == 0], image[values == 0])
    bright = color_table()[255].astype(float)
    assert np.abs(plain[30:50, 40:70] - bright).mean() < 0.4 * np.abs(image[30:50, 40:70] - bright).mean()
    np.testing.assert_array_equal(marked[30:50, 40:70], plain[30:50, 40:70])  # the line lies outside
    assert (
        (marked[28, 40:70] == 255).all() and (marked[29, 40:70] < 40).all() and (marked[27, 40:70] < 40).all()
    )
    np.testing.assert_array_equal(marked[:25], image[:25])


def test_overlay_is_the_blend_by_value_and_the_line_follows_the_mask() -> None:
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (300, 400, 3), dtype=np.uint8)  # more than one strip
    values = generator.random((300, 400), dtype=np.float32)
    blend = 0.78 * values**0.75 * np.clip(values * 4, 0, 1)
    colors = color_table()[np.rint(values * 255).astype(np.uint8)].astype(float)
    expected = image + (colors - image) * blend[:, :, None]
    plain = overlay(image, values, (0, 1))
    assert np.abs(plain - expected).max() < 2.5
    mask = np.zeros((300, 400), dtype=bool)
    mask[0, 0] = mask[150, 200] = mask[150:170, 220] = mask[299, 380:] = True
    marked = overlay(image, values, (0, 1), mask)
    square = np.ones((3, 3), dtype=bool)
    inner, outer, edge = (ndimage.binary_dilation(mask, square, iterations=n) for n in (1, 2, 3))
    assert (marked[outer & ~inner] == 255).all()
    assert (marked[(edge & ~outer) | (inner & ~mask)] == (16, 12, 24)).all()
    untouched = mask | ~edge
    np.testing.assert_array_equal(marked[untouched], plain[untouched])


def test_gallery_pair_is_the_thumbnail_with_its_heat_map() -> None:
    y, x = np.mgrid[:300, :600]
    image = np.stack([x // 3, y // 2, x // 4], axis=2).astype(np.uint8)
    values = np.zeros((300, 600), np.float32)
    values[100:200, 200:400] = 1
    photo, heat = gallery_pair(image, values, (0, 1), max_side=200)
    assert photo == thumbnail(image, 200)
    shown = decoded(heat).astype(float)
    assert np.abs(shown[:25] - decoded(photo)[:25]).mean() < 3
    assert np.abs(shown[40:60, 80:120] - color_table()[255]).mean() < 60


def test_large_overlays_shrink_and_keep_the_smallest_region() -> None:
    image = np.full((600, 900, 3), 90, np.uint8)
    values = np.zeros((600, 900), np.float32)
    mask = np.zeros((600, 900), bool)
    mask[301, 401] = True
    shrunk = overlay(image, values, (0, 1), mask, max_side=90)
    assert shrunk.shape == (60, 90, 3)
    assert (shrunk == 255).all(axis=2).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (3, 2)])
def test_odd_sizes_work(shape: tuple[int, int]) -> None:
    image, values = np.zeros((*shape, 3), np.uint8), np.ones(shape, np.float32)
    photo, heat = gallery_pair(image, values, (0, 1), values > 0.5, max_side=100)
    assert decoded(photo).shape == decoded(heat).shape
    assert max(decoded(photo).shape[:2]) == min(100, max(shape))


def test_color_bar_and_png() -> None:
    bar = decoded(color_bar_png((0, 2), 1.0, size=(201, 8)))
    assert bar.shape == (8, 201, 3)
    assert (bar[:, 100] == 255).all()
    np.testing.assert_array_equal(bar[0, [0, 200]], color_table()[[0, 255]])
    assert not (decoded(color_bar_png((0, 2), None)) == 255).all(axis=2).any()
    np.testing.assert_array_equal(decoded(png_bytes(bar)), bar)


def test_thumbnails_are_small_jpegs() -> None:
    y, x = np.mgrid[:900, :1200]
    image = np.stack([x // 5, y // 4, x // 10], axis=2).astype(np.uint8)
    data = thumbnail(image, 300)
    assert data[:2] == b"\xff\xd8" and decoded(data).shape == (225, 300, 3) and len(data) < 20_000
    assert decoded(thumbnail(image[:50, :60], 300)).shape == (50, 60, 3)
