"""Where a method's texts look: one picture of all heads, layers and states of an image.

The colour of a patch says how much attention it gets against an even spread over all patches, on one
logarithmic scale for every head, layer, image and method: heads differ by a factor of hundreds, and on a scale
of their own even heads would look as decided as peaked ones.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from blemish.output.pictures import colorize, overlay

STATES = ("normal", "abnormal")
# Multiples of the even spread at both ends of the scale, as powers of two.
SCALE = (-2.0, 6.0)
PANEL, GAP, LABELS, LINE = 144, 6, 92, 18
PAPER, INK, FAINT = (255, 255, 255), (24, 20, 32), (110, 104, 120)


def attention_sheet(image: np.ndarray, attention: np.ndarray, blocks: Sequence[int]) -> np.ndarray:
    """All attention maps of one image in a table: a row for each layer and text, a column for each head.

    image: uint8 (H, W, 3). attention: (layers, heads, 2, rows, columns), normal text first, every map adding
    up to 1. blocks: the number of each layer's image block. The first column is the mean of the heads; above
    each panel stands its largest value as a multiple of the even spread. Returns uint8 (h, w, 3).
    """
    layers, heads, states = attention.shape[:3]
    if states != len(STATES) or len(blocks) != layers:
        raise ValueError(
            f"attention is {attention.shape} for {len(blocks)} blocks; expected (layers, heads, 2, ..)"
        )
    photo = _photo(image)
    height, width = photo.shape[:2]
    columns = np.concatenate([attention.mean(axis=1, keepdims=True), attention], axis=1)
    across, down = width + GAP, height + LINE + GAP
    total = (LABELS + across * (heads + 1), LINE + down * layers * len(STATES) + 3 * LINE)
    sheet = Image.new("RGB", total, PAPER)
    pen = ImageDraw.Draw(sheet)
    for column in range(heads + 1):
        _write(pen, (LABELS + column * across, 2), "mean" if column == 0 else f"head {column}")
    for row in range(layers * len(STATES)):
        layer, state = divmod(row, len(STATES))
        top = LINE + row * down
        _write(pen, (GAP, top + LINE + height // 2 - LINE), f"block {blocks[layer]}")
        _write(pen, (GAP, top + LINE + height // 2), STATES[state])
        for column in range(heads + 1):
            values = columns[layer, column, state]
            left = LABELS + column * across
            largest = float(values.max()) * values.size
            _write(pen, (left, top + 2), f"to {largest:.3g}x", FAINT)
            sheet.paste(Image.fromarray(_panel(photo, values)), (left, top + LINE))
    _legend(sheet, pen, total[1] - 3 * LINE + GAP)
    return np.asarray(sheet)


def _photo(image: np.ndarray) -> np.ndarray:
    """The picture in grey at the panels' size, whose longer side is PANEL pixels; small ones are enlarged."""
    height, width = image.shape[:2]
    scale = PANEL / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    kind = Image.Resampling.BOX if scale < 0.25 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).convert("L").resize(size, kind).convert("RGB"))


def _panel(photo: np.ndarray, values: np.ndarray) -> np.ndarray:
    """One map (rows, columns) over the photo; patches keep their edges, as nothing is known within them."""
    # An attention of exactly 0 is far below the scale, and its logarithm would be a warning.
    multiple = np.log2(np.maximum(values.astype(np.float32) * values.size, 2.0 ** (SCALE[0] - 1)))
    size = photo.shape[1], photo.shape[0]
    return overlay(photo, np.asarray(Image.fromarray(multiple).resize(size, Image.Resampling.NEAREST)), SCALE)


def _legend(sheet: Image.Image, pen: ImageDraw.ImageDraw, top: int) -> None:
    """The colour scale with its multiples, and what they mean."""
    steps = int(SCALE[1] - SCALE[0])
    width = 32 * steps
    bar = colorize(np.linspace(*SCALE, width, dtype=np.float32)[None].repeat(LINE - 6, axis=0), SCALE)
    sheet.paste(Image.fromarray(bar), (LABELS, top))
    for power in range(0, steps + 1, 2):
        exponent = int(SCALE[0]) + power
        text = f"{2**exponent}" if exponent >= 0 else f"1/{2**-exponent}"
        _write(pen, (LABELS + 32 * power - 3 * len(text), top + LINE - 4), f"{text}x")
    _write(pen, (LABELS + width + 3 * GAP, top - 2), "attention, 1x = even over all patches")


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, color: tuple[int, int, int] = INK
) -> None:
    pen.text(place, text, fill=color, font=_font())


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)
