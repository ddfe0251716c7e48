"""Print: letters, signs, bar codes and logos drawn with a pen, as labels and parts carry them."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageDraw, ImageFont

from blemish.synth.fields import Rng, chance, log_uniform

LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789abdeghnrst-./"


@lru_cache(maxsize=64)
def _font(height: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height)


def words(rng: Rng, count: int) -> str:
    """`count` random letters and figures with a gap now and then."""
    letters = [LETTERS[i] for i in rng.integers(0, len(LETTERS), count).tolist()]
    if count > 5 and chance(rng, 0.6):
        letters[int(rng.integers(2, count - 1))] = " "
    return "".join(letters)


def write(rng: Rng, pen: ImageDraw.ImageDraw, scale: int, *, level: int = 255, most: float = 0.12) -> None:
    """One printed thing somewhere on a canvas `scale` wide: text, strokes, box, ring, bar code, arrow or cross.

    level: the grey value drawn. most: the largest height, as a fraction of the canvas.
    """
    x, y = rng.uniform(0, 0.8) * scale, rng.uniform(0.02, 0.95) * scale
    height = log_uniform(rng, 0.02, most) * scale
    kind = rng.random()
    if kind < 0.5:
        text = words(rng, int(rng.integers(2, 16)))
        pen.text((x, y), text, fill=level, font=_font(max(8, 4 * round(height / 4))))
    elif kind < 0.65:
        for width in (rng.uniform(0.25, 0.8, int(rng.integers(3, 14))) * height).tolist():
            glyph(rng, pen, (x, y, x + width, y + height), level)
            x += width + height * 0.2
    elif kind < 0.74:
        line = max(2, round(height * 0.12))
        pen.rectangle((x, y, x + height * 3, y + height * 2), outline=level, width=line)
    elif kind < 0.82:
        pen.ellipse((x, y, x + height * 2, y + height * 2), outline=level, width=max(2, round(height * 0.2)))
    elif kind < 0.9:
        for width in (rng.integers(1, 5, int(rng.integers(10, 40))) * height * 0.05).tolist():
            pen.rectangle((x, y, x + width, y + height * 1.5), fill=level)
            x += width + height * rng.uniform(0.05, 0.2)
    else:
        line = max(2, round(height * 0.12))
        pen.line((x, y, x + height * 2, y), fill=level, width=line)
        pen.line((x + height, y - height, x + height, y + height), fill=level, width=line)


def glyph(rng: Rng, pen: ImageDraw.ImageDraw, spot: tuple[float, float, float, float], level: int) -> None:
    """A letter-like sign of two or three strokes inside (left, top, right, bottom)."""
    left, top, right, bottom = spot
    stroke = max(2, round((bottom - top) * 0.14))
    for kind in rng.integers(0, 6, int(rng.integers(2, 4))).tolist():
        if kind == 0:
            pen.line((left, top, left, bottom), fill=level, width=stroke)
        elif kind == 1:
            pen.line((left, bottom, right, bottom), fill=level, width=stroke)
        elif kind == 2:
            pen.line((left, (top + bottom) / 2, right, (top + bottom) / 2), fill=level, width=stroke)
        elif kind == 3:
            pen.ellipse((left, top, right, bottom), outline=level, width=stroke)
        elif kind == 4:
            pen.line((left, bottom, right, top), fill=level, width=stroke)
        else:
            pen.line((right, top, right, bottom), fill=level, width=stroke)
