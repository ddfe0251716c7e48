"""Outlines and paint of single objects: discs, bolts, shafts, cookies, rows of equal parts.

An outline is a signed distance (negative inside, fractions of the side), so borders are anti-aliased at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blemish.synth.fields import (
    Field,
    Rng,
    blob,
    chance,
    clouds,
    colour_array,
    log_uniform,
    rotated,
    spectral,
    step,
)

TAU = 2 * math.pi


@dataclass
class Form:
    """The outline of an object and what lies on it.

    distance: signed, (S, S). shade: factor on the brightness, or None for shading from the outline. paint: additions
    to the colour. labels: numbers of the separate parts of a row, else None.
    """

    distance: Field
    shade: Field | None = None
    paint: Field | None = None
    labels: np.ndarray | None = None


def pose(rng: Rng, size: int) -> tuple[Field, Field, float]:
    """Coordinates about a random centre, turned and squashed, and a random radius."""
    centre = (rng.normal(0.5, 0.07), rng.normal(0.5, 0.07))
    angle = rng.normal(0, 0.05) if chance(rng, 0.3) else rng.uniform(0, TAU)
    u, v = rotated(size, centre, angle, log_uniform(rng, 0.7, 1.45))
    return u, v, log_uniform(rng, 0.24, 0.5)


def box(u: Field, v: Field, a: float, b: float, corner: float) -> Field:
    """Signed distance of a rounded box with half sides a, b."""
    qu, qv = np.abs(u) - (a - corner), np.abs(v) - (b - corner)
    outside = np.sqrt(np.maximum(qu, 0) ** 2 + np.maximum(qv, 0) ** 2)
    inner: Field = outside + np.minimum(np.maximum(qu, qv), 0) - corner
    return inner


def hexagon(u: Field, v: Field, radius: float) -> Field:
    au, av = np.abs(u), np.abs(v)
    return np.maximum(au * 0.8660254 + av * 0.5, av) - radius


def disc(rng: Rng, size: int) -> Form:
    """A round plate, cap or coin, often with turned rings."""
    u, v, radius = pose(rng, size)
    r = np.sqrt(u * u + v * v)
    rings = None
    if chance(rng, 0.6):
        rings = np.zeros_like(r)
        for place in rng.uniform(0.1, 0.95, int(rng.integers(1, 5))).tolist():
            rings += rng.uniform(-0.25, 0.25) * step(
                np.abs(r - place * radius) - radius * rng.uniform(0.01, 0.12), 0.012
            )
    return Form(r - radius, paint=rings)


def washer(rng: Rng, size: int) -> Form:
    """A ring, O-ring or bushing."""
    u, v, radius = pose(rng, size)
    r = np.sqrt(u * u + v * v)
    return Form(np.maximum(r - radius, radius * rng.uniform(0.2, 0.85) - r))


def bar(rng: Rng, size: int) -> Form:
    """A rod, strip or block."""
    u, v, radius = pose(rng, size)
    half = radius * rng.uniform(0.12, 0.7)
    return Form(box(u, v, radius * rng.uniform(1.0, 1.6), half, half * rng.uniform(0.05, 0.9)))


def nut(rng: Rng, size: int) -> Form:
    """A hexagon with a hole."""
    u, v, radius = pose(rng, size)
    r = np.sqrt(u * u + v * v)
    hole = radius * rng.uniform(0.3, 0.65)
    chamfer = -0.15 * step(radius * 0.95 - r, 0.02)
    return Form(np.maximum(hexagon(u, v, radius * 0.9), hole - r), paint=chamfer)


def bolt(rng: Rng, size: int) -> Form:
    """A screw from the side: head, shank and thread."""
    u, v, radius = pose(rng, size)
    shank, head = radius * rng.uniform(0.16, 0.3), radius * rng.uniform(0.4, 0.6)
    start = -radius * 1.1
    body = box(u - 0.1 * radius, v, radius * 1.2, shank, shank * 0.2)
    top = box(u - start, v, radius * rng.uniform(0.14, 0.3), head, head * rng.uniform(0.05, 0.4))
    pitch = shank * rng.uniform(0.35, 0.7)
    threaded = step(start + radius * rng.uniform(0.3, 1.0) - u, 0.01) * step(np.abs(v) - shank, 0.01)
    thread = np.sin((u + v * 0.15) * (TAU / pitch)) * threaded
    wobble = np.abs(np.sin((u + v * 0.15) * (math.pi / pitch))) * threaded * shank * 0.15
    t = np.clip(v / np.where(top < 0, np.float32(head), np.float32(shank)), -1, 1)
    shade = 0.45 + 0.65 * np.sqrt(1 - 0.95 * t * t) + 0.25 * thread
    return Form(np.minimum(body + wobble, top), shade=shade)


def capsule(rng: Rng, size: int) -> Form:
    """A pill or tablet, often of two colours, sometimes printed."""
    u, v, radius = pose(rng, size)
    thick = radius * rng.uniform(0.3, 0.55)
    distance = box(u, v, radius * 1.15, thick, thick)
    halves = None
    if chance(rng, 0.6):
        halves = colour_array(rng.uniform(-0.35, 0.35, 3).tolist()) * step(
            u - rng.uniform(-0.2, 0.2) * radius, 0.008
        )
    return Form(distance, paint=halves)


def plate(rng: Rng, size: int) -> Form:
    """A super-ellipse or rounded plate with regular holes or screws and a mark."""
    u, v, radius = pose(rng, size)
    a, b = radius * 1.05, radius * rng.uniform(0.5, 1.05)
    distance = box(u, v, a, b, b * rng.uniform(0.05, 0.6))
    paint = None
    if chance(rng, 0.65):
        spot = radius * rng.uniform(0.05, 0.12)
        du, dv = np.abs(u) - a * rng.uniform(0.6, 0.78), np.abs(v) - b * rng.uniform(0.5, 0.75)
        r = np.sqrt(du * du + dv * dv)
        if chance(rng, 0.5):
            distance = np.maximum(distance, spot - r)
        else:
            slot = np.minimum(np.abs(du), np.abs(dv)) - spot * 0.15
            paint = rng.uniform(-0.3, 0.3) * step(r - spot, 0.01) - 0.35 * step(
                np.maximum(slot, r - spot * 0.8), 0.006
            )
    if chance(rng, 0.4):
        recess = box(u, v, a * rng.uniform(0.3, 0.55), b * rng.uniform(0.25, 0.45), b * 0.08)
        step_in = rng.uniform(-0.15, 0.15) * step(recess, 0.01) - 0.12 * step(np.abs(recess) - 0.004, 0.006)
        paint = step_in if paint is None else paint + step_in
    return Form(distance, paint=paint)


def bracket(rng: Rng, size: int) -> Form:
    """An angle or T of two arms with screw holes."""
    u, v, radius = pose(rng, size)
    arm = radius * rng.uniform(0.2, 0.38)
    shift = radius * rng.choice([-0.65, 0.0, 0.65]).item()
    distance = np.minimum(
        box(u, v + radius * 0.6, radius, arm, arm * 0.2), box(u - shift, v, arm, radius * 0.95, arm * 0.2)
    )
    for x, y in ((0.6, -0.6), (-0.6, -0.6), (shift / radius, 0.5)):
        hole = np.sqrt((u - x * radius) ** 2 + (v - y * radius) ** 2)
        distance = np.maximum(distance, arm * 0.4 - hole)
    return Form(distance)


def gear(rng: Rng, size: int) -> Form:
    """A toothed wheel with a bore."""
    u, v, radius = pose(rng, size)
    r = np.sqrt(u * u + v * v)
    teeth = int(rng.integers(8, 30))
    tooth = np.tanh(np.sin(np.arctan2(v, u) * teeth) * rng.uniform(1.5, 5)) * radius * rng.uniform(0.04, 0.1)
    outer = (r - radius * 0.9 - tooth) * 0.8
    web = -rng.uniform(0, 0.25) * step(np.abs(r - radius * 0.5) - radius * 0.18, 0.012)
    return Form(np.maximum(outer, radius * rng.uniform(0.12, 0.3) - r), paint=web)


def cookie(rng: Rng, size: int) -> Form:
    """An irregular rounded lump with crumbs and chips: biscuit, stone, nugget."""
    centre = (rng.normal(0.5, 0.05), rng.normal(0.5, 0.05))
    area = rng.uniform(0.2, 0.5)
    distance = blob(rng, size, centre, area, ragged=rng.uniform(0.03, 0.12))
    if chance(rng, 0.35):  # baked side by side: one to four flat sides
        u, v = rotated(size, centre, rng.uniform(0, TAU))
        a, b = (math.sqrt(area) * rng.uniform(0.36, 0.6) for _ in range(2))
        wavy = rng.uniform(0.002, 0.012) * clouds(rng, size, rng.uniform(4, 12))
        flat = box(u, v, a, b, min(a, b) * rng.uniform(0.2, 0.9)) + wavy
        distance = flat if chance(rng, 0.5) else np.maximum(distance, flat)
    crumbs = spectral(rng, size, slope=rng.uniform(0.5, 1.2))
    paint = rng.uniform(0.02, 0.09) * crumbs
    if chance(rng, 0.6):
        chips = step(rng.uniform(1.2, 2.0) - spectral(rng, size, band=(rng.uniform(5, 12), 3)), 0.35)
        paint = paint + rng.uniform(-0.4, 0.15) * chips
    if chance(rng, 0.3):
        rim = step(np.abs(distance + 0.03) - 0.03, 0.05)
        paint = paint - rng.uniform(0.05, 0.25) * rim
    return Form(distance, paint=paint)


def dome(distance: Field, width: float) -> Field:
    """A domed height from a signed distance: 0 at the border, 1 at depth `width`."""
    t = np.clip(-distance / width, 0, 1)
    height: Field = np.sqrt(1 - (1 - t) ** 2)
    return height


def shaft(rng: Rng, size: int) -> Form:
    """A turned cylinder or spindle: sections of different width, grooves or a thread, strong highlights."""
    centre = (rng.normal(0.5, 0.08), rng.normal(0.5, 0.08))
    angle = (
        rng.choice([0.0, math.pi / 2]).item() + rng.normal(0, 0.06)
        if chance(rng, 0.6)
        else rng.uniform(0, TAU)
    )
    u, v = rotated(size, centre, angle, log_uniform(rng, 0.8, 1.25))
    half = log_uniform(rng, 0.07, 0.6)
    cuts = np.sort(rng.uniform(-0.8, 0.8, int(rng.integers(0, 7))))
    widths = (half * rng.uniform(0.75, 1.0, len(cuts) + 1)).astype(np.float32)
    sections = np.searchsorted(cuts, u)
    outline = widths[sections]
    t = np.clip(v / outline, -1, 1)
    shade = 0.15 + 0.6 * np.sqrt(np.maximum(1 - t * t, 0))
    for place in rng.uniform(-0.8, 0.8, int(rng.integers(1, 4))).tolist():
        shade = shade + rng.uniform(0.2, 1.0) * np.exp(-(((t - place) / log_uniform(rng, 0.03, 0.25)) ** 2))
    tones = rng.uniform(0.75, 1.1, len(widths)).astype(np.float32)[sections]
    if chance(rng, 0.6):
        pitch = half * log_uniform(rng, 0.12, 0.9)
        phase = (u + half * rng.uniform(0, 0.4) * np.arcsin(t)) * (TAU / pitch)
        groove = np.tanh(np.sin(phase) * rng.uniform(0.7, 5))
        shade = shade * (1 - rng.uniform(0.1, 0.45) * (0.5 + 0.5 * groove))
        shade = shade + rng.uniform(0, 0.35) * np.clip(np.cos(phase + 0.6), 0, 1) ** 6
    length = rng.uniform(0.3, 0.5) if chance(rng, 0.25) else 1.5
    return Form(np.maximum(np.abs(v) - outline, np.abs(u) - length), shade=shade * tones)


def row(rng: Rng, size: int) -> Form:
    """Equal parts in a row or array: pins, tablets on a strip, pads, studs."""
    angle = rng.normal(0, 0.04) if chance(rng, 0.7) else rng.uniform(0, TAU)
    u, v = rotated(size, (0.5, 0.5), angle, log_uniform(rng, 0.75, 1.3))
    pitch_u, pitch_v = log_uniform(rng, 0.1, 0.4), log_uniform(rng, 0.12, 0.5)
    shift = rng.uniform(-0.5, 0.5)
    column, line = np.floor(u / pitch_u + shift), np.floor(v / pitch_v + 0.5)
    lines, columns = rng.integers(0, 3), rng.integers(1, 6)
    du = (u / pitch_u + shift - column - 0.5) * pitch_u
    dv = (v / pitch_v + 0.5 - line - 0.5) * pitch_v
    a, b = pitch_u * rng.uniform(0.25, 0.42), pitch_v * rng.uniform(0.2, 0.42)
    kind = int(rng.integers(4))
    if kind == 0:
        distance = np.sqrt(du * du + dv * dv) - min(a, b)
    elif kind == 1:
        distance = box(du, dv, a, b, min(a, b) * rng.uniform(0.05, 1.0))
    elif kind == 2:
        distance = hexagon(du, dv, min(a, b))
    else:
        r = np.sqrt(du * du + dv * dv)
        distance = np.maximum(r - min(a, b), min(a, b) * rng.uniform(0.3, 0.6) - r)
    present = (np.abs(line) <= lines) & (np.abs(column) <= columns)
    distance = np.where(present, distance, 0.05)
    numbers = ((line + 20) * 97 + column + 41).astype(np.int32)
    return Form(distance, labels=np.where(present & (distance < 1.5 / size), numbers, 0))


SHAPES: dict[str, Callable[[Rng, int], Form]] = {
    f.__name__: f for f in (disc, washer, bar, nut, bolt, capsule, plate, bracket, gear, cookie, shaft, row)
}
