"""Materials with repeated parts: weaves, stripes, tiles, meshes, dots, teeth, tufts and print.

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
    relief,
    rotated,
    spectral,
    step,
)
from blemish.synth.lettering import write
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


def contrast_pair(rng: Rng) -> tuple[Field, Field]:
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
    first, second = contrast_pair(rng)
    if chance(rng, 0.6):
        second = first * rng.uniform(0.85, 1.0)
    deep = rng.uniform(0.15, 0.6)
    thread = np.where(over, warp * (0.7 + 0.3 * weft), weft * (0.7 + 0.3 * warp))
    image = np.where(over, first, second) * (1 - deep + deep * np.sqrt(thread))
    return Texture(image * (1 + rng.uniform(0.01, 0.08) * spectral(rng, size, slope=0.6)), threads=(a, b))


def knit(rng: Rng, size: int) -> Texture:
    """Rows of V-shaped loops."""
    pitch = log_uniform(rng, 0.03, 0.1)
    u, v = _frame(rng, size, wavy=pitch * 0.1)
    a = u / pitch
    lean = np.abs(a - np.floor(a) - 0.5) * rng.uniform(0.8, 1.6)
    loops = np.abs(np.sin((v / pitch + lean) * math.pi)) * (0.4 + 0.6 * np.sqrt(np.abs(np.sin(a * TAU))))
    image = palette(rng).paint(loops - 0.5, rng.uniform(0.08, 0.35))
    image = image * (1 + rng.uniform(0.01, 0.06) * spectral(rng, size, slope=0.7))
    return Texture(image, threads=(a, v / pitch))


def stripes(rng: Rng, size: int) -> Texture:
    """Lines or bands in one direction, sharp or soft."""
    pitch = log_uniform(rng, 0.02, 0.25)
    u, _ = _frame(rng, size, wavy=pitch * rng.uniform(0, 0.1))
    wave = np.sin(u * (TAU / pitch))
    if chance(rng, 0.4):
        wave = wave + 0.6 * np.sin(u * (TAU / pitch) * 2 + 1.0)
    sharp = log_uniform(rng, 0.7, 12)
    first, second = contrast_pair(rng)
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
    first, second = contrast_pair(rng)
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
    first, second = contrast_pair(rng)
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
    first, second = contrast_pair(rng)
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
    first, second = contrast_pair(rng)
    under = first + 0.02 * clouds(rng, size, 4)
    fore = second * (1 - rng.uniform(0.1, 0.5) * np.clip(wire / half + 1, 0, 1) ** 2)
    fore = fore + rng.uniform(0, 0.04) * spectral(rng, size, slope=0.8)
    ink = edge(wire)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def _glowing_cell(rng: Rng, size: int) -> Texture:
    """A solar cell's own light: grey, dark bars across it, crystal grains or cut corners, dimmer towards the rim."""
    y, x = grid(size)
    u, v = (x - 0.5, y - 0.5) if chance(rng, 0.5) else (y - 0.5, x - 0.5)
    image = rng.uniform(0.35, 0.8) * (1 + rng.uniform(0.01, 0.08) * clouds(rng, size, rng.uniform(2, 5)))
    image = image * (1 - rng.uniform(0, 0.8) * (u * u + v * v))
    if chance(rng, 0.55):
        grains = clouds(rng, size, rng.uniform(5, 14)) + 0.7 * clouds(rng, size, rng.uniform(14, 40))
        steps = np.round(grains * rng.uniform(0.6, 1.4)) / 2
        image = image * (
            1 + rng.uniform(0.03, 0.2) * np.sin(5 * steps) - rng.uniform(0, 0.25) * (steps > 1.0)
        )
    elif chance(rng, 0.6):
        corner = np.abs(u) + np.abs(v) - rng.uniform(0.8, 0.95)
        image = image * (1 - rng.uniform(0.5, 1.0) * step(-corner, 0.01))
    lines = rng.integers(50, 110)
    image = image * (1 - rng.uniform(0, 0.1) * (0.5 + 0.5 * np.cos(v * math.tau * lines)))
    count = int(rng.integers(2, 6))
    far = np.abs((u + 0.5) * count - np.floor((u + 0.5) * count) - 0.5) / count
    half = rng.uniform(0.004, 0.02)
    image = image * (1 + rng.uniform(0, 0.15) * np.exp(-far / 0.03))
    image = mix(image, image * rng.uniform(0.05, 0.5), step(far - half, 0.006))
    rim = np.maximum(np.abs(u), np.abs(v)) - rng.uniform(0.475, 0.52)
    image = image * (1 - rng.uniform(0.4, 1.0) * step(-rim, 0.01))
    grain = 1 + rng.uniform(0.01, 0.05) * spectral(rng, size, slope=0.4)
    return Texture(np.repeat((image * grain)[None], 3, axis=0).astype(np.float32))


def panel(rng: Rng, size: int) -> Texture:
    """A solar-cell-like board: tinted plates, thin conductors, regular marks; or a cell that glows under current."""
    if chance(rng, 0.35):
        return _glowing_cell(rng, size)
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
    """A plain sheet or label with print, logos, bar codes and rulings that belong to it."""
    first, second = contrast_pair(rng)
    under = first + rng.uniform(0.003, 0.02) * spectral(rng, size, slope=1.0)
    canvas = Image.new("L", (size * 2, size * 2))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 8))):
        write(rng, pen, size * 2)
    ink = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    if chance(rng, 0.3):
        ink = np.ascontiguousarray(np.rot90(ink, int(rng.integers(1, 4))))
    fore = np.broadcast_to(second, under.shape)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink)


