"""Training views of a picture and its mask: the VCP family's rotations, photometric changes and mosaics.

What is drawn and how likely follows VCP-CLIP's training program with the defaults of albumentations 1.3.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from blemish.errors import BadOption

Picture = tuple[np.ndarray, np.ndarray | None]

ROTATION = 30.0  # degrees, to either side
BRIGHTNESS = CONTRAST = 0.2  # changes of both are drawn from ± this
NOISE_VARIANCE = (10.0, 50.0)  # of values 0..255
JITTER = 0.2
COLOUR, SHIFT = 0.5, 0.15  # of AA-CLIP
# Taps of the Gaussian kernels 3, 5 and 7 in 64ths, as OpenCV has them when no sigma is given.
GAUSSIAN_TAPS = ((16, 32, 16), (4, 16, 24, 16, 4), (2, 7, 14, 18, 14, 7, 2))
BLOCK = 192  # side of what is rotated at once: work arrays that stay in the cache
FRACTION = 16  # bits after the point of places in a picture
_HALF = 1 << (FRACTION - 1)
_HALVES = np.uint32(0x00FF_00FF)
STRIP_VALUES = 1 << 17  # the same for noise and blurs


@dataclass(frozen=True)
class Augmentation:
    """How likely each change of a training picture is, each in [0, 1]; they are drawn in this order.

    mosaic: a 2x2 mosaic of four pictures of the class takes the place of the picture; of anomalous ones alone, unless
    mosaic_of_all (which is no probability).
    rotate: by an angle of up to 30 degrees. quarter_turn: by 0, 90, 180 or 270 degrees.
    brightness_contrast: both by up to 0.2. noise: Gaussian, variance 10 to 50.
    blur_or_jitter: one of 3x3 mean, colour jitter and Gaussian blur.
    colour: brightness, contrast and saturation times 0.5 to 1.5 each. shift: by up to 0.15 of each side.
    flip: left to right, and by itself upside down.
    """

    mosaic: float = 0.0
    rotate: float = 0.0
    quarter_turn: float = 0.0
    brightness_contrast: float = 0.0
    noise: float = 0.0
    blur_or_jitter: float = 0.0
    colour: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    mosaic_of_all: bool = False

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 <= value <= 1:
                raise BadOption(f"augmentation {name} is {value}; expected a probability from 0 to 1")

    @property
    def active(self) -> bool:
        """Whether anything can change a picture."""
        return any(dataclasses.astuple(self))


_VCP = Augmentation(rotate=0.5, quarter_turn=0.5, brightness_contrast=0.5, noise=0.5, blur_or_jitter=0.5)
AUGMENTATIONS = {
    "none": Augmentation(),
    "vcp": _VCP,
    "vcp_mosaic": dataclasses.replace(_VCP, mosaic=0.2),
    "mosaic": Augmentation(mosaic=0.2, mosaic_of_all=True),  # APRIL-GAN's
    # AA-CLIP's; how likely it turns, shifts and flips is ours.
    "aa": Augmentation(rotate=0.5, colour=0.7, shift=0.5, flip=0.5),
}


def draw_view(
    augmentation: Augmentation,
    index: int,
    load: Callable[[int], Picture],
    mosaic_pool: Sequence[int],
    rng: np.random.Generator,
) -> Picture:
    """One training view of picture `index`; what is drawn depends on the generator alone.

    load: picture number -> uint8 (H, W, 3) and its mask, uint8 (H, W) of 0 and 255 or None; must return the
    same for the same number. mosaic_pool: numbers of the pictures that a mosaic may hold; without any, or when one
    of the four drawn has no mask, no mosaic is built. A mosaic is anomalous when one of its pictures is, whatever
    picture `index` is. Returns new arrays of the same kinds; a mask of None stays None. Quarter turns exchange height
    and width, a mosaic has twice the height and width of its first picture.
    """
    picture = None
    if mosaic_pool and rng.random() < augmentation.mosaic:
        chosen = rng.choice(np.asarray(mosaic_pool), size=4)
        picture = mosaic([load(int(number)) for number in chosen])
    image, mask = picture or load(index)
    if rng.random() < augmentation.rotate:
        image, mask = rotate(image, mask, rng.uniform(-ROTATION, ROTATION))
    if rng.random() < augmentation.quarter_turn:
        turns = int(rng.integers(4))
        image, mask = np.rot90(image, turns), None if mask is None else np.rot90(mask, turns)
    if rng.random() < augmentation.brightness_contrast:
        contrast, brightness = rng.uniform(-CONTRAST, CONTRAST), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
        image = brightness_contrast(image, brightness, contrast)
    if rng.random() < augmentation.noise:
        image = add_noise(image, math.sqrt(rng.uniform(*NOISE_VARIANCE)), rng)
    if rng.random() < augmentation.blur_or_jitter:
        image = _blur_or_jitter(image, rng)
    if rng.random() < augmentation.colour:
        brightness, contrast, saturation = rng.uniform(1 - COLOUR, 1 + COLOUR, size=3)
        image = jitter(image, brightness, contrast, saturation, 0.0, rng.permutation(3))
    if rng.random() < augmentation.shift:
        image, mask = shifted(image, mask, *rng.uniform(-SHIFT, SHIFT, size=2))
    for axis in (1, 0):
        if rng.random() < augmentation.flip:
            image, mask = np.flip(image, axis), None if mask is None else np.flip(mask, axis)
    # Copies, so that no view shares memory with a picture that `load` may keep.
    return np.array(image, order="C"), None if mask is None else np.array(mask, order="C")


def _blur_or_jitter(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kind = rng.integers(3)
    if kind == 0:
        return mean_blur(image)
    if kind == 1:
        brightness, contrast, saturation = rng.uniform(1 - JITTER, 1 + JITTER, size=3)
        hue, order = rng.uniform(-JITTER, JITTER), rng.permutation(4)
        return jitter(image, brightness, contrast, saturation, hue, order)
    return gaussian_blur(image, GAUSSIAN_TAPS[rng.integers(len(GAUSSIAN_TAPS))])


def mosaic(pictures: Sequence[Picture]) -> Picture | None:
    """Four pictures as 2x2, row by row, each resized to the first one's size; None when a mask is missing.

    Pictures are resized bilinearly, masks to the nearest pixel.
    """
    height, width = pictures[0][0].shape[:2]
    canvas = np.empty((2 * height, 2 * width, 3), dtype=np.uint8)
    truth = np.empty((2 * height, 2 * width), dtype=np.uint8)
    for number, (image, mask) in enumerate(pictures):
        if mask is None:
            return None
        rows = slice(number // 2 * height, (number // 2 + 1) * height)
        columns = slice(number % 2 * width, (number % 2 + 1) * width)
        canvas[rows, columns] = _resized(image, (width, height), Image.Resampling.BILINEAR)
        truth[rows, columns] = _resized(mask, (width, height), Image.Resampling.NEAREST)
    return canvas, truth


def _resized(pixels: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def rotate(image: np.ndarray, mask: np.ndarray | None, degrees: float) -> Picture:
    """Picture and mask turned counter-clockwise about the centre, at the same size.

    image: uint8 (H, W, 3), bilinear. mask: uint8 (H, W) or None, nearest. What comes in from outside is the
    picture reflected without repeating its border (reflect-101).
    """
    height, width = image.shape[:2]
    colours = np.asarray(Image.fromarray(image).convert("RGBX")).view(np.uint32)[..., 0]
    out = np.empty((height, width), dtype=np.uint32)
    truth = None if mask is None else np.empty((height, width), dtype=np.uint8)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    y, x = np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2
    ys = _Places(_fixed(cos * y + (height - 1) / 2), _fixed(sin * x))
    xs = _Places(_fixed((width - 1) / 2 - sin * y), _fixed(cos * x))
    for top in range(0, height, BLOCK):
        for left in range(0, width, BLOCK):
            place = slice(top, top + BLOCK), slice(left, left + BLOCK)
            (row, rows), (column, columns) = ys.spanned(place, height), xs.spanned(place, width)
            from_y, from_x = ys.of(place, row), xs.of(place, column)
            out[place] = _bilinear(np.ascontiguousarray(colours[rows][:, columns]), from_y, from_x)
            if mask is not None and truth is not None:
                from_y, from_x = ((v + np.uint32(_HALF)) >> FRACTION for v in (from_y, from_x))
                truth[place] = mask[rows][:, columns][from_y, from_x]
    return out.view(np.uint8).reshape(height, width, 4)[..., :3], truth


def shifted(image: np.ndarray, mask: np.ndarray | None, down: float, right: float) -> Picture:
    """Picture and mask moved by shares of their height and width, in whole pixels, at the same size.

    What comes in from outside is the picture reflected, as in `rotate`.
    """
    rows, columns = (
        _reflected(-by, length - by, length)
        for length, share in zip(image.shape[:2], (down, right), strict=True)
        for by in (round(share * length),)
    )
    return image[rows][:, columns], None if mask is None else mask[rows][:, columns]


def _fixed(values: np.ndarray) -> np.ndarray:
    fixed: np.ndarray = np.rint(values * (1 << FRACTION)).astype(np.int64)
    return fixed


class _Places(NamedTuple):
    """Row (or column) that every pixel comes from: the sum of a part of its row and one of its column.

    of_row: (H,), of_column: (W,), both int64 in 2**-FRACTION of a pixel.
    """

    of_row: np.ndarray
    of_column: np.ndarray

    def spanned(self, place: tuple[slice, slice], length: int) -> tuple[int, slice | np.ndarray]:
        """First source of a block, perhaps outside the picture, and all of them with their next neighbours."""
        parts = self.of_row[place[0]], self.of_column[place[1]]
        first, last = (int(sum(one(part) for part in parts)) >> FRACTION for one in (np.min, np.max))
        return first, _reflected(first, last + 2, length)

    def of(self, place: tuple[slice, slice], first: int) -> np.ndarray:
        """Sources of a block counted from `first`; uint32 (h, w)."""
        along = self.of_row[place[0], None] - (first << FRACTION)
        # Sums wrap round modulo 2**32, which leaves their (never negative) value intact.
        return along.astype(np.uint32) + self.of_column[place[1]].astype(np.uint32)


def _bilinear(colours: np.ndarray, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Colours (h, w) at places in 2**-FRACTION of a pixel; uint32 of four bytes, as everything here.

    Two bytes at a time go through the arithmetic, as 16-bit halves of one number, with weights in 256ths.
    """
    flat, width = colours.reshape(-1), colours.shape[1]
    index = ((ys >> FRACTION) * np.uint32(width) + (xs >> FRACTION)).astype(np.intp)
    right, down = (xs >> (FRACTION - 8)) & 255, (ys >> (FRACTION - 8)) & 255
    left, up = 256 - right, 256 - down

    def row(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, b = flat.take(index, mode="clip"), flat.take(index + 1, mode="clip")
        return _mixed(a & _HALVES, b & _HALVES, left, right), _mixed(
            (a >> 8) & _HALVES, (b >> 8) & _HALVES, left, right
        )

    above, below = row(index), row(index + width)
    even, odd = (_mixed(a, b, up, down) for a, b in zip(above, below, strict=True))
    joined: np.ndarray = even | (odd << 8)
    return joined


def _mixed(a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """Weighted mean of two bytes a number, rounded, in place of `a`; weights sum to 256."""
    a *= of_a
    b *= of_b
    a += b
    a += np.uint32(0x0080_0080)
    a >>= np.uint32(8)
    a &= _HALVES
    return a


def _reflected(first: int, stop: int, length: int) -> slice | np.ndarray:
    """The numbers from `first` to `stop`, folded back into 0 .. length - 1 at both ends; indexes an axis."""
    if first >= 0 and stop <= length:
        return slice(first, stop)
    period = max(2 * (length - 1), 1)
    folded = np.arange(first, stop) % period
    return np.minimum(folded, period - folded) if length > 1 else np.zeros_like(folded)


def brightness_contrast(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Values times 1 + contrast plus 255 brightness, rounded and clipped; uint8 (H, W, 3)."""
    values = np.arange(256) * (1 + contrast) + 255 * brightness
    table = np.clip(np.rint(values), 0, 255).astype(int).tolist()
    return np.asarray(Image.fromarray(image).point(table * 3))


def add_noise(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian noise of its own for every value, rounded and clipped; uint8 (H, W, 3).

    Since values are whole numbers, noise that is rounded beforehand gives the same sum. Drawing it from its
    65536 equally likely quantiles takes half the time of drawing normal numbers.
    """
    from scipy.special import ndtri

    quantiles = np.rint(sigma * ndtri((np.arange(65536) + 0.5) / 65536)).astype(np.int16)
    out = np.empty(image.shape, dtype=np.uint8)
    step = max(1, STRIP_VALUES // (image.shape[1] * 3))
    for top in range(0, image.shape[0], step):
        part = image[top : top + step]
        values = quantiles.take(rng.integers(65536, size=part.shape, dtype=np.uint16), mode="clip")
        values += part
        out[top : top + step] = np.clip(values, 0, 255, out=values)
    return out


def mean_blur(image: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels, reflect-101 at the borders, rounded; uint8 (H, W, 3)."""

    def blur(strip: np.ndarray) -> np.ndarray:
        return (_taps(_taps(strip, (1, 1, 1), 0), (1, 1, 1), 1) + 4) // 9

    return _in_strips(image, 1, blur)


def gaussian_blur(image: np.ndarray, taps: Sequence[int]) -> np.ndarray:
    """Separable blur with `taps`, 64ths that sum to one, reflect-101 at the borders; uint8 (H, W, 3)."""

    def blur(strip: np.ndarray) -> np.ndarray:
        # Quarters of a level are kept between the passes: 255 * 4 * 64 is the most that 16 bits hold.
        quarters = (_taps(strip, taps, 0) + 8) >> 4
        return (_taps(quarters, taps, 1) + 128) >> 8

    return _in_strips(image, len(taps) // 2, blur)


def _in_strips(image: np.ndarray, margin: int, blur: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `blur` to strips of rows, uint16 with `margin` reflected pixels on all sides, which it removes."""
    height, width = image.shape[:2]
    out = np.empty(image.shape, dtype=np.uint8)
    columns = _reflected(-margin, width + margin, width)
    step = max(1, STRIP_VALUES // (width * 3))
    for top in range(0, height, step):
        bottom = min(top + step, height)
        rows = _reflected(top - margin, bottom + margin, height)
        out[top:bottom] = blur(image[rows][:, columns].astype(np.uint16))
    return out


def _taps(values: np.ndarray, taps: Sequence[int], axis: int) -> np.ndarray:
    """Sum of neighbours along an axis, each times its symmetric tap; no result at the ends, sums fit 16 bits."""
    half, length = len(taps) // 2, values.shape[axis] - len(taps) + 1

    def shifted(by: int) -> np.ndarray:
        return values[by : by + length] if axis == 0 else values[:, by : by + length]

    out = shifted(half) * np.uint16(taps[half])
    for offset in range(half):
        pair = shifted(offset) + shifted(2 * half - offset)
        out += pair * np.uint16(taps[offset])
    return out


def jitter(
    image: np.ndarray,
    brightness: float,
    contrast: float,
    saturation: float,
    hue: float,
    order: Sequence[int] | np.ndarray = (0, 1, 2, 3),
) -> np.ndarray:
    """Colour jitter; uint8 (H, W, 3).

    brightness: factor of the values. contrast: of their distance from the mean grey. saturation: of their
    distance from their own grey. hue: shift in full turns of the colour circle. order: of these four.
    """
    picture = Image.fromarray(image)
    for step in order:
        if step == 3:
            picture = _hue_shifted(picture, hue)
        else:
            kind = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[step]
            picture = kind(picture).enhance((brightness, contrast, saturation)[step])
    return np.asarray(picture)


def _hue_shifted(picture: Image.Image, turns: float) -> Image.Image:
    shift = round(turns * 256)
    return (
        picture.convert("HSV")
        .point([*((value + shift) % 256 for value in range(256)), *range(256), *range(256)])
        .convert("RGB")
    )
