"""Building blocks of drawn pictures: grids, noise fields, soft shapes and anti-aliased strokes, all float32.

Lengths and positions are fractions of the picture's side, (0, 0) top left, so that the same draw looks alike at
any size. Images are (3, S, S) with values around [0, 1], fields are (S, S).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft, ndimage

Field = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Points = Sequence[tuple[float, float]]
Rng = np.random.Generator


@lru_cache(maxsize=8)
def grid(size: int) -> tuple[Field, Field]:
    """Pixel centres (y, x), each (S, S), from 0 to 1. Read-only: the arrays are shared."""
    line = (np.arange(size, dtype=np.float32) + 0.5) / size
    y, x = (np.ascontiguousarray(g) for g in np.meshgrid(line, line, indexing="ij"))
    y.setflags(write=False)
    x.setflags(write=False)
    return y, x


@lru_cache(maxsize=8)
def _frequencies(size: int) -> tuple[Field, Field]:
    fy = (np.fft.fftfreq(size) * size).astype(np.float32)[:, None]
    fx = (np.fft.rfftfreq(size) * size).astype(np.float32)[None]
    return fy, fx


def log_uniform(rng: Rng, low: float, high: float) -> float:
    """A number in [low, high] whose logarithm is uniform."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def chance(rng: Rng, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def unit(field: Field) -> Field:
    """The field shifted and scaled to mean 0 and standard deviation 1."""
    centred = field - float(field.mean())
    flat = centred.ravel()
    centred *= 1.0 / (math.sqrt(float(flat @ flat) / flat.size) + 1e-6)
    return centred


