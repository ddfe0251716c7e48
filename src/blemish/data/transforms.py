"""Pictures to network inputs, masks to targets, maps back to pictures, and tiles in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from blemish.errors import BadOption

STRIP_VALUES = 1 << 20
SQUARES = "square"  # in place of a tile's side: squares of each picture's shorter side


def preprocess(
    image: np.ndarray, size: int | tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Network input: resized to exactly `size` (aspect ratio not kept), scaled to 0..1, normalised.

    image: uint8 (H, W, 3). size: side, or (height, width), in pixels. mean, std: per channel, for 0..1.
    The resize is PIL's bicubic with its antialiasing, as in the published methods' code.
    Returns float32 (3, height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    values = np.asarray(resized, dtype=np.float32) / np.float32(255)
    values -= np.asarray(mean, dtype=np.float32)
    values /= np.asarray(std, dtype=np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Ground truth at another size: PIL's bilinear resize, then greater than half of 255.

    mask: uint8 (H, W), 0 or 255. size: side, or (height, width). Returns bool (height, width).
    """
    height, width = (size, size) if isinstance(size, int) else size
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)) >= 128


def _sources(length: int, given: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower index, upper index, float32 weight of the upper) for `length` outputs over `given` inputs."""
    position = np.maximum((np.arange(length) + 0.5) * (given / length) - 0.5, 0.0)
    lower = np.minimum(position.astype(np.int64), given - 1)
    return lower, np.minimum(lower + 1, given - 1), (position - lower).astype(np.float32)


def map_to_size(anomaly_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resize of a map: corners not aligned, no antialiasing, equal to torch's `interpolate`.

    anomaly_map: float32 (h, w). size: (H, W). Returns float32 (H, W); the map itself when it has that size.
    Works in strips of rows, so that besides the result only a few megabytes are held.
    """
    height, width = size
    if anomaly_map.shape == (height, width):
        return anomaly_map
    left, right, across = _sources(width, anomaly_map.shape[1])
    above, below, down = _sources(height, anomaly_map.shape[0])
    out = np.empty((height, width), dtype=np.float32)
    rows = max(1, STRIP_VALUES // width)
    for top in range(0, height, rows):
        part = slice(top, min(top + rows, height))
        first, last = int(above[part][0]), int(below[part][-1])
        source = anomaly_map[first : last + 1]
        low = source[:, left]
        # a + (b - a) w rather than a (1 - w) + b w: constant maps stay constant to the last bit
        wide = low + (source[:, right] - low) * across
        upper = wide[above[part] - first]
        out[part] = upper + (wide[below[part] - first] - upper) * down[part, None]
    return out


class Box(NamedTuple):
    """A rectangle in pixels; x1 and y1 are exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int


def tiles(width: int, height: int, tile: int, overlap: float = 0.25) -> list[Box]:
    """Boxes that cover a picture, row by row.

    tile: side in pixels; where the picture is smaller the box is as large as the picture. overlap: share of a
    tile that it has in common with the next, 0 to 0.9. The last box of a row or column is shifted inwards, so
    all boxes have one size. Raises BadOption for impossible values.
    """
    if tile < 1:
        raise BadOption(f"tile is {tile}; expected a side of at least 1 pixel")
    if not 0 <= overlap <= 0.9:
        raise BadOption(f"overlap is {overlap}; expected a share of the tile from 0 to 0.9")
    stride = max(1, round(tile * (1 - overlap)))
    return [
        Box(x, y, min(x + tile, width), min(y + tile, height))
        for y in _starts(height, tile, stride)
        for x in _starts(width, tile, stride)
    ]


def squares(width: int, height: int) -> list[Box]:
    """The fewest boxes as wide as they are high that cover a picture: of its shorter side, evenly along the longer.

    Two of them, which overlap, for pictures less than twice as long as wide.
    """
    side, long = sorted((width, height))
    count = -(-long // side)
    starts = [round(i * (long - side) / max(count - 1, 1)) for i in range(count)]
    across = width > height
    return [Box(s, 0, s + side, side) if across else Box(0, s, side, s + side) for s in starts]


def cut_boxes(size: tuple[int, int], tile: int | str | None, overlap: float = 0.25) -> tuple[Box, ...]:
    """The boxes of a picture of `size` (H, W) that the network sees one by one; none when it sees it whole.

    tile: side of `tiles` in pixels, SQUARES for `squares`, None for whole pictures. Raises BadOption.
    """
    height, width = size
    if tile is None or (height == width if isinstance(tile, str) else max(size) <= tile):
        return ()
    return tuple(squares(width, height) if isinstance(tile, str) else tiles(width, height, tile, overlap))


def _starts(length: int, tile: int, stride: int) -> list[int]:
    last = max(length - tile, 0)
    return [*range(0, last, stride), last]


def _window(length: int) -> np.ndarray:
    """Raised cosine, float32 (length,): positive everywhere, smallest at both ends."""
    return np.square(np.sin(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)


class TileBlender:
    """Maps of overlapping tiles -> one map, the mean weighted by a raised cosine over each tile.

    height, width: size of the whole map. even: the plain mean, without weights. Memory: two float32 values a
    pixel. The mean is kept up to date as tiles come (mean += (value - mean) * w / sum of w), so equal values
    blend to exactly that value.
    """

    def __init__(self, height: int, width: int, even: bool = False) -> None:
        self._even = even
        self._mean = np.zeros((height, width), dtype=np.float32)
        self._weight = np.zeros((height, width), dtype=np.float32)

    def add(self, box: Box, anomaly_map: np.ndarray) -> None:
        """Blend one tile in. anomaly_map: (y1 - y0, x1 - x0); ValueError if it does not fit the box."""
        place = (slice(box.y0, box.y1), slice(box.x0, box.x1))
        mean, weight = self._mean[place], self._weight[place]
        if anomaly_map.shape != mean.shape or mean.shape != (box.y1 - box.y0, box.x1 - box.x0):
            raise ValueError(f"map of {anomaly_map.shape} does not fit {box} of a {self._mean.shape} map")
        window = _window(mean.shape[0])[:, None] * _window(mean.shape[1])
        if self._even:
            window = np.ones_like(window)
        weight += window
        mean += (anomaly_map.astype(np.float32, copy=False) - mean) * (window / weight)

    def result(self) -> np.ndarray:
        """float32 (height, width). Raises ValueError while a pixel is not covered by any tile."""
        if not self._weight.all():
            raise ValueError(f"{int((self._weight == 0).sum())} pixels are covered by no tile")
        return self._mean
