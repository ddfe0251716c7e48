"""Strong but normal features of surfaces: seams, steps, screws, welds, print, glare, shadows, cables, borders.

They are drawn into normal and defective pictures alike, so that a detector learns to leave them alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from blemish.synth.fields import (
    Field,
    Rng,
    chance,
    clouds,
    colour_array,
    edge,
    log_uniform,
    mix,
    rotated,
    spectral,
    step,
)
from blemish.synth.lettering import write
from blemish.synth.palette import random_colour


def _across(rng: Rng, size: int) -> tuple[Field, Field]:
    """Coordinates along and across a random line through the picture, mostly parallel to a side."""
    angle = float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.03)
    if chance(rng, 0.25):
        angle = rng.uniform(0, math.pi)
    u, v = rotated(size, (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)), angle)
    return u, v


def seam(rng: Rng, image: Field) -> Field:
    """A joint or groove through the whole picture, sometimes two in parallel."""
    _, v = _across(rng, image.shape[1])
    if chance(rng, 0.3):
        v = np.abs(v) - rng.uniform(0.05, 0.3)
    half = log_uniform(rng, 0.002, 0.012)
    line = step(np.abs(v) - half, half * rng.uniform(0.5, 2) + 0.003)
    lip = step(np.abs(v - 2.2 * half) - half * 0.6, half + 0.003)
    joined: Field = image * (1 - rng.uniform(0.25, 0.8) * line) + rng.uniform(0, 0.2) * lip
    return joined


def ledge(rng: Rng, image: Field) -> Field:
    """A step between two areas, one lighter or of another colour."""
    _, v = _across(rng, image.shape[1])
    side = step(v, log_uniform(rng, 0.004, 0.03))
    if chance(rng, 0.5):
        tint = colour_array((rng.uniform(0.5, 1.5) * rng.uniform(0.9, 1.1, 3)).tolist())
        return image * (1 + (tint - 1) * side)
    grain = rng.uniform(0, 0.04) * spectral(rng, image.shape[1], slope=rng.uniform(0.3, 1.5))
    return mix(image, colour_array(random_colour(rng, grey=0.6)) + grain, side)


def screws(rng: Rng, image: Field) -> Field:
    """One to four equal screw heads or drilled holes in a regular arrangement."""
    size = image.shape[1]
    u, v = rotated(size, (rng.uniform(0.3, 0.7), rng.uniform(0.3, 0.7)), rng.normal(0, 0.1))
    kind = int(rng.integers(3))
    du = np.abs(u) - rng.uniform(0.1, 0.4) if kind > 0 else u
    dv = np.abs(v) - rng.uniform(0.1, 0.4) if kind > 1 else v
    radius = log_uniform(rng, 0.018, 0.07)
    r = np.sqrt(du * du + dv * dv)
    head = edge(r - radius)
    if chance(rng, 0.4):
        hole = mix(image, rng.uniform(0.02, 0.15), head)
        return hole + rng.uniform(0, 0.25) * step(np.abs(r - radius * 1.12) - radius * 0.1, 0.006)
    turn = rng.uniform(0, math.pi)
    a, b = du * math.cos(turn) + dv * math.sin(turn), dv * math.cos(turn) - du * math.sin(turn)
    slot = np.abs(a) if chance(rng, 0.4) else np.minimum(np.abs(a), np.abs(b))
    light = 1 + 0.25 * (du + dv) / radius
    image = mix(image, rng.uniform(0.3, 0.85) * light, head)
    image = image * (1 - 0.7 * step(np.maximum(slot - radius * 0.13, r - radius * 0.75), 0.006))
    return image * (1 - 0.5 * step(np.abs(r - radius) - 0.003, 0.006))


def weld(rng: Rng, image: Field) -> Field:
    """A rippled bead."""
    u, v = _across(rng, image.shape[1])
    half = rng.uniform(0.03, 0.08)
    v = v + 0.1 * half * clouds(rng, image.shape[1], 8)
    t = np.clip(v / half, -1, 1)
    ripple = np.sin(
        (u + half * np.sqrt(np.maximum(1 - t * t, 0))) * (2 * math.pi / (half * rng.uniform(0.25, 0.6)))
    )
    bead = 0.35 + 0.35 * np.sqrt(np.maximum(1 - t * t, 0)) + 0.12 * ripple
    return mix(image, bead * rng.uniform(0.7, 1.3), step(np.abs(v) - half, 0.008))


def border(rng: Rng, image: Field) -> Field:
    """The end of the part: beyond a straight or curved line lies the table."""
    size = image.shape[1]
    u, v = rotated(size, (0.5, 0.5), rng.uniform(0, 2 * math.pi))
    distance = v + rng.uniform(0, 0.6) * u * u - rng.uniform(0.25, 0.45)
    table = colour_array(random_colour(rng, grey=0.7)) + 0.01 * clouds(rng, size, 3)
    shade = 1 - rng.uniform(0, 0.5) * step(np.abs(distance) - 0.01, 0.04)
    return mix(image * shade, table * shade, edge(-distance))


def glare(rng: Rng, image: Field) -> Field:
    """A lamp's reflection: a bright spot or bar, sharp or soft."""
    size = image.shape[1]
    u, v = rotated(size, (rng.random(), rng.random()), rng.uniform(0, math.pi), log_uniform(rng, 0.5, 2))
    wide = log_uniform(rng, 0.01, 0.12)
    far = np.hypot(u, v) if chance(rng, 0.5) else np.maximum(np.abs(u) * rng.uniform(0.05, 0.5), np.abs(v))
    return mix(image, 1.0, rng.uniform(0.2, 0.9) * step(far - wide, wide * rng.uniform(0.2, 2)))


