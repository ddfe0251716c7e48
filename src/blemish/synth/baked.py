"""Baked goods: crumb, folds and splits of the crust, chips and nuts, all of them strong and all of them normal."""

from __future__ import annotations

import math

import numpy as np

from blemish.synth.fields import (
    Field,
    Rng,
    blur,
    chance,
    clouds,
    colour_array,
    curve,
    grid,
    log_uniform,
    mix,
    relief,
    spectral,
    step,
    strokes,
)
from blemish.synth.palette import palette
from blemish.synth.textures import Texture

CRUSTS = ((0.78, 0.58, 0.36), (0.65, 0.43, 0.22), (0.86, 0.7, 0.48), (0.32, 0.2, 0.13), (0.8, 0.55, 0.25))
DARK_BITS = ((0.2, 0.11, 0.07), (0.1, 0.06, 0.05), (0.35, 0.2, 0.12))
LIGHT_BITS = ((0.93, 0.86, 0.72), (0.8, 0.65, 0.4), (0.6, 0.15, 0.15))


def creases(rng: Rng, image: Field, light: float, count: int) -> Field:
    """`count` folds and splits of a crust: tapered dark lines with a lit side, short or across half of it."""
    size = image.shape[1]
    lines = []
    for _ in range(count):
        length = log_uniform(rng, 0.04, 0.45)
        width = log_uniform(rng, 0.003, 0.016)
        start = (rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85))
        points = curve(rng, start, length, bend=rng.uniform(0, 2.5), wobble=rng.uniform(0.03, 0.3))
        taper = np.sin(np.linspace(0.2, 2.95, len(points))) ** rng.uniform(0.5, 1.5)
        lines.append((points, (width * taper).tolist()))
    cover = strokes(size, lines)
    depth = blur(cover, rng.uniform(0.001, 0.008))
    slope = relief(blur(cover, 0.008), light) * 0.01
    folded: Field = image * (1 - rng.uniform(0.35, 0.95) * depth) * (1 + rng.uniform(0.2, 1.0) * slope)
    return folded


def inclusions(rng: Rng, image: Field, light: float, count: int) -> Field:
    """`count` chips, nuts or raisins half sunk into a crust: angular or round bodies with shade and highlight."""
    size = image.shape[1]
    y, x = grid(size)
    tones = DARK_BITS if chance(rng, 0.75) else LIGHT_BITS
    typical = log_uniform(rng, 0.008, 0.035)
    wobble = clouds(rng, size, rng.uniform(25, 60))
    image = image.copy()
    for _ in range(count):
        radius = typical * log_uniform(rng, 0.6, 1.6)
        centre = rng.uniform(0.08, 0.92, 2)
        pad = math.ceil(2.2 * radius * size) + 2
        rows, columns = (
            slice(max(0, int(c * size) - pad), min(size, int(c * size) + pad)) for c in centre.tolist()
        )
        turn, aspect = rng.uniform(0, math.pi), log_uniform(rng, 1, 2)
        dy, dx = y[rows, columns] - centre[0], x[rows, columns] - centre[1]
        u = (dx * math.cos(turn) + dy * math.sin(turn)) / aspect
        v = dy * math.cos(turn) - dx * math.sin(turn)
        sharp = rng.uniform(0, 1)
        far = sharp * np.maximum(np.abs(u) * 0.9 + np.abs(v) * 0.4, np.abs(v)) + (1 - sharp) * np.hypot(u, v)
        far = far + rng.uniform(0, 0.25) * radius * wobble[rows, columns]
        cover = np.clip(0.5 - (far - radius) * size, 0, 1)
        sunk = step(np.abs(far - 1.15 * radius) - 0.2 * radius, 0.3 * radius)
        lit = -(dx * math.cos(light) + dy * math.sin(light)) / radius
        tone = colour_array(tones[int(rng.integers(len(tones)))]) * rng.uniform(0.7, 1.4)
        body = tone * (1 + 0.35 * np.clip(lit, -1, 1)) + rng.uniform(0, 0.5) * np.clip(lit - 0.35, 0, 1) ** 2
        patch = image[:, rows, columns] * (1 - rng.uniform(0.1, 0.6) * sunk * (far > radius))
        image[:, rows, columns] = mix(patch, body, cover)
    return image


def dough(rng: Rng, size: int) -> Texture:
    """Baked crumb: browned unevenly, lumpy, with normal folds and splits, chips, nuts or sugar in it."""
    colours = palette(rng, CRUSTS, keep=0.92)
    light = rng.uniform(0, 2 * math.pi)
    bake = clouds(rng, size, rng.uniform(2, 4))
    crumb = spectral(rng, size, slope=rng.uniform(0.5, 1.1))
    image = colours.base * (1 + rng.uniform(0.03, 0.12) * bake + rng.uniform(0.03, 0.11) * crumb)
    if chance(rng, 0.5):
        lumps = clouds(rng, size, rng.uniform(4, 14)) + 0.3 * clouds(rng, size, rng.uniform(15, 40))
        shade = relief(lumps, light)
        image = image * (1 + rng.uniform(0.03, 0.13) * shade / (float(shade.std()) + 1e-6))
    if chance(rng, 0.4):
        net = np.abs(clouds(rng, size, rng.uniform(3, 8)) + 0.25 * crumb)
        image = image * (1 - rng.uniform(0.1, 0.5) * np.exp(-((net / rng.uniform(0.03, 0.1)) ** 2)))
    if chance(rng, 0.6):
        image = creases(rng, image, light, int(rng.integers(1, 12)))
    if chance(rng, 0.6):
        image = inclusions(rng, image, light, int(rng.integers(2, 36)))
    if chance(rng, 0.25):
        centre = rng.uniform(6, 16)
        bits = spectral(rng, size, band=(centre, centre * 0.35))
        solid = step(rng.uniform(1.2, 2.1) - bits, rng.uniform(0.2, 0.5))
        tones = DARK_BITS if chance(rng, 0.7) else LIGHT_BITS
        tone = colour_array(tones[int(rng.integers(len(tones)))])
        image = mix(image, tone * (1 + 0.25 * relief(bits, light) / centre), solid * 0.9)
    if chance(rng, 0.25):
        sugar = np.clip(rng.standard_normal((size, size), dtype=np.float32) - 2.4, 0, 1)
        image = image + rng.uniform(0.3, 0.7) * sugar
    return Texture(image)


def specks(rng: Rng, image: Field) -> Field:
    """A few crumbs or grains of dust on a table: too small to count, and normal."""
    size = image.shape[1]
    colour = colour_array(CRUSTS[int(rng.integers(len(CRUSTS)))]) if chance(rng, 0.6) else rng.uniform(0, 1)
    lines = []
    for x, y in rng.uniform(0, 1, (int(rng.integers(1, 12)), 2)).tolist():
        wide = log_uniform(rng, 0.003, 0.012)
        lines.append(([(x, y), (x + wide * rng.uniform(-0.7, 0.7), y + 0.001)], [wide]))
    return mix(image, colour, strokes(size, lines) * rng.uniform(0.4, 1.0))


BAKED = {"dough": dough}
