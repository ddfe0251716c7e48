"""Training views: sizes and ranges, picture and mask together, how often each change is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from blemish.data import augment
from blemish.data.augment import AUGMENTATIONS, GAUSSIAN_TAPS, Augmentation, draw_view, shifted
from blemish.errors import BadOption

Picture = tuple[np.ndarray, np.ndarray | None]


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def marked(height: int = 60, width: int = 80) -> Picture:
    """A dark picture with a bright rectangle off the centre, which the mask marks."""
    image, mask = np.full((height, width, 3), 20, dtype=np.uint8), np.zeros((height, width), dtype=np.uint8)
    image[12:30, 20:50], mask[12:30, 20:50] = 220, 255
    return image, mask


def view(augmentation: Augmentation, picture: Picture, seed: int = 0, pool: tuple[int, ...] = ()) -> Picture:
    return draw_view(augmentation, 0, lambda number: picture, pool, np.random.default_rng(seed))


def test_named_ones() -> None:
    assert list(AUGMENTATIONS) == ["none", "vcp", "vcp_mosaic", "mosaic", "aa"]
    assert not AUGMENTATIONS["none"].active and AUGMENTATIONS["vcp"].active
    assert AUGMENTATIONS["vcp"].mosaic == 0 and AUGMENTATIONS["vcp_mosaic"].mosaic == 0.2
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadOption, match=r"rotate is .*expected a probability"):
            Augmentation(rotate=wrong)


def test_none_changes_nothing_and_shares_no_memory() -> None:
    image, mask = marked()
    out, truth = view(AUGMENTATIONS["none"], (image, mask))
    assert truth is not None and mask is not None
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(truth, mask)
    assert not np.shares_memory(out, image) and not np.shares_memory(truth, mask)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6), st.booleans())
def test_any_size_gives_valid_views(height: int, width: int, seed: int, masked: bool) -> None:
    picture = noisy(height, width), np.zeros((height, width), dtype=np.uint8) if masked else None
    always = Augmentation(0.5, *[1.0] * 8)
    image, mask = view(always, picture, seed, pool=(0, 1))
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    assert sorted(image.shape[:2]) in (sorted((height, width)), sorted((2 * height, 2 * width)))
    assert (mask is not None) == masked
    if mask is not None:
        assert mask.dtype == np.uint8 and mask.shape == image.shape[:2] and mask.flags.c_contiguous


def test_a_view_follows_from_the_generator_alone() -> None:
    picture = noisy(40, 50), marked(40, 50)[1]
    named = AUGMENTATIONS["vcp_mosaic"]
    for seed in range(20):
        first, again = view(named, picture, seed, (1, 2, 3)), view(named, picture, seed, (1, 2, 3))
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1] is not None and again[1] is not None
        np.testing.assert_array_equal(first[1], again[1])
    assert len({view(named, picture, seed)[0].tobytes() for seed in range(20)}) > 15


@pytest.mark.parametrize("seed", range(30))
def test_the_mask_moves_with_the_picture(seed: int) -> None:
    """What is bright after turning is what the mask says, but for pixels on the edge."""
    image, mask = view(Augmentation(rotate=1, quarter_turn=1), marked(), seed)
    assert mask is not None and set(np.unique(mask)) <= {0, 255}
    bright = image[..., 0] > 120
    inside = ndimage.binary_erosion(mask > 0, iterations=2)
    outside = ~ndimage.binary_dilation(mask > 0, iterations=2)
    assert inside.sum() > 300 and bright[inside].all() and not bright[outside].any()


@pytest.mark.parametrize("shape", [(41, 61), (40, 60), (7, 90)])
@pytest.mark.parametrize("degrees", [-30.0, -11.3, 0.0, 4.0, 29.0])
def test_rotation_against_scipy(shape: tuple[int, int], degrees: float) -> None:
    """Same centre, direction, interpolation and reflect-101 border as an affine map over pixel centres."""
    image = ndimage.gaussian_filter(noisy(*shape).astype(float), (2, 2, 0)).astype(np.uint8)
    mask = (noisy(*shape)[..., 0] > 128).astype(np.uint8) * np.uint8(255)
    turned, truth = augment.rotate(image, mask, degrees)
    angle = np.radians(degrees)
    # Counter-clockwise as seen: the pixel to the right of the centre comes from below it.
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centre = (np.array(shape) - 1) / 2
    offset = centre - matrix @ centre
    for channel in range(3):
        wanted = ndimage.affine_transform(
            image[..., channel].astype(float), matrix, offset, order=1, mode="mirror"
        )
        assert np.abs(turned[..., channel] - wanted).max() <= 1.5  # weights in 256ths
    wanted = ndimage.affine_transform(mask, matrix, offset, order=0, mode="mirror")
    assert truth is not None and (truth != wanted).mean() < 0.02  # halves may round either way


def test_rotation_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = noisy(50, 90), noisy(50, 90, 1)[..., 0]
    whole = augment.rotate(image, mask, 17.0)
    monkeypatch.setattr(augment, "BLOCK", 32)
    blocks = augment.rotate(image, mask, 17.0)
    assert np.abs(whole[0].astype(int) - blocks[0]).max() <= 1
    assert whole[1] is not None and blocks[1] is not None
    assert (whole[1] != blocks[1]).mean() < 0.01


def test_brightness_contrast() -> None:
    image = noisy(30, 40)
    out = augment.brightness_contrast(image, 0.1, -0.2)
    np.testing.assert_array_equal(out, np.clip(np.rint(image * 0.8 + 25.5), 0, 255))
    np.testing.assert_array_equal(augment.brightness_contrast(image, 0.0, 0.0), image)


def test_noise() -> None:
    image = np.full((400, 500, 3), 128, dtype=np.uint8)
    added = augment.add_noise(image, 5.0, np.random.default_rng(0)).astype(float) - 128
    assert abs(added.mean()) < 0.05 and abs(added.std() - np.sqrt(25 + 1 / 12)) < 0.05
    share = [(np.abs(added) < 5 * k + 0.5).mean() for k in (1, 2, 3)]
    assert np.allclose(share, [0.728, 0.964, 0.998], atol=0.004)  # of a normal distribution, rounded
    flat = added.reshape(-1, 3)
    assert np.abs(np.corrcoef(flat.T) - np.eye(3)).max() < 0.02  # channels apart
    assert abs(np.corrcoef(added[:-1].ravel(), added[1:].ravel())[0, 1]) < 0.02
    ends = augment.add_noise(np.array([[[0, 255, 0]]] * 500, dtype=np.uint8), 7.0, np.random.default_rng(0))
    assert ends[..., 0].min() == 0 and ends[..., 1].max() == 255  # clipped, not wrapped
    assert ends[..., 0].max() < 60 and ends[..., 1].min() > 190


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (30, 41)])
def test_blurs_against_scipy(size: tuple[int, int]) -> None:
    image = noisy(*size)
    for channel in range(3):
        plane = image[..., channel].astype(float)
        mean = ndimage.uniform_filter(plane, 3, mode="mirror")
        assert np.abs(augment.mean_blur(image)[..., channel] - mean).max() <= 0.51
        for taps in GAUSSIAN_TAPS:
            assert sum(taps) == 64
            weights = np.array(taps) / 64
            wanted = ndimage.correlate1d(plane, weights, axis=0, mode="mirror")
            wanted = ndimage.correlate1d(wanted, weights, axis=1, mode="mirror")
            assert np.abs(augment.gaussian_blur(image, taps)[..., channel] - wanted).max() <= 0.7
    white = np.full((5, 6, 3), 255, dtype=np.uint8)
    for out in (augment.mean_blur(white), *(augment.gaussian_blur(white, taps) for taps in GAUSSIAN_TAPS)):
        np.testing.assert_array_equal(out, white)


def test_jitter() -> None:
    image = noisy(30, 40)
    np.testing.assert_allclose(
        augment.jitter(image, 1.2, 1, 1, 0), np.clip(image * 1.2, 0, 255), atol=8
    )  # 8-bit hues
    grey = np.repeat(noisy(30, 40)[..., :1], 3, axis=2)
    np.testing.assert_allclose(augment.jitter(grey, 1, 1, 1.2, 0.2), grey, atol=2)  # no colour to change
    mean = grey.mean()
    wanted = np.clip((grey - mean) * 0.8 + mean, 0, 255)
    np.testing.assert_allclose(augment.jitter(grey, 1, 0.8, 1, 0), wanted, atol=2)
    red = np.full((4, 4, 3), (200, 20, 20), dtype=np.uint8)
    turned = augment.jitter(red, 1, 1, 1, 1 / 3)
    np.testing.assert_allclose(turned, np.full((4, 4, 3), (20, 200, 20)), atol=6)
    dull = augment.jitter(red, 1, 1, 0.8, 0)
    assert np.ptp(dull[0, 0].astype(int)) == pytest.approx(0.8 * 180, abs=2)
    orders = {
        augment.jitter(image, 1.2, 0.8, 1.2, 0.1, order).tobytes() for order in ([0, 1, 2, 3], [3, 1, 0, 2])
    }
    assert len(orders) == 2


def load_sized(number: int) -> Picture:
    """Every picture of its own colour and size; picture 9 has no mask."""
    height, width = 10 + 2 * number, 20 + number
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[: height // 2] = 255
    return np.full((height, width, 3), 10 * number, dtype=np.uint8), None if number == 9 else mask


def test_mosaics_show_pool_pictures_at_the_first_ones_size() -> None:
    only = Augmentation(mosaic=1)
    seen = set()
    for seed in range(40):
        image, mask = draw_view(only, 7, load_sized, [1, 2, 3], np.random.default_rng(seed))
        height, width = image.shape[0] // 2, image.shape[1] // 2
        number = int(image[0, 0, 0]) // 10
        assert (height, width) == load_sized(number)[0].shape[:2]
        assert mask is not None and mask.shape == image.shape[:2]
        corners = tuple(int(image[y, x, 0]) // 10 for y in (0, height) for x in (0, width))
        for place, shown in enumerate(corners):
            y, x = place // 2 * height, place % 2 * width
            assert (image[y : y + height, x : x + width] == 10 * shown).all()
            assert mask[y : y + height // 2, x : x + width].all()
            assert not mask[y + height // 2 : y + height, x : x + width].any()
        seen.add(corners)
    assert {n for corners in seen for n in corners} == {1, 2, 3}
    assert any(len(set(corners)) < 3 for corners in seen)  # with replacement


def test_no_mosaic_without_pool_or_masks() -> None:
    for pool in ([], [9], [9, 9]):
        image, mask = draw_view(Augmentation(mosaic=1), 7, load_sized, pool, np.random.default_rng(0))
        assert image.shape == load_sized(7)[0].shape and mask is not None
    image, mask = draw_view(Augmentation(mosaic=1), 9, load_sized, [9], np.random.default_rng(0))
    assert mask is None and image.shape == load_sized(9)[0].shape


def test_how_often_and_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over 2000 draws every branch comes with its probability and every amount fills its range."""
    calls: dict[str, list[tuple[float, ...]]] = {}

    def note(name: str, result: Callable[..., object]) -> None:
        def noted(*given: object) -> object:
            numbers = tuple(float(v) for v in given if isinstance(v, (int, float)))
            calls.setdefault(name, []).append(numbers)
            return result(*given)

        monkeypatch.setattr(augment, name, noted)

    for name in ("brightness_contrast", "add_noise", "mean_blur", "jitter"):
        note(name, lambda image, *_: image)
    note("rotate", lambda image, mask, degrees: (image, mask))
    note("mosaic", lambda pictures: pictures[0])
    tap_counts: list[int] = []
    monkeypatch.setattr(
        augment, "gaussian_blur", lambda image, taps: (tap_counts.append(len(taps)), image)[1]
    )
    picture = (noisy(3, 4), np.arange(12, dtype=np.uint8).reshape(3, 4))
    rng, turns = np.random.default_rng(5), []
    for _ in range(2000):
        image, mask = draw_view(AUGMENTATIONS["vcp_mosaic"], 0, lambda n: picture, [1], rng)
        turns.append(next(k for k in range(4) if np.array_equal(np.rot90(picture[1], k), mask)))
        np.testing.assert_array_equal(image, np.rot90(picture[0], turns[-1]))

    def is_near(count: int, share: float) -> bool:
        return abs(count / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)

    for name, share in (("mosaic", 0.2), ("rotate", 0.5), ("brightness_contrast", 0.5), ("add_noise", 0.5)):
        assert is_near(len(calls[name]), share), name
    assert is_near(turns.count(0), 0.625) and all(is_near(turns.count(k), 0.125) for k in (1, 2, 3))
    assert is_near(len(calls["mean_blur"]), 1 / 6) and is_near(len(calls["jitter"]), 1 / 6)
    assert all(is_near(tap_counts.count(k), 1 / 18) for k in (3, 5, 7))

    def fills(values: list[float], low: float, high: float) -> bool:
        margin = 0.05 * (high - low)
        inside = low <= min(values) and max(values) <= high
        return inside and min(values) < low + margin and max(values) > high - margin

    assert fills([degrees for (degrees,) in calls["rotate"]], -30, 30)
    assert fills([sigma**2 for (sigma,) in calls["add_noise"]], 10, 50)
    for amounts in zip(*calls["brightness_contrast"], strict=True):
        assert fills(list(amounts), -0.2, 0.2)
    *factors, hues = zip(*calls["jitter"], strict=True)
    assert (
        len(factors) == 3 and all(fills(list(f), 0.8, 1.2) for f in factors) and fills(list(hues), -0.2, 0.2)
    )