def honeycomb(rng: Rng, size: int) -> Texture:
    """A hexagonal lattice of holes or cells with walls: perforated sheet, filter, comb."""
    pitch = log_uniform(rng, 0.05, 0.2)
    u, v = _frame(rng, size, wavy=pitch * rng.uniform(0, 0.04))
    tall = pitch * math.sqrt(3)
    best = np.full((size, size), 9.0, dtype=np.float32)
    labels = np.zeros((size, size), dtype=np.int32)
    for turn, shift in enumerate((0.0, 0.5)):
        column, row = np.floor(u / pitch + shift), np.floor(v / tall + shift)
        du = np.abs((u / pitch + shift - column - 0.5) * pitch)
        dv = np.abs((v / tall + shift - row - 0.5) * tall)
        distance = np.maximum(du, du * 0.5 + dv * 0.8660254)
        nearer = distance < best
        numbers = (2 * (column - column.min()) + turn + 997 * (row - row.min()) + 1).astype(np.int32)
        labels = np.where(nearer, numbers, labels)
        best = np.minimum(best, distance)
    cell = best - pitch * rng.uniform(0.3, 0.46)
    first, second = contrast_pair(rng)
    under = first + rng.uniform(0.004, 0.04) * spectral(rng, size, slope=rng.uniform(0.5, 1.5))
    fore = second * (1 + rng.uniform(-0.3, 0.3) * step(cell + pitch * 0.1, pitch * 0.2))
    return Texture(mix(under, fore, edge(cell)), under=under, labels=np.where(cell < 1.5 / size, labels, 0))


def zipper(rng: Rng, size: int) -> Texture:
    """Two rows of interlocking teeth between woven tapes."""
    pitch = log_uniform(rng, 0.045, 0.13)
    angle = float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.04)
    u, v = rotated(size, (rng.uniform(0.4, 0.6), rng.uniform(0.4, 0.6)), angle)
    thread = log_uniform(rng, 0.008, 0.02)
    weave = np.sin(u * (TAU / thread)) * np.sin(v * (TAU / thread))
    tape = palette(rng).paint(weave + 0.5 * clouds(rng, size, 5), rng.uniform(0.02, 0.08))
    half, reach = pitch * rng.uniform(0.2, 0.28), pitch * rng.uniform(0.7, 1.2)
    best = np.full((size, size), 9.0, dtype=np.float32)
    labels = np.zeros((size, size), dtype=np.int32)
    for side, turn in ((-1.0, 0), (1.0, 1)):
        place = u / pitch + 0.5 * turn
        number = np.floor(place)
        du, dv = np.abs((place - number - 0.5) * pitch), np.abs(v - side * reach * 0.6)
        distance = np.maximum(du - half * (1 + 0.3 * np.sign(v) * side), dv - reach)
        labels = np.where(distance < best, (2 * (number - number.min()) + turn + 1).astype(np.int32), labels)
        best = np.minimum(best, distance)
    metal = palette(rng, ((0.75, 0.75, 0.72), (0.75, 0.62, 0.3), (0.15, 0.15, 0.16)))
    shade = np.clip(relief(np.clip(-best / half, 0, 1), rng.uniform(0, TAU)) * half, -1, 1)
    fore = metal.base * (1 + rng.uniform(0.1, 0.4) * shade)
    under = tape * (1 - 0.5 * step(np.abs(v) - reach * 1.2, reach * 0.6))
    return Texture(mix(under, fore, edge(best)), under=under, labels=np.where(best < 1.5 / size, labels, 0))


def bristles(rng: Rng, size: int) -> Texture:
    """Tufts of a brush from above, or bundles of fibres, each its own part."""
    pitch = log_uniform(rng, 0.09, 0.25)
    u, v = _frame(rng, size, straight=0.8)
    du, dv, labels = _cells(u, v, pitch, 0.5 * chance(rng, 0.5))
    tint = rng.uniform(0.0, 1.0, 5).astype(np.float32)[labels % 5]
    wobble = rng.uniform(0.05, 0.2) * pitch * spectral(rng, size, slope=0.8)
    distance = np.sqrt(du * du + dv * dv) + wobble - pitch * rng.uniform(0.36, 0.5)
    first, second = contrast_pair(rng)
    third = colour_array(random_colour(rng, grey=0.2))
    tips = spectral(rng, size, band=(rng.uniform(50, 90), 20))
    fore = mix(second, third, np.round(tint)) * (1 + rng.uniform(0.1, 0.3) * tips)
    fore = fore * (0.6 + 0.4 * np.clip(-distance / (0.2 * pitch), 0, 1))
    under = first * rng.uniform(0.3, 0.9) + 0.02 * clouds(rng, size, 4)
    cover = step(distance, 0.02)
    return Texture(mix(under, fore, cover), under=under, labels=np.where(distance < 0.01, labels, 0))


PATTERNS: dict[str, Material] = {
    f.__name__: f
    for f in (
        fabric,
        knit,
        stripes,
        checks,
        corrugated,
        dots,
        cells,
        tiles,
        mesh,
        panel,
        printed,
        honeycomb,
        zipper,
        bristles,
    )
}
