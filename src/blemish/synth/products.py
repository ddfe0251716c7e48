"""Outlines and paint of made things that have parts of their own: bottles, cables, packages with legs, loose heaps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from blemish.synth.fields import (
    Field,
    Rng,
    chance,
    clouds,
    colour_array,
    log_uniform,
    mix,
    rotated,
    spectral,
    step,
)
from blemish.synth.objects import TAU, Form, box, dome, pose
from blemish.synth.palette import random_colour


def bottle(rng: Rng, size: int) -> Form:
    """The mouth of a bottle, a cup or a lid from above: nested rims with strong highlights."""
    centre = (rng.normal(0.5, 0.03), rng.normal(0.5, 0.03))
    u, v = rotated(size, centre, rng.uniform(0, TAU), log_uniform(rng, 0.95, 1.05))
    r = np.sqrt(u * u + v * v)
    angle = np.arctan2(v, u)
    radius = rng.uniform(0.33, 0.49)
    shade = np.full_like(r, rng.uniform(0.4, 0.9))
    for place in np.sort(rng.uniform(0.25, 1.0, int(rng.integers(2, 6)))).tolist():
        wide = radius * log_uniform(rng, 0.01, 0.1)
        ring = step(np.abs(r - place * radius) - wide, wide)
        shine = 0.5 + 0.5 * np.cos((angle - rng.uniform(0, TAU)) * int(rng.integers(1, 4)))
        shade = shade + rng.uniform(-0.4, 0.6) * ring * (0.4 + 0.6 * shine ** rng.uniform(1, 6))
    if chance(rng, 0.6):
        shade = shade * (1 - rng.uniform(0.5, 0.95) * step(r - radius * rng.uniform(0.3, 0.75), 0.02))
    return Form(r - radius, shade=np.clip(shade, 0.02, 1.4))


def cable(rng: Rng, size: int) -> Form:
    """A cable cut across: coloured cores with strands inside a sheath."""
    centre = (rng.normal(0.5, 0.03), rng.normal(0.5, 0.03))
    u, v = rotated(size, centre, rng.uniform(0, TAU), log_uniform(rng, 0.9, 1.1))
    radius = rng.uniform(0.33, 0.46)
    count = int(rng.integers(2, 6))
    orbit = radius * (0.42 if count < 4 else 0.55)
    core = orbit * math.sin(math.pi / count) * rng.uniform(0.82, 0.96)
    paint = np.zeros((3, size, size), dtype=np.float32)
    labels = np.zeros((size, size), dtype=np.int32)
    strands = spectral(rng, size, band=(rng.uniform(28, 60), 6))
    metal = colour_array((0.75, 0.45, 0.3) if chance(rng, 0.6) else (0.75, 0.75, 0.75))
    for index in range(count):
        turn = TAU * index / count
        d = np.hypot(u - orbit * math.cos(turn), v - orbit * math.sin(turn)) - core
        insulation = colour_array(random_colour(rng, grey=0.15)) - 0.5
        paint = mix(paint, insulation, step(d, 0.008))
        paint = mix(paint, metal - 0.5 + 0.15 * strands, step(d + core * rng.uniform(0.3, 0.42), 0.01))
        paint = paint - 0.25 * step(np.abs(d) - 0.004, 0.01)
        labels[d < 0] = index + 1
    return Form(np.hypot(u, v) - radius, shade=np.ones((size, size), np.float32), paint=paint, labels=labels)


def component(rng: Rng, size: int) -> Form:
    """A package with legs: transistor, chip, plug, socket."""
    u, v, radius = pose(rng, size)
    a, b = radius * rng.uniform(0.5, 0.9), radius * rng.uniform(0.35, 0.7)
    body = box(u, v + 0.25 * radius, a, b, b * rng.uniform(0.03, 0.3))
    count = int(rng.integers(2, 9))
    pitch = 1.7 * a / count
    number = np.clip(np.floor(u / pitch + 0.5 * (count % 2)), -(count // 2), (count - 1) // 2)
    du = u - (number + 0.5 * (1 - count % 2)) * pitch
    length = radius * rng.uniform(0.4, 0.9)
    middle = b - 0.25 * radius + 0.5 * length
    both = chance(rng, 0.4)
    dv = (np.abs(v + 0.25 * radius) - 0.25 * radius if both else v) - middle
    legs = box(du, dv, pitch * rng.uniform(0.12, 0.28), 0.5 * length + 0.02, 0.002)
    tone = rng.uniform(0.2, 0.5) * (1 if chance(rng, 0.7) else -1)
    paint = tone * step(-body, 0.006) * step(legs, 0.006)
    paint = paint - rng.uniform(0, 0.3) * step(np.abs(body) - 0.006, 0.01)
    if chance(rng, 0.5):
        hole = np.hypot(u, v + 0.25 * radius + 0.4 * b) - b * rng.uniform(0.15, 0.3)
        paint = paint - 0.35 * step(hole, 0.008)
    labels = np.where((legs < 0.003) & (body > 0), (number - number.min() + 1).astype(np.int32), 0)
    return Form(np.minimum(body, legs), paint=paint, labels=labels)


def tube(rng: Rng, size: int) -> Form:
    """Round tubes or sticks side by side, or one that tapers: candles, carrots, dowels, hoses."""
    angle = float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.1)
    u, v = rotated(size, (0.5, 0.5), angle, log_uniform(rng, 0.85, 1.2))
    count = int(rng.choice([1, 1, 2, 3, 4]))
    pitch = rng.uniform(0.6, 0.95) / count if count > 1 else 1.0
    place = v / pitch + 0.5 * (count % 2)
    number = np.clip(np.floor(place), -(count // 2), (count - 1) // 2)
    dv = (place - number - 0.5) * pitch
    half = pitch * rng.uniform(0.3, 0.47) if count > 1 else rng.uniform(0.08, 0.3)
    length = rng.uniform(0.3, 0.48)
    taper = rng.uniform(0, 0.8) if chance(rng, 0.3) else 0.0
    width = half * (1 - taper * np.clip(u / length * 0.5 + 0.5, 0, 1)) + 0.01 * clouds(rng, size, 3) * taper
    shift = rng.normal(0, 0.03, 9).astype(np.float32)[(number + 4).astype(np.intp)]
    distance = box(
        u - shift, dv * half / np.maximum(width, 0.01), length, half, half * rng.uniform(0.05, 0.9)
    )
    t = np.clip(dv / np.maximum(width, 0.01), -1, 1)
    shade = 0.45 + 0.6 * np.sqrt(1 - 0.95 * t * t) + rng.uniform(0, 0.35) * np.exp(-(((t + 0.4) / 0.15) ** 2))
    numbers = (number + count + 1).astype(np.int32)
    labels = np.where(distance < 1.5 / size, numbers, 0) if count > 1 else None
    return Form(distance, shade=shade, labels=labels)


def heap(rng: Rng, size: int) -> Form:
    """Loose equal pieces, each turned its own way: tablets, pasta, candles, nuts."""
    count = int(rng.integers(2, 13))
    reach = 0.42 / math.sqrt(count) * rng.uniform(0.65, 0.95)
    kind, long = int(rng.integers(4)), rng.uniform(1.0, 2.2)
    best = np.full((size, size), 0.3, dtype=np.float32)
    labels = np.zeros((size, size), dtype=np.int32)
    columns = math.ceil(math.sqrt(count))
    for index in range(count):
        row, column = divmod(index, columns)
        wide = 0.9 / columns
        centre = (
            0.05 + wide * (column + 0.5),
            0.05 + wide * (row + 0.5 + 0.5 * (columns * columns - count > columns)),
        )
        centre = (centre[0] + rng.normal(0, 0.12 * wide), centre[1] + rng.normal(0, 0.12 * wide))
        u, v = rotated(size, centre, rng.uniform(0, TAU))
        if kind == 0:
            distance: Field = np.hypot(u, v) - reach * 0.8
        elif kind == 1:
            distance = box(u, v, reach, reach / long, reach / long)
        elif kind == 2:
            distance = box(u, v, reach, reach / long, reach * 0.15)
        else:
            distance = _bean(u, v, reach, 0.33 * reach)
        labels = np.where(distance < np.minimum(best, 1.5 / size), np.int32(index + 1), labels)
        best = np.minimum(best, distance)
    return Form(best, labels=labels)


def _bean(u: Field, v: Field, radius: float, thick: float) -> Field:
    """A thick arc with round ends."""
    w = v + 0.5 * radius
    ring = np.abs(np.hypot(u, w) - 0.75 * radius) - thick
    ends = np.hypot(np.abs(u) - 0.72 * radius, w - 0.2 * radius) - thick
    bean: Field = np.minimum(np.maximum(ring, 0.2 * radius - w), ends)
    return bean


def kernel(rng: Rng, size: int) -> Form:
    """A nut, bean, fruit or potato: rounded, with a cap, a stalk or ridges."""
    u, v, radius = pose(rng, size)
    lumpy = 1 + rng.uniform(0.01, 0.06) * clouds(rng, size, 3)
    if chance(rng, 0.3):
        distance = _bean(u, v, radius * 1.1, radius * rng.uniform(0.3, 0.45)) + 0.01 * clouds(rng, size, 5)
    else:
        tip = 1 + rng.uniform(-0.2, 0.35) * u / radius
        distance = np.hypot(u * rng.uniform(0.75, 1), v * tip) * lumpy - radius * 0.9
    shade = 0.45 + 0.6 * dome(distance, radius * rng.uniform(0.5, 0.9))
    light = rng.uniform(0, TAU)
    side = (u * math.cos(light) + v * math.sin(light)) / radius
    shade = shade * (1 + rng.uniform(0.1, 0.3) * side)
    shade = shade + rng.uniform(0, 0.4) * np.exp(-(((side - 0.5) / 0.15) ** 2) - (v / radius) ** 2 * 8)
    paint = None
    if chance(rng, 0.6):
        cap = step(u - radius * rng.uniform(-0.8, -0.4) + 0.02 * clouds(rng, size, 8), 0.02)
        paint = colour_array(rng.uniform(-0.25, 0.3, 3).tolist()) * cap
    if chance(rng, 0.4):
        ridge = np.sin(np.arctan2(v, u + 1.2 * radius) * rng.uniform(20, 60))
        paint = (0 if paint is None else paint) - rng.uniform(0.02, 0.08) * ridge
    return Form(distance, shade=shade, paint=paint)


PRODUCTS: dict[str, Callable[[Rng, int], Form]] = {
    f.__name__: f for f in (bottle, cable, component, tube, heap, kernel)
}