def shade(rng: Rng, image: Field) -> Field:
    """The shadow of something outside the picture, with a soft or a sharp edge."""
    size = image.shape[1]
    u, v = rotated(size, (rng.random(), rng.random()), rng.uniform(0, math.pi))
    reach = v + rng.uniform(0, 0.8) * u * u
    if chance(rng, 0.3):
        reach = np.abs(reach) - rng.uniform(0.02, 0.1)
    return image * (1 - rng.uniform(0.15, 0.55) * step(reach, log_uniform(rng, 0.01, 0.2)))


def label(rng: Rng, image: Field) -> Field:
    """Printing on the part itself, or on a sticker."""
    size = image.shape[1]
    if chance(rng, 0.4):
        u, v = rotated(size, (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)), rng.normal(0, 0.1))
        sticker = np.maximum(np.abs(u) - rng.uniform(0.1, 0.3), np.abs(v) - rng.uniform(0.05, 0.2))
        image = mix(image, colour_array(random_colour(rng, grey=0.6)), edge(sticker))
    canvas = Image.new("L", (size * 2, size * 2))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        write(rng, pen, size * 2)
    ink = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    tone = 0.0 if float(image.mean()) > 0.45 else 1.0
    tint = colour_array(random_colour(rng)) if chance(rng, 0.3) else tone
    return mix(image, tint, rng.uniform(0.4, 0.95) * ink)


def slots(rng: Rng, image: Field) -> Field:
    """A row of equal vents, ribs, rivets or scale marks."""
    size = image.shape[1]
    angle = float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.03)
    u, v = rotated(size, (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)), angle)
    pitch = log_uniform(rng, 0.03, 0.15)
    place = u / pitch
    du = np.abs(place - np.floor(place) - 0.5) * pitch
    half, high = pitch * rng.uniform(0.08, 0.3), log_uniform(rng, 0.02, 0.25)
    mark = np.maximum(du - half, np.abs(v) - high)
    if chance(rng, 0.3):
        mark = np.hypot(du, v) - pitch * rng.uniform(0.12, 0.35)
    cover = edge(np.maximum(mark, np.abs(u) - rng.uniform(0.1, 0.6)))
    lit = rng.uniform(0, 0.3) * step(np.abs(mark - 0.006) - 0.004, 0.006)
    return mix(
        image, image * rng.uniform(0.1, 0.6) if chance(rng, 0.7) else rng.uniform(0.6, 1.0), cover
    ) + lit * (1 - cover)


def cord(rng: Rng, image: Field) -> Field:
    """A cable, pipe or strap that crosses the picture from side to side, with its highlight."""
    size = image.shape[1]
    u, v = _across(rng, size)
    half = log_uniform(rng, 0.012, 0.06)
    t = np.clip((v + rng.uniform(0, 0.05) * np.sin(u * rng.uniform(2, 8))) / half, -1.5, 1.5)
    body = colour_array(random_colour(rng)) * (0.45 + 0.65 * np.sqrt(np.maximum(1 - 0.9 * t * t, 0)))
    shadow = rng.uniform(0, 0.5) * step(np.abs(t - 0.6) - 1.1, 0.6)
    return mix(image * (1 - shadow), body, edge((np.abs(t) - 1) * half))


FITTINGS: tuple[Callable[[Rng, Field], Field], ...] = (
    seam, ledge, screws, weld, border, glare, shade, label, slots, cord,
)  # fmt: skip
ON_OBJECTS = (seam, screws, glare, shade, label, slots)
"""What may also be found on an object."""


def fit(rng: Rng, image: Field, kinds: Sequence[Callable[[Rng, Field], Field]] = FITTINGS) -> Field:
    """An image (3, S, S) with one or two normal features; never a defect."""
    for _ in range(1 + chance(rng, 0.25)):
        image = kinds[int(rng.integers(len(kinds)))](rng, image)
    return np.clip(image, 0, 1)
