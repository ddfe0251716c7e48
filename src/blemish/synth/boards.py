"""Line art of electronics: etched boards, lead frames, and boards with their components."""

from __future__ import annotations

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
    soft_blur,
    spectral,
)
from blemish.synth.lettering import words, write
from blemish.synth.patterns import contrast_pair
from blemish.synth.textures import Material, Texture

DIRECTIONS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))
GREENS = ((0.05, 0.3, 0.15), (0.04, 0.2, 0.1), (0.05, 0.12, 0.3), (0.35, 0.06, 0.05), (0.05, 0.05, 0.06))


def _sheet(rng: Rng, size: int, ink: Field, *, black: float) -> Texture:
    """Line art as a black-and-white scan (probability `black`), or as a photo in board colours."""
    flat = chance(rng, black)
    if flat:
        low = 0.0 if chance(rng, 0.5) else rng.uniform(0, 0.12)
        first, second = colour_array((low,) * 3), colour_array((rng.uniform(0.85, 1.0),) * 3)
        if chance(rng, 0.4):
            first, second = second, first
        grain = 0.0 if chance(rng, 0.5) else rng.uniform(0, 0.01)
    else:
        green = GREENS[int(rng.integers(len(GREENS)))]
        first, second = colour_array(green), colour_array((0.7, 0.6, 0.35))
        if chance(rng, 0.35):
            second = first * rng.uniform(1.2, 1.7) + rng.uniform(0.03, 0.1)
        elif chance(rng, 0.4):
            first, second = contrast_pair(rng)
        grain = rng.uniform(0.005, 0.03)
    noise = grain * spectral(rng, size, slope=0.8) if grain else np.zeros((size, size), np.float32)
    under = np.ascontiguousarray(np.broadcast_to(first + noise, (3, size, size)))
    fore = np.broadcast_to(second, under.shape)
    return Texture(mix(under, fore, ink), under=under, fore=fore, ink=ink, flat=flat)


def circuit(rng: Rng, size: int) -> Texture:
    """Tracks, pads and vias of an etched board, as a photo or as a black-and-white scan."""
    scale = size * 3
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    if chance(rng, 0.5):
        _tracks(rng, pen, scale)
    else:
        _routed(rng, pen, scale)
    ink = np.asarray(canvas.reduce(3), dtype=np.float32) / 255
    if chance(rng, 0.5):
        ink = np.ascontiguousarray(ink.T)
    return _sheet(rng, size, ink, black=0.6)


def _routed(rng: Rng, pen: ImageDraw.ImageDraw, scale: int) -> None:
    """Single tracks found on a grid, which turn by 45 degrees, never touch, and end in vias or pads."""
    pitch = log_uniform(rng, 0.028, 0.075)
    cells = int(1.2 / pitch)
    taken = np.zeros((cells + 2, cells + 2), dtype=bool)
    taken[[0, -1], :] = taken[:, [0, -1]] = True
    unit = pitch * scale
    line = max(2, round(unit * rng.uniform(0.25, 0.5)))
    pad, bore = unit * rng.uniform(0.34, 0.44), rng.uniform(0.35, 0.6)
    open_vias = rng.uniform(0.2, 1.0)

    def at(cell: tuple[int, int]) -> tuple[float, float]:
        return (cell[0] - 1 - 0.05 * cells) * unit, (cell[1] - 1 - 0.05 * cells) * unit

    for _ in range(int(rng.integers(0, 4))):
        _footprint(rng, pen, taken, unit)
    for _ in range(int(cells * rng.uniform(0.8, 2.5))):
        start = (int(rng.integers(1, cells + 1)), int(rng.integers(1, cells + 1)))
        path = _walk(rng, taken, start, int(rng.integers(2, cells)))
        if len(path) < 2:
            continue
        pen.line([at(cell) for cell in path], fill=255, width=line, joint="curve")
        for cell in (path[0], path[-1]):
            x, y = at(cell)
            pen.ellipse((x - pad, y - pad, x + pad, y + pad), fill=255)
            if chance(rng, open_vias):
                r = pad * bore
                pen.ellipse((x - r, y - r, x + r, y + r), fill=0)


def _walk(rng: Rng, taken: np.ndarray, start: tuple[int, int], steps: int) -> list[tuple[int, int]]:
    """Free cells from `start`, mostly straight on; marks them as taken."""
    if taken[start]:
        return []
    heading, path = 2 * int(rng.integers(4)), [start]
    taken[start] = True
    turns = rng.random(steps).tolist()
    for turn in turns:
        if turn < 0.12:
            heading = (heading + 1) % 8
        elif turn < 0.24:
            heading = (heading - 1) % 8
        x, y = path[-1]
        for choice in (heading, (heading + 1) % 8, (heading - 1) % 8):
            dx, dy = DIRECTIONS[choice]
            corner = dx != 0 and dy != 0 and (taken[x + dx, y] or taken[x, y + dy])
            if not taken[x + dx, y + dy] and not corner:
                heading = choice
                path.append((x + dx, y + dy))
                taken[x + dx, y + dy] = True
                break
        else:
            break
    return path


