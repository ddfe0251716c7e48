"""What a person looks at: heat maps on a fixed scale, overlays with contours, the colour bar, thumbnails.

The colour scale runs from near-black violet over red to pale yellow with lightness rising evenly, so that it
reads in every common kind of colour blindness and in grey. It belongs to the method's range of map values,
never to one image: the same colour is the same value in every picture.
"""

from __future__ import annotations

import functools
import io
import zlib

import numpy as np
from PIL import Image

# (position, chroma, hue in degrees) in OKLCH; lightness runs straight between the two numbers below
CONTROL_POINTS = (
    (0.00, 0.060, 285.0),
    (0.22, 0.150, 300.0),
    (0.45, 0.200, 355.0),
    (0.65, 0.190, 395.0),
    (0.82, 0.165, 430.0),
    (1.00, 0.110, 465.0),
)
LIGHTNESS = (0.16, 0.96)
# OKLab (B. Ottosson, 2020): from OKLab to cone responses, and from their cubes to linear sRGB
OKLAB_TO_CONES = np.array(
    [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
)
CONES_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
STRONGEST_BLEND = 0.78
STRIP_PIXELS = 1 << 16


def _linear_rgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    angle = np.deg2rad(hue)
    lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear: np.ndarray = (lab @ OKLAB_TO_CONES.T) ** 3 @ CONES_TO_RGB.T
    return linear


@functools.cache
def color_table() -> np.ndarray:
    """uint8 (256, 3): the sRGB colours of the scale, lowest value first."""
    steps = np.linspace(0, 1, 256)
    position, chroma, hue = np.array(CONTROL_POINTS).T
    lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * steps
    wanted, hues = np.interp(steps, position, chroma), np.interp(steps, position, hue)
    # Out of the sRGB gamut, chroma gives way and lightness and hue stay: bisect for the most that fits.
    low, high = np.zeros_like(steps), wanted
    for _ in range(20):
        middle = (low + high) / 2
        rgb = _linear_rgb(lightness, middle, hues)
        fits = ((rgb >= 0) & (rgb <= 1)).all(axis=1)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    rgb = _linear_rgb(lightness, low, hues).clip(0, 1)
    srgb = np.where(rgb <= 0.0031308, 12.92 * rgb, 1.055 * rgb ** (1 / 2.4) - 0.055)
    table: np.ndarray = np.rint(srgb * 255).astype(np.uint8)
    table.flags.writeable = False
    return table


def _unit(anomaly_map: np.ndarray, map_range: tuple[float, float]) -> np.ndarray:
    """Map values as float32 positions 0..1 on the fixed scale."""
    low, high = map_range
    if not low < high:
        raise ValueError(f"map_range is ({low}, {high}); expected two rising numbers")
    unit = anomaly_map.astype(np.float32)
    unit -= np.float32(low)
    unit *= np.float32(1 / (high - low))
    np.clip(unit, 0, 1, out=unit)
    return unit


def _index(anomaly_map: np.ndarray, map_range: tuple[float, float]) -> np.ndarray:
    """Map values as uint8 indices of the colour table."""
    unit = _unit(anomaly_map, map_range)
    unit *= 255
    index: np.ndarray = np.rint(unit, out=unit).astype(np.uint8)
    return index


def colorize(anomaly_map: np.ndarray, map_range: tuple[float, float]) -> np.ndarray:
    """A map (H, W) as colours, uint8 (H, W, 3); values beyond `map_range` get the end colours."""
    colors: np.ndarray = color_table()[_index(anomaly_map, map_range)]
    return colors


def overlay(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    map_range: tuple[float, float],
    mask: np.ndarray | None = None,
    max_side: int = 2048,
) -> np.ndarray:
    """The photo with its heat map over it and a line around what is above the pixel threshold.

    image: uint8 (H, W, 3). anomaly_map: float32 (H, W). mask: bool (H, W) or None. The heat map covers more
    the higher its value, so that normal areas stay a photo. Pictures longer than `max_side` are made smaller;
    the smallest region keeps at least one pixel inside its outline. Returns uint8 (h, w, 3).
    """
    size = _size_within(image, max_side)
    if size is not None:
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    return _heat_over(image, anomaly_map, map_range, mask)


def _size_within(image: np.ndarray, max_side: int) -> tuple[int, int] | None:
    """(width, height) of the picture made smaller, or None when no side is longer than `max_side`."""
    height, width = image.shape[:2]
    scale = max_side / max(height, width)
    return None if scale >= 1 else (max(1, round(width * scale)), max(1, round(height * scale)))


def _heat_over(
    photo: np.ndarray, anomaly_map: np.ndarray, map_range: tuple[float, float], mask: np.ndarray | None
) -> np.ndarray:
    """`overlay` for a photo, uint8 (h, w, 3), that is no larger than the map and mask, (H, W)."""
    (height, width), (rows, columns) = anomaly_map.shape, photo.shape[:2]
    if (height, width) != (rows, columns):
        anomaly_map = np.asarray(Image.fromarray(anomaly_map).resize((columns, rows), Image.Resampling.BOX))
        if mask is not None:
            tops, lefts = (np.arange(n) * full // n for n, full in ((rows, height), (columns, width)))
            mask = np.logical_or.reduceat(np.logical_or.reduceat(mask, tops, axis=0), lefts, axis=1)
    kept, added = _blend_tables()
    picture = np.empty_like(photo)
    step = max(1, STRIP_PIXELS // columns)
    for top in range(0, rows, step):
        strip = slice(top, top + step)
        index = _index(anomaly_map[strip], map_range)
        mixed = photo[strip] * kept[index][:, :, None]
        mixed += added[index]
        picture[strip] = mixed >> 8
    if mask is not None and mask.any():
        _draw_contour(picture, mask)
    return picture


@functools.cache
def _blend_tables() -> tuple[np.ndarray, np.ndarray]:
    """Per colour of the scale, in 256ths: share of the photo, uint16 (256,); what the colour adds (256, 3)."""
    unit = np.linspace(0, 1, 256)
    # Low values are dark colours: as a tint they would only dirty the photo, so they fade in softly.
    blend = np.rint(256 * STRONGEST_BLEND * unit**0.75 * np.clip(unit * 4, 0, 1)).astype(np.uint16)
    return 256 - blend, color_table() * blend[:, None] + np.uint16(128)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask with every pixel's eight neighbours."""
    wide = mask.copy()
    wide[:, 1:] |= mask[:, :-1]
    wide[:, :-1] |= mask[:, 1:]
    grown = wide.copy()
    grown[1:] |= wide[:-1]
    grown[:-1] |= wide[1:]
    return grown


def _draw_contour(picture: np.ndarray, mask: np.ndarray) -> None:
    """A white line around the mask with a dark edge on either side, 1 to 3 pixels wide; changes `picture`."""
    longest = max(picture.shape[:2])
    inner = outer = _grown(mask)
    for _ in range(1 if longest < 700 else 2 if longest < 1400 else 3):
        outer = _grown(outer)
    picture[_grown(outer) & ~outer] = (16, 12, 24)
    picture[outer & ~inner] = (255, 255, 255)
    picture[inner & ~mask] = (16, 12, 24)


def color_bar_png(
    map_range: tuple[float, float], threshold: float | None = None, size: tuple[int, int] = (512, 20)
) -> bytes:
    """The scale as a horizontal bar, lowest value left, with a mark at the pixel threshold. PNG.

    size: (width, height) in pixels.
    """
    width, height = size
    low, high = map_range
    row = colorize(np.linspace(low, high, width, dtype=np.float32)[None], map_range)
    bar = np.repeat(row, height, axis=0)
    if threshold is not None and low <= threshold <= high:
        middle = round((threshold - low) / (high - low) * (width - 1))
        bar[:, max(0, middle - 3) : middle + 4] = (16, 12, 24)
        bar[:, max(0, middle - 1) : middle + 2] = (255, 255, 255)
    return _encoded(bar, "PNG")


def png_bytes(picture: np.ndarray) -> bytes:
    """A picture, uint8 (H, W, 3), as PNG; packed for speed.

    Run lengths alone cost two thirds of the time of the usual search for repetitions, which photos do not
    have: after PNG's filters they come out as small.
    """
    return _encoded(picture, "PNG", compress_type=zlib.Z_RLE)


def thumbnail(image: np.ndarray, max_side: int = 448) -> bytes:
    """A picture, uint8 (H, W, 3), as JPEG no longer than `max_side`; smaller ones keep their size."""
    return _jpeg(_small(image, max_side))


def gallery_pair(
    image: np.ndarray,
    anomaly_map: np.ndarray,
    map_range: tuple[float, float],
    mask: np.ndarray | None = None,
    max_side: int = 448,
) -> tuple[bytes, bytes]:
    """(photo, overlay) of one image as the gallery shows them: JPEG, one size. Arguments as for `overlay`."""
    photo = _small(image, max_side)
    return _jpeg(photo), _jpeg(_heat_over(photo, anomaly_map, map_range, mask))


def _small(image: np.ndarray, max_side: int) -> np.ndarray:
    size = _size_within(image, max_side)
    if size is None:
        return image
    far = size[0] * 4 < image.shape[1]
    # Hamming: as sharp as bicubic when making smaller, in half the time of Lanczos
    kind = Image.Resampling.BOX if far else Image.Resampling.HAMMING
    return np.asarray(Image.fromarray(image).resize(size, kind))


def _jpeg(picture: np.ndarray) -> bytes:
    return _encoded(picture, "JPEG", quality=80, optimize=True)


def _encoded(picture: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format=kind, **options)
    return buffer.getvalue()