def spectral(
    rng: Rng,
    size: int,
    *,
    slope: float = 1.0,
    stretch: float = 1.0,
    angle: float = 0.0,
    band: tuple[float, float] | None = None,
) -> Field:
    """Gaussian noise with a chosen spectrum, mean 0, standard deviation 1.

    slope: amplitude falls as frequency ** -slope (0 white, 1 cloudy, 2 very smooth). stretch: how many times longer
    the grain is along `angle` (radians) than across. band: (frequency, width) in cycles per picture side
    selects a ring of frequencies instead of the slope.
    """
    n = int(fft.next_fast_len(size, real=True))
    fy, fx = _frequencies(n)
    if stretch == 1.0:
        squared = fx * fx + fy * fy
    else:
        c, s = math.cos(angle), math.sin(angle)
        along, across = (fx * c + fy * s) * stretch, fy * c - fx * s
        squared = along * along + across * across
    if band is None:
        amplitude = (squared + 1.0) ** (-0.5 * slope)
    else:
        amplitude = np.exp(-(((np.sqrt(squared) - band[0]) / band[1]) ** 2))
    # uniform real and imaginary parts are quicker to draw, and their sum over many frequencies is Gaussian too
    parts = rng.random((n, n // 2 + 1, 2), dtype=np.float32)
    parts -= 0.5
    phases = parts.view(np.complex64)[..., 0]
    phases *= amplitude
    phases[0, 0] = 0
    noise: Field = fft.irfft2(phases, s=(n, n))[:size, :size]
    return unit(noise)


def clouds(rng: Rng, size: int, cells: float) -> Field:
    """Smooth noise with about `cells` features along a side (at least 1), roughly unit deviation; cheap."""
    count = max(2, math.ceil(cells)) + 3
    small = rng.standard_normal((count, count), dtype=np.float32)
    big = Image.fromarray(small).resize(
        (size, size), Image.Resampling.BICUBIC, box=(1.5, 1.5, 1.5 + cells, 1.5 + cells)
    )
    return np.asarray(big, dtype=np.float32) * 1.5


def blur(field: Field, sigma: float, side: int | None = None) -> Field:
    """Gaussian blur of (..., H, W); sigma in fractions of `side` pixels, by default of W."""
    pixels = sigma * (side or field.shape[-1])
    if pixels < 0.2:
        return field
    widths = (0,) * (field.ndim - 2) + (pixels, pixels)
    blurred: Field = ndimage.gaussian_filter(field, widths, truncate=2.5)
    return blurred


def soft_blur(field: Field, factor: int) -> Field:
    """A strong cheap blur of (S, S): reduced `factor` times, then enlarged smoothly."""
    size = field.shape[-1]
    picture = Image.fromarray(field)
    small = max(2, size // max(1, factor))
    reduced = picture.resize((small, small), Image.Resampling.BOX)
    return np.asarray(reduced.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)


def step(distance: Field, softness: float) -> Field:
    """Coverage 1 where distance is negative, 0 where positive, a smooth ramp of width `softness` between."""
    t = np.clip(0.5 - distance / max(softness, 1e-6), 0.0, 1.0)
    ramp: Field = t * t * (3.0 - 2.0 * t)
    return ramp


def edge(distance: Field) -> Field:
    """Anti-aliased coverage of a shape given its signed distance (negative inside)."""
    coverage: Field = np.clip(0.5 - distance * distance.shape[-1], 0.0, 1.0)
    return coverage


def rotated(
    size: int, centre: tuple[float, float], angle: float, stretch: float = 1.0
) -> tuple[Field, Field]:
    """Coordinates (u, v) about centre (x, y), turned by `angle`; the picture is squashed `stretch` times along x."""
    y, x = grid(size)
    c, s = math.cos(angle), math.sin(angle)
    dx, dy = (x - centre[0]) * stretch, y - centre[1]
    return dx * c + dy * s, dy * c - dx * s


def blob(
    rng: Rng, size: int, centre: tuple[float, float], area: float, *, ragged: float | None = None
) -> Field:
    """Signed distance (approximate) of an irregular rounded patch with about the given area (fraction)."""
    aspect = log_uniform(rng, 1.0, 2.2)
    radius = math.sqrt(area / math.pi)
    u, v = rotated(size, centre, rng.uniform(0, math.pi))
    distance = np.sqrt(u * u * aspect + v * v / aspect) / radius
    amount = rng.uniform(0.05, 0.45) if ragged is None else ragged
    wobble = clouds(rng, size, min(0.9 / radius, size / 3))
    if chance(rng, 0.5) and radius * size > 8:
        wobble = wobble + 0.5 * clouds(rng, size, min(2.7 / radius, size / 3))
    field: Field = (distance - 1.0 + amount * wobble * np.minimum(distance, 1.0)) * radius
    return field


def curve(
    rng: Rng,
    start: tuple[float, float],
    length: float,
    *,
    bend: float = 2.0,
    wobble: float = 0.1,
    steps: int = 24,
) -> list[tuple[float, float]]:
    """A random walk of the given length. bend: radians turned over the walk; wobble: radians of jitter per step."""
    angle = rng.uniform(0, 2 * math.pi)
    turn = rng.normal(0, bend) / steps
    x, y = start
    points = [(x, y)]
    for jitter in rng.normal(0, 1, steps).tolist():
        angle += turn + wobble * jitter
        x += math.cos(angle) * length / steps
        y += math.sin(angle) * length / steps
        points.append((x, y))
    return points


def strokes(size: int, lines: Sequence[tuple[Points, Sequence[float]]]) -> Field:
    """Anti-aliased coverage of polylines. Each line is (points, widths), a width per segment, at least a third px."""
    factor = 3 if size <= 320 else 2
    scale = size * factor
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for points, widths in lines:
        corners = [(x * scale, y * scale) for x, y in points]
        for (x0, y0), (x1, y1), width in zip(corners, corners[1:], widths, strict=False):
            pixels = max(1, round(width * scale))
            pen.line((x0, y0, x1, y1), fill=255, width=pixels)
            if pixels > 3:
                r = pixels / 2
                pen.ellipse((x1 - r, y1 - r, x1 + r, y1 + r), fill=255)
    return np.asarray(canvas.reduce(factor), dtype=np.float32) / 255.0


def mix(image: Field, other: Field | float, coverage: Field) -> Field:
    """image where coverage is 0, other where it is 1. image (3, S, S); other broadcastable; coverage (S, S)."""
    mixed: Field = image + (other - image) * coverage
    return mixed


def colour_array(values: Sequence[float]) -> Field:
    """An RGB triple as (3, 1, 1)."""
    return np.asarray(values, dtype=np.float32).reshape(3, 1, 1)


def luma(image: Field) -> Field:
    """Brightness (S, S) of an RGB image (3, S, S)."""
    grey: Field = image[0] * 0.299 + image[1] * 0.587 + image[2] * 0.114
    return grey


def relief(height: Field, light: float) -> Field:
    """Slope of a height field towards the light (radians), positive where the surface faces it."""
    dy = np.empty_like(height)
    dx = np.empty_like(height)
    dy[1:-1] = (height[2:] - height[:-2]) * (0.5 * height.shape[0])
    dx[:, 1:-1] = (height[:, 2:] - height[:, :-2]) * (0.5 * height.shape[0])
    dy[0], dy[-1], dx[:, 0], dx[:, -1] = dy[1], dy[-2], dx[:, 1], dx[:, -2]
    slope: Field = dx * math.cos(light) + dy * math.sin(light)
    return slope


def bounds(mask: Mask, pad: int) -> tuple[slice, slice] | None:
    """Rows and columns around the True pixels, `pad` pixels wider on every side; None when there are none."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    height, width = mask.shape
    return (
        slice(max(0, int(rows[0]) - pad), min(height, int(rows[-1]) + pad + 1)),
        slice(max(0, int(columns[0]) - pad), min(width, int(columns[-1]) + pad + 1)),
    )


def close(mask: Mask, radius: float) -> Mask:
    """Morphological closing of a mask by a disc; radius in pixels, at least 1."""
    pad = math.ceil(radius) + 1
    wide = np.pad(mask, pad)
    if 1.42 < radius < 2:  # such a disc is the square of nine pixels
        square = np.ones((3, 3), dtype=bool)
        small: Mask = ndimage.binary_closing(wide, square)[pad:-pad, pad:-pad]
        return small
    grown = ndimage.distance_transform_edt(~wide) <= radius
    kept = ndimage.distance_transform_edt(grown) > radius
    closed: Mask = (kept | wide)[pad:-pad, pad:-pad]
    return closed