def _footprint(rng: Rng, pen: ImageDraw.ImageDraw, taken: np.ndarray, unit: float) -> None:
    """A plane of copper, or one or two rows of pads, on cells that are then taken."""
    cells = len(taken) - 2
    wide, high = int(rng.integers(2, max(3, cells // 3))), int(rng.integers(2, max(3, cells // 4)))
    left, top = int(rng.integers(1, cells - wide)), int(rng.integers(1, cells - high))
    taken[left : left + wide + 1, top : top + high + 1] = True
    x, y = (left - 1 - 0.05 * cells) * unit, (top - 1 - 0.05 * cells) * unit
    if chance(rng, 0.4):
        box = (x, y, x + (wide - 0.2) * unit, y + (high - 0.2) * unit)
        pen.rounded_rectangle(box, radius=unit * rng.uniform(0.1, 0.5), fill=255)
        return
    round_pads, half = chance(rng, 0.4), unit * rng.uniform(0.22, 0.34)
    for column in range(wide):
        for row in range(high) if chance(rng, 0.3) else (0, high - 1):
            cx, cy = x + column * unit, y + row * unit
            if round_pads:
                pen.ellipse((cx - half, cy - half, cx + half, cy + half), fill=255)
            else:
                pen.rectangle((cx - half, cy - half, cx + half, cy + half), fill=255)


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


def leadframe(rng: Rng, size: int) -> Texture:
    """Fingers that run from a frame towards a central pad, as a stamped sheet or a chip's fan-out."""
    u, v = rotated(size, (rng.uniform(0.35, 0.65), rng.uniform(0.35, 0.65)), rng.normal(0, 0.03))
    du, dv = np.abs(u), np.abs(v)
    far, near = np.maximum(du, dv), np.minimum(du, dv)
    inner = rng.uniform(0.1, 0.22)
    count = int(rng.integers(4, 14))
    # fingers fan out, or stand side by side like the teeth of a comb
    scale = np.maximum(far, 1e-3) / count if chance(rng, 0.5) else np.float32(rng.uniform(0.4, 0.6) / count)
    place = near / scale
    finger = (np.abs(place - np.floor(place) - 0.5) - rng.uniform(0.16, 0.34)) * scale
    finger = np.maximum(finger, inner + rng.uniform(0.02, 0.06) - far)
    ring = np.abs(far - rng.uniform(0.4, 0.55)) - rng.uniform(0.008, 0.03)
    distance = np.minimum(np.minimum(finger, far - inner), ring)
    if chance(rng, 0.5):
        holes = np.hypot(du - inner * 0.6, dv - inner * 0.6) - inner * rng.uniform(0.1, 0.25)
        distance = np.maximum(distance, -holes)
    return _sheet(rng, size, edge(distance), black=0.5)


def board(rng: Rng, size: int) -> Texture:
    """A mounted board: tracks under lacquer, packages with legs, small parts, print, drilled holes."""
    scale = size * 2
    base = circuit(rng, size) if chance(rng, 0.6) else None
    green = colour_array(GREENS[int(rng.integers(len(GREENS)))]) * rng.uniform(0.7, 1.4)
    lacquer = green + rng.uniform(0.004, 0.015) * spectral(rng, size, slope=0.8)
    if base is not None and base.ink is not None:
        lacquer = lacquer * (1 + rng.uniform(0.15, 0.5) * base.ink)
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(0, 7))):
        write(rng, pen, scale, most=0.05)
    lacquer = mix(lacquer, rng.uniform(0.6, 0.9), np.asarray(canvas.reduce(2), np.float32) / 255)
    tones, numbers = Image.new("RGB", (scale, scale)), Image.new("I", (size, size))
    cover = Image.new("L", (scale, scale))
    placed: list[tuple[float, float, float, float]] = []
    for _ in range(int(rng.integers(3, 22))):
        spot = _free_spot(rng, placed)
        if spot is not None:
            placed.append(spot)
            _component(rng, (tones, cover, numbers), spot, len(placed))
    alpha = np.asarray(cover.reduce(2), np.float32) / 255
    fore = np.asarray(tones.reduce(2), np.float32).transpose(2, 0, 1) / 255
    fore = fore / np.maximum(alpha, 0.05)
    offset = max(1, size // 90)
    shadow = np.roll(soft_blur(alpha, max(2, size // 90)), (offset, offset), (0, 1))
    under = mix(lacquer, rng.uniform(0.55, 0.9), _footprints(placed, scale))
    image = mix(under * (1 - 0.5 * np.clip(shadow, 0, 1)), fore * (1 + 0.03 * clouds(rng, size, 6)), alpha)
    labels = np.asarray(numbers, dtype=np.int32)
    return Texture(image, under=under, labels=labels if placed else None)


def _footprints(placed: list[tuple[float, float, float, float]], scale: int) -> Field:
    """Bare pads under the ends of the components, (S, S): what shows that one is missing."""
    canvas = Image.new("L", (scale, scale))
    pen = ImageDraw.Draw(canvas)
    for left, top, right, bottom in placed:
        width, inset = 0.25 * (right - left), 0.1 * (bottom - top)
        for start in (left, right - width):
            area = (start, top + inset, start + width, bottom - inset)
            pen.rectangle(tuple(value * scale for value in area), fill=255)
    return np.asarray(canvas.reduce(2), np.float32) / 255


def _free_spot(
    rng: Rng, placed: list[tuple[float, float, float, float]]
) -> tuple[float, float, float, float] | None:
    """A rectangle (left, top, right, bottom) in fractions of the side, clear of the others."""
    for _ in range(6):
        wide = log_uniform(rng, 0.03, 0.3)
        high = wide * log_uniform(rng, 0.35, 1.8)
        left, top = rng.uniform(0, 0.95), rng.uniform(0, 0.95)
        gap = 0.025
        if all(
            left - gap > p[2] or left + wide + gap < p[0] or top - gap > p[3] or top + high + gap < p[1]
            for p in placed
        ):
            return left, top, left + wide, top + high
    return None


def _component(
    rng: Rng, sheets: tuple[Image.Image, Image.Image, Image.Image], spot: tuple[float, ...], number: int
) -> None:
    """A package, chip resistor, electrolytic or ring pad within `spot`, with its legs."""
    tones, cover, numbers = sheets
    scale = tones.width
    left, top, right, bottom = (value * scale for value in spot)
    size = numbers.width
    ImageDraw.Draw(numbers).rectangle(tuple(value * size for value in spot), fill=number)
    pen, mould = ImageDraw.Draw(tones), ImageDraw.Draw(cover)
    grey = int(rng.integers(15, 60))
    body, metal = (grey, grey, grey + 3), (int(rng.integers(150, 230)),) * 3
    wide, high = right - left, bottom - top
    kind = rng.random()
    if kind < 0.4:
        rim = min(wide, high) * 0.12
        legs = max(2, int(wide / (0.02 * scale)))
        for index in range(legs):
            x = left + (index + 0.25) * wide / legs
            for area in (
                (x, top, x + 0.5 * wide / legs, top + rim),
                (x, bottom - rim, x + 0.5 * wide / legs, bottom),
            ):
                pen.rectangle(area, fill=metal)
                mould.rectangle(area, fill=255)
        core = (left, top + rim, right, bottom - rim)
        pen.rectangle(core, fill=body)
        mould.rectangle(core, fill=255)
        mark = min(wide, high) * 0.06
        pen.ellipse((left + mark, top + rim + mark, left + 3 * mark, top + rim + 3 * mark), fill=(90, 90, 90))
        if high > 0.06 * scale:
            pen.text((left + wide * 0.2, top + high * 0.4), words(rng, 6), fill=(170, 170, 170))
    elif kind < 0.75:
        colour = ((170, 130, 80), (40, 40, 45), (190, 180, 160), (60, 80, 140))[int(rng.integers(4))]
        for area, fill in (
            ((left, top, right, bottom), metal),
            ((left + wide * 0.22, top, right - wide * 0.22, bottom), colour),
        ):
            pen.rectangle(area, fill=fill)
        mould.rectangle((left, top, right, bottom), fill=255)
    else:
        r = min(wide, high) / 2
        cx, cy = (left + right) / 2, (top + bottom) / 2
        tone = np.full(3, metal[0]) if chance(rng, 0.5) else rng.integers(30, 200, 3)
        for part, shade in ((1.0, tone), (0.8, tone * 0.8), (0.25, np.full(3, 20))):
            area = (cx - r * part, cy - r * part, cx + r * part, cy + r * part)
            pen.ellipse(area, fill=tuple(int(c) for c in shade))
        mould.ellipse((cx - r, cy - r, cx + r, cy + r), fill=255)


BOARDS: dict[str, Material] = {f.__name__: f for f in (circuit, leadframe, board)}