@pytest.mark.parametrize(("down", "right"), [(7, 0), (-9, 12), (0, -3)])
def test_picture_and_mask_are_shifted_together(down: int, right: int) -> None:
    image, mask = noisy(60, 80), marked()[1]
    assert mask is not None
    out, truth = shifted(image, mask, down / 60, right / 80)
    assert truth is not None and out.shape == image.shape and truth.shape == mask.shape
    for y in range(60):
        for x in range(80):
            from_y, from_x = y - down, x - right
            from_y, from_x = (abs(v) if v < n else 2 * (n - 1) - v for v, n in ((from_y, 60), (from_x, 80)))
            assert (out[y, x] == image[from_y, from_x]).all() and truth[y, x] == mask[from_y, from_x]
    assert shifted(image, None, 0.1, 0.1)[1] is None


def test_flips_and_colours() -> None:
    image, mask = noisy(20, 30), marked(20, 30)[1]
    assert mask is not None
    out, truth = view(Augmentation(flip=1), (image, mask))
    np.testing.assert_array_equal(out, image[::-1, ::-1])
    np.testing.assert_array_equal(truth, mask[::-1, ::-1])
    seen = {tuple(view(Augmentation(flip=0.5), (image, None), seed)[0][0, 0]) for seed in range(40)}
    assert seen == {tuple(image[y, x]) for y in (0, -1) for x in (0, -1)}
    out, truth = view(Augmentation(colour=1), (image, mask))
    np.testing.assert_array_equal(truth, mask)
    assert (out != image).any()
    grey = np.full((8, 8, 3), 100, dtype=np.uint8)  # contrast and saturation leave it
    levels = [int(view(Augmentation(colour=1), (grey, None), seed)[0][0, 0, 0]) for seed in range(60)]
    assert min(levels) < 60 and max(levels) > 140 and min(levels) >= 50 and max(levels) <= 150


def test_a_file_of_any_kind_of_picture(tmp_path: Path) -> None:
    """Read-only arrays, as PIL gives them, are fine."""
    Image.fromarray(noisy(20, 30)).save(tmp_path / "a.png")
    image = np.asarray(Image.open(tmp_path / "a.png"))
    for seed in range(10):
        view(AUGMENTATIONS["vcp"], (image, None), seed)


def test_speed() -> None:
    """Far above what it takes (about 50 ms on one core), since machines differ; guards against slow paths."""
    y, x = np.mgrid[:1000, :1000]
    image = np.stack([(x + y) // 8, x // 4, 255 - y // 4], axis=2).astype(np.uint8)
    mask = ((x - 500) ** 2 + (y - 400) ** 2 < 10000).astype(np.uint8) * np.uint8(255)
    started = time.process_time()
    for seed in range(12):
        view(AUGMENTATIONS["vcp"], (image, mask), seed)
    assert (time.process_time() - started) / 12 < 0.3
