"""Materials with repeated parts: weaves, stripes, tiles, meshes, dots, print and circuit line art.

Listed by name in `PATTERNS`. Where parts can be told apart, `Texture.labels`, `under` and `ink` describe them, so that
a defect can remove, move or bridge them exactly.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from blemish.synth.fields import (
    Field,
    Rng,
    chance,
    clouds,
    colour_array,
    edge,
    grid,
    log_uniform,
    mix,
    rotated,
    spectral,
    step,
)
from blemish.synth.palette import palette, random_colour
from blemish.synth.textures import Material, Texture

TAU = 2 * math.pi


def _frame(rng: Rng, size: int, *, wavy: float = 0.0, straight: float = 0.6) -> tuple[Field, Field]:
    """Pattern coordinates: turned, squashed, slightly in perspective, and `wavy` (fraction of the side) bent."""
    angle = rng.normal(0, 0.03) if chance(rng, straight) else rng.uniform(0, math.pi)
    u, v = rotated(size, (rng.random(), rng.random()), angle, log_uniform(rng, 0.65, 1.5))
    if straight < 0.95 and chance(rng, 0.3):
        depth = 1 + rng.uniform(-0.3, 0.3) * v
        u, v = u / depth, v / depth
    if wavy:
        u = u + wavy * clouds(rng, size, rng.uniform(1.5, 5))
        v = v + wavy * clouds(rng, size, rng.uniform(1.5, 5))
    return u, v


def _contrast_pair(rng: Rng) -> tuple[Field, Field]:
    """Two colours that differ in brightness by at least 0.15."""
    first = np.asarray(random_colour(rng))
    for _ in range(8):
        second = np.asarray(random_colour(rng))
        if abs(float(first.mean() - second.mean())) > 0.15:
            break
    else:
        second = (first + 0.5) % 1.0
    return colour_array(first.tolist()), colour_array(second.tolist())


def fabric(rng: Rng, size: int) -> Texture:
    """Plain, basket or twill weave: threads pass over and under."""
    pitch = log_uniform(rng, 0.018, 0.09)
    u, v = _frame(rng, size, wavy=pitch * rng.uniform(0.02, 0.2))
    a, b = u / pitch, v / pitch
    column, row = np.floor(a), np.floor(b)
    kind = int(rng.integers(3))
    if kind == 0:
        over = (column + row) % 2 < 0.5
    elif kind == 1:
        over = (np.floor(column / 2) + np.floor(row / 2)) % 2 < 0.5
    else:
        over = (column + row) % int(rng.integers(3, 5)) < 1.5
    warp, weft = np.abs(np.sin(a * math.pi)), np.abs(np.sin(b * math.pi))
    first, second = _contrast_pair(rng)
    if chance(rng, 0.6):
        second = first * rng.uniform(0.85, 1.0)
    deep = rng.uniform(0.15, 0.6)
    thread = np.where(over, warp * (0.7 + 0.3 * weft), weft * (0.7 + 0.3 * warp))
    image = np.where(over, first, second) * (1 - deep + deep * np.sqrt(thread))
    return Texture(image * (1 + rng.uniform(0.01, 0.08) * spectral(rng, size, slope=0.6)))


def knit(rng: Rng, size: int) -> Texture:
    """Rows of V-shaped loops."""
    pitch = log_uniform(rng, 0.03, 0.1)
    u, v = _frame(rng, size, wavy=pitch * 0.1)
    a = u / pitch
    lean = np.abs(a - np.floor(a) - 0.5) * rng.uniform(0.8, 1.6)
    loops = np.abs(np.sin((v / pitch + lean) * math.pi)) * (0.4 + 0.6 * np.sqrt(np.abs(np.sin(a * TAU))))
    image = palette(rng).paint(loops - 0.5, rng.uniform(0.08, 0.35))
    return Texture(image * (1 + rng.uniform(0.01, 0.06) * spectral(rng, size, slope=0.7)))


def stripes(rng: Rng, size: int) -> Texture:
    """Lines or bands in one direction, sharp or soft."""
    pitch = log_uniform(rng, 0.02, 0.25)
    u, _ = _frame(rng, size, wavy=pitch * rng.uniform(0, 0.1))
    wave = np.sin(u * (TAU / pitch))
    if chance(rng, 0.4):
        wave = wave + 0.6 * np.sin(u * (TAU / pitch) * 2 + 1.0)
    sharp = log_uniform(rng, 0.7, 12)
    first, second = _contrast_pair(rng)
    second = first + (second - first) * rng.uniform(0.15, 1.0)
    image = mix(first, second, 0.5 + 0.5 * np.tanh(wave * sharp))
    return Texture(image + rng.uniform(0.002, 0.03) * spectral(rng, size, slope=0.8))


def checks(rng: Rng, size: int) -> Texture:
    """Chequered or plaid."""
    pitch = log_uniform(rng, 0.04, 0.3)
    u, v = _frame(rng, size, wavy=pitch * rng.uniform(0, 0.05))
    sharp = log_uniform(rng, 2, 15)
    a = np.tanh(np.sin(u * (TAU / pitch)) * sharp)
    b = np.tanh(np.sin(v * (TAU / pitch)) * sharp)
    first, second = _contrast_pair(rng)
    field = 0.5 + 0.5 * a * b if chance(rng, 0.5) else 0.5 + 0.25 * (a + b)
    image = mix(first, second, field * rng.uniform(0.2, 1.0))
    return Texture(image + rng.uniform(0.002, 0.03) * spectral(rng, size, slope=0.8))


def corrugated(rng: Rng, size: int) -> Texture:
    """A ribbed sheet: shaded ridges, strong but normal."""
    pitch = log_uniform(rng, 0.05, 0.3)
    u, _ = _frame(rng, size)
    phase = u * (TAU / pitch)
    shade = np.sin(phase) + rng.uniform(0, 1.2) * np.clip(np.sin(phase + 0.7), 0, 1) ** 8
    image = palette(rng).paint(shade, rng.uniform(0.05, 0.2))
    return Texture(
        image + rng.uniform(0.002, 0.025) * spectral(rng, size, slope=0.6, stretch=6, angle=rng.uniform(0, 3))
    )


def _cells(u: Field, v: Field, pitch: float, shift: float) -> tuple[Field, Field, np.ndarray]:
    """Offsets inside each cell (fractions of the side) and cell numbers from 1, rows moved by `shift` cells."""
    row = np.floor(v / pitch)
    a = u / pitch + row * shift
    column = np.floor(a)
    labels = ((row - row.min()) * 997 + (column - column.min()) + 1).astype(np.int32)
    return (a - column - 0.5) * pitch, v - (row + 0.5) * pitch, labels


def dots(rng: Rng, size: int) -> Texture:
    """A regular lattice of dots, holes or bumps."""
    pitch = log_uniform(rng, 0.06, 0.28)
    u, v = _frame(rng, size)
    du, dv, labels = _cells(u, v, pitch, 0.5 * chance(rng, 0.5))
    radius = pitch * rng.uniform(0.15, 0.4)
    if chance(rng, 0.7):
        distance = np.sqrt(du * du + dv * dv) - radius
    else:
        distance = np.maximum(np.abs(du), np.abs(dv)) - radius
    first, second = _contrast_pair(rng)
    under = first + rng.uniform(0.004, 0.04) * spectral(rng, size, slope=rng.uniform(0.5, 1.5))
    light = rng.uniform(0, TAU)
    shade = 1 + rng.uniform(0, 0.4) * (du * math.cos(light) + dv * math.sin(light)) / radius
    cover = edge(distance)
    fore = second * shade
    return Texture(mix(under, fore, cover), under=under, labels=np.where(distance < 1.5 / size, labels, 0))


def cells(rng: Rng, size: int) -> Texture:
    """Irregular polygons with borders: scales, pebbles, crackle glaze, grains."""
    count = int(log_uniform(rng, 5, 22))
    half = size // 2
    y, x = grid(half)
    jitter = rng.uniform(0.1, 0.9, (count + 2, count + 2, 2)).astype(np.float32)
    tint = rng.standard_normal((count + 2, count + 2), dtype=np.float32)
    iy, ix = (y * count).astype(np.intp), (x * count).astype(np.intp)
    nearest = np.full((half, half), 9.0, dtype=np.float32)
    following = nearest.copy()
    value = np.zeros((half, half), dtype=np.float32)
    for dy in range(3):
        for dx in range(3):
            spot = jitter[iy + dy, ix + dx]
            distance = np.hypot(
                iy + (dy - 1) + spot[..., 0] - y * count, ix + (dx - 1) + spot[..., 1] - x * count
            )
            closer = distance < nearest
            following = np.where(closer, nearest, np.minimum(following, distance))
            value = np.where(closer, tint[iy + dy, ix + dx], value)
            nearest = np.minimum(nearest, distance)
    border = np.clip((following - nearest) * rng.uniform(2, 7), 0, 1)
    field = rng.uniform(0, 1) * value + rng.uniform(0.5, 2.5) * border
    big = Image.fromarray(field.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC)
    return Texture(palette(rng).paint(np.asarray(big) - 1.0, rng.uniform(0.04, 0.14)))


def tiles(rng: Rng, size: int) -> Texture:
    """Tiles or bricks with seams."""
    pitch = log_uniform(rng, 0.12, 0.5)
    u, v = _frame(rng, size, straight=0.85)
    brick = rng.uniform(1.0, 2.4)
    du, dv, labels = _cells(u / brick, v, pitch, 0.5 * chance(rng, 0.5))
    du = du * brick
    seam = pitch * rng.uniform(0.02, 0.08)
    inside = np.maximum(np.abs(du) - pitch * brick / 2, np.abs(dv) - pitch / 2) + seam
    tone = rng.normal(0, rng.uniform(0, 0.06), 4099).astype(np.float32)[labels % 4099]
    first, second = _contrast_pair(rng)
    texture = spectral(rng, size, slope=rng.uniform(0.6, 1.5))
    fore = first + tone + rng.uniform(0.005, 0.06) * texture
    under = second + 0.02 * texture
    cover = step(inside, max(seam * rng.uniform(0.2, 1.0), 1.0 / size))
    return Texture(mix(under, fore, cover), under=under, labels=np.where(inside < 0, labels, 0))


def mesh(rng: Rng, size: int) -> Texture:
    """Wires or a grid over a backdrop."""
    pitch = log_uniform(rng, 0.05, 0.2)
    u, v = _frame(rng, size, wavy=pitch * rng.uniform(0, 0.06))
    du, dv, _ = _cells(u, v, pitch, 0.0)
    half = pitch * rng.uniform(0.08, 0.25)
    wire = np.minimum(pitch / 2 - np.abs(du), pitch / 2 - np.abs(dv)) - half
    first, second = _contrast_pair(rng)
    under = first + 0.02 * clouds(rng, size, 4)
    fore = second * (1 - rng.uniform(0.1, 0.5) * np.clip(wire / half + 1, 0, 1) ** 2)
    fore = fore + rng.uniform(0, 0.04) * spectral(rng, size, slope=0.8)
    ink = edge(wire)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def panel(rng: Rng, size: int) -> Texture:
    """A solar-cell-like board: tinted plates, thin conductors, regular marks."""
    pitch = rng.uniform(0.25, 0.7)
    u, v = _frame(rng, size, straight=0.95)
    du, dv, _ = _cells(u, v, pitch, 0.0)
    base = palette(rng, ((0.1, 0.14, 0.3), (0.3, 0.3, 0.32), (0.2, 0.22, 0.25)), keep=0.9)
    grains = np.round(spectral(rng, size, slope=1.2) * 1.5) * rng.uniform(0, 0.7)
    under = base.paint(grains + 0.3 * spectral(rng, size, slope=0.8), rng.uniform(0.01, 0.05))
    thin = pitch / int(rng.integers(8, 20))
    fingers = np.abs(dv / thin - np.round(dv / thin)) * thin - 0.0018
    bus = pitch / int(rng.integers(2, 4))
    bars = np.abs(du / bus - np.round(du / bus)) * bus - rng.uniform(0.004, 0.012)
    seam = pitch / 2 - np.maximum(np.abs(du), np.abs(dv)) - rng.uniform(0.005, 0.02)
    ink = np.maximum(edge(fingers) * rng.uniform(0.3, 0.9), np.maximum(edge(bars), edge(seam)))
    fore = np.broadcast_to(base.base + rng.uniform(0.25, 0.5), under.shape)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def printed(rng: Rng, size: int) -> Texture:
    """A plain sheet or label with lines of print, logos and rulings that belong to it."""
    first, second = _contrast_pair(rng)
    under = first + rng.uniform(0.003, 0.02) * spectral(rng, size, slope=1.0)
    scale = size * 2
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 7))):
        x, y, height = (
            rng.uniform(0, 0.8) * scale,
            rng.uniform(0.02, 0.95) * scale,
            log_uniform(rng, 0.02, 0.12) * scale,
        )
        kind = rng.random()
        if kind < 0.7:
            for width in (rng.uniform(0.25, 0.8, int(rng.integers(3, 14))) * height).tolist():
                _glyph(rng, pen, x, y, width, height)
                x += width + height * 0.2
        elif kind < 0.85:
            pen.rectangle(
                (x, y, x + height * 3, y + height * 2), outline=255, width=max(2, int(height * 0.12))
            )
        else:
            pen.ellipse((x, y, x + height * 2, y + height * 2), outline=255, width=max(2, int(height * 0.2)))
    ink = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    if chance(rng, 0.3):
        ink = np.ascontiguousarray(np.rot90(ink, int(rng.integers(1, 4))))
    fore = np.broadcast_to(second, under.shape)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def _glyph(rng: Rng, pen: ImageDraw.ImageDraw, x: float, y: float, width: float, height: float) -> None:
    """A letter-like sign made of two or three strokes."""
    stroke = max(2, round(height * 0.14))
    left, right, top, bottom = x, x + width, y, y + height
    for kind in rng.integers(0, 6, int(rng.integers(2, 4))).tolist():
        if kind == 0:
            pen.line((left, top, left, bottom), fill=255, width=stroke)
        elif kind == 1:
            pen.line((left, bottom, right, bottom), fill=255, width=stroke)
        elif kind == 2:
            pen.line((left, (top + bottom) / 2, right, (top + bottom) / 2), fill=255, width=stroke)
        elif kind == 3:
            pen.ellipse((left, top, right, bottom), outline=255, width=stroke)
        elif kind == 4:
            pen.line((left, bottom, right, top), fill=255, width=stroke)
        else:
            pen.line((right, top, right, bottom), fill=255, width=stroke)


def circuit(rng: Rng, size: int) -> Texture:
    """Tracks, pads and vias of a printed board, as a photo or as a black-and-white scan."""
    scale = size * 3
    canvas = Image.new("L", (scale, scale))
    _tracks(rng, ImageDraw.Draw(canvas), scale)
    ink = np.asarray(canvas.reduce(3), dtype=np.float32) / 255
    if chance(rng, 0.5):
        ink = np.ascontiguousarray(ink.T)
    if chance(rng, 0.6):
        dark, light = rng.uniform(0, 0.12), rng.uniform(0.85, 1.0)
        first, second = colour_array((dark,) * 3), colour_array((light,) * 3)
        if chance(rng, 0.35):
            first, second = second, first
        grain = rng.uniform(0, 0.01)
    else:
        green = (0.05, rng.uniform(0.2, 0.4), rng.uniform(0.08, 0.25))
        first, second = (
            _contrast_pair(rng) if chance(rng, 0.5) else (colour_array(green), colour_array((0.7, 0.6, 0.35)))
        )
        grain = rng.uniform(0.005, 0.03)
    under = np.ascontiguousarray(
        np.broadcast_to(first + grain * spectral(rng, size, slope=0.8), (3, size, size))
    )
    fore = np.broadcast_to(second, under.shape)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def _tracks(rng: Rng, pen: ImageDraw.ImageDraw, scale: int) -> None:
    """Bundles of parallel tracks that share their bends (so they never touch), ended by pads; some plain copper."""
    pitch = log_uniform(rng, 0.035, 0.11)
    width = pitch * rng.uniform(0.25, 0.55)
    bends = np.sort(rng.uniform(0, 1, int(rng.integers(0, 5)))).tolist()
    jogs = (rng.choice([-3, -2, -1, 1, 2, 3], len(bends)) * pitch).tolist()
    x, y, path = -0.1, 0.0, [(-0.1, 0.0)]
    for bend, jog in zip(bends, jogs, strict=True):
        turn = max(bend, x + 0.01)
        path.append((turn, y))
        x, y = turn + abs(jog), y + jog
        path.append((x, y))
    path.append((max(1.1, x + 0.1), y))
    line = max(2, round(width * scale))
    pad = pitch * rng.uniform(0.32, 0.42) * scale
    drop = rng.uniform(0.05, 0.4)
    for index in range(-int(0.7 / pitch), int(1.7 / pitch)):
        if chance(rng, drop):
            continue
        low = rng.uniform(0, 0.6) if chance(rng, 0.4) else -0.2
        high = rng.uniform(0.4, 1.0) if chance(rng, 0.4) else 1.2
        xs = np.array([p[0] for p in path])
        ys = np.array([p[1] for p in path]) + index * pitch
        keep = np.unique(
            np.concatenate([[max(low, -0.1), max(high, low + 0.1)], xs[(xs > low) & (xs < high)]])
        )
        points = [
            (float(a) * scale, float(b) * scale) for a, b in zip(keep, np.interp(keep, xs, ys), strict=True)
        ]
        pen.line(points, fill=255, width=line, joint="curve")
        for px, py in (points[0], points[-1]):
            pen.ellipse((px - pad, py - pad, px + pad, py + pad), fill=255)
            if chance(rng, 0.7):
                pen.ellipse((px - pad / 2.5, py - pad / 2.5, px + pad / 2.5, py + pad / 2.5), fill=0)
    for _ in range(int(rng.integers(0, 4))):
        _copper(rng, pen, scale, pitch)


def _copper(rng: Rng, pen: ImageDraw.ImageDraw, scale: int, pitch: float) -> None:
    """A plane or a row of rectangular pads, with clearance around it."""
    gap = pitch * 0.5 * scale
    x, y = rng.uniform(-0.1, 0.9) * scale, rng.uniform(-0.1, 0.9) * scale
    width, height = rng.uniform(0.1, 0.45) * scale, rng.uniform(0.1, 0.35) * scale
    pen.rectangle((x - gap, y - gap, x + width + gap, y + height + gap), fill=0)
    if chance(rng, 0.5):
        pen.rounded_rectangle((x, y, x + width, y + height), radius=gap, fill=255)
        return
    advance = pitch * rng.uniform(0.9, 1.6) * scale
    for index in range(int(width / advance)):
        left = x + index * advance
        pen.rectangle((left, y, left + advance * 0.55, y + height), fill=255)


PATTERNS: dict[str, Material] = {
    f.__name__: f
    for f in (fabric, knit, stripes, checks, corrugated, dots, cells, tiles, mesh, panel, printed, circuit)
}
