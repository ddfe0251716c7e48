"""Defects of surfaces and objects: each draws one change into a scene and says where it meant to.

A defect is a function (rng, scene, image, area) -> Change or None (does not fit here). `image` is the scene's picture
so far, `area` the wanted size as a fraction of the picture. Defects of structure are in `structural`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from blemish.synth.compose import Scene
from blemish.synth.fields import (
    Field,
    Rng,
    blob,
    blur,
    bounds,
    chance,
    clouds,
    colour_array,
    curve,
    edge,
    log_uniform,
    luma,
    mix,
    relief,
    rotated,
    soft_blur,
    spectral,
    step,
    strokes,
)
from blemish.synth.palette import random_colour


@dataclass
class Change:
    """A picture with the defect, (3, S, S), and the coverage (S, S) in which it was allowed to differ.

    solid: the defect is one body, so pixels inside that happen to look unchanged belong to it all the same.
    """

    image: Field
    support: Field
    solid: bool = False


Defect = Callable[[Rng, Scene, Field, float], Change | None]
MAX_LINE = 0.9
SHAPELESS = (
    "plastic", "paint", "steel", "cast", "skin", "tissue", "stone", "concrete", "marble", "asphalt", "carpet", "paper",
    "rubber", "ceramic", "foam",
)  # fmt: skip
"""Materials of random grain, in which a shifted or bent patch cannot be told from the rest."""


def spot(rng: Rng, scene: Scene, where: Field | None = None) -> tuple[float, float]:
    """A random place (x, y) on the inspected thing, or where the given field exceeds a half."""
    size = scene.alpha.shape[0]
    allowed = scene.alpha if where is None else where
    for _ in range(12):
        row, column = rng.integers(0, size, 2).tolist()
        if allowed[row, column] > 0.5:
            return (column + 0.5) / size, (row + 0.5) / size
    found = np.flatnonzero(allowed > 0.5)
    if not len(found):
        return 0.5, 0.5
    row, column = divmod(int(found[rng.integers(len(found))]), size)
    return (column + 0.5) / size, (row + 0.5) / size


def contrast(rng: Rng, scene: Scene) -> float:
    """A signed brightness change, from just above the texture's own deviation to strong; dark more often."""
    amount = log_uniform(rng, 0.04, 0.5) + 1.2 * scene.rough
    return amount if chance(rng, 0.4) else -amount


def _shift(rng: Rng, amount: float) -> Field:
    """A colour change of about the given brightness, grey half of the time."""
    tint = np.zeros(3) if chance(rng, 0.5) else rng.normal(0, 0.35, 3)
    return colour_array((amount * (1 + tint)).tolist())


def scratch(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """One to three thin, smooth, roughly parallel lines, sometimes with a bright lip."""
    size = image.shape[1]
    length = min(MAX_LINE, log_uniform(rng, 0.06, 0.9))
    width = min(max(area / length * log_uniform(rng, 0.1, 1.0), 0.6 / size), 0.016)
    points = curve(rng, spot(rng, scene), length, bend=abs(rng.normal(0, 0.7)), wobble=rng.uniform(0, 0.05))
    lines = []
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        dx, dy = rng.normal(0, 0.02, 2).tolist()
        fade = np.sin(np.linspace(0.25, 2.9, len(points))) ** rng.uniform(0, 1)
        lines.append(([(x + dx, y + dy) for x, y in points], (width * fade).tolist()))
        dx, dy = 0.0, 0.0
    cover = strokes(size, lines) * scene.alpha
    delta = contrast(rng, scene)
    changed = image + _shift(rng, delta) * cover
    if chance(rng, 0.35):
        lip = np.roll(cover, (1, 1), (0, 1)) * (1 - cover)
        changed = changed - delta * rng.uniform(0.3, 0.8) * lip * scene.alpha
        cover = np.maximum(cover, lip)
    return Change(changed, cover)


def streak(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A straight line or band along the picture's axes: a roller mark, a missing or thick thread, a wiped line."""
    size = image.shape[1]
    length = log_uniform(rng, 0.15, 2.0)
    width = min(max(area / length, 0.6 / size), 0.04)
    angle = float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.02)
    u, v = rotated(size, spot(rng, scene), angle)
    ends = step(np.abs(u) - length / 2, log_uniform(rng, 0.01, 0.2))
    cover = step(np.abs(v) - width / 2, width * rng.uniform(0.2, 1.0) + 1.0 / size) * ends * scene.alpha
    if scene.rough > 0.04 and chance(rng, 0.4):
        drawn = np.roll(image, round(size * rng.uniform(0.01, 0.04)), 1 if angle > 0.8 else 2)
        return Change(mix(image, drawn * rng.uniform(0.8, 1.1), cover), cover, solid=True)
    return Change(image + _shift(rng, contrast(rng, scene)) * cover, cover)


def crack(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A jagged branching line that narrows towards its ends."""
    size = image.shape[1]
    length = min(MAX_LINE, max(0.06, math.sqrt(area) * rng.uniform(1.5, 3.5)))
    width = min(max(area / length * 0.4, 0.8 / size), 0.025)
    trunk = curve(rng, spot(rng, scene), length, bend=0.6, wobble=rng.uniform(0.25, 0.6), steps=32)
    lines = [(trunk, np.linspace(width, width * 0.3, len(trunk)).tolist())]
    for _ in range(int(rng.integers(0, 5))):
        start = trunk[int(rng.integers(len(trunk)))]
        branch = curve(rng, start, length * rng.uniform(0.1, 0.5), bend=0.6, wobble=0.45, steps=14)
        lines.append((branch, np.linspace(width * 0.7, width * 0.2, len(branch)).tolist()))
    cover = strokes(size, lines) * scene.alpha
    if chance(rng, 0.8):
        changed = image * (1 - rng.uniform(0.45, 0.95) * cover) - (0.05 + scene.rough * 0.7) * cover
    else:
        changed = image + abs(contrast(rng, scene)) * cover
    return Change(changed, cover)


def hole(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A dark opening with a lit rim, or a puncture to what lies below."""
    size = image.shape[1]
    area = min(area, 0.05)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0, 0.2))
    cover = edge(distance) * scene.alpha
    inner = image * rng.uniform(0.05, 0.5) - scene.rough * 0.5
    if scene.under is not None and chance(rng, 0.3):
        inner = scene.under
    changed = mix(image, inner, cover)
    if chance(rng, 0.5):
        radius = math.sqrt(area / math.pi)
        rim = step(np.abs(distance - 0.15 * radius) - 0.12 * radius, 1.5 / size) * scene.alpha
        side = np.clip(0.5 + relief(distance, scene.light + math.pi), -0.5, 1.5)
        changed = changed + rng.uniform(0.08, 0.3) * rim * (1 - cover) * side
        cover = np.maximum(cover, rim)
    return Change(changed, cover)


def pits(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A cluster of tiny spots: pores, corrosion, spatter."""
    size = image.shape[1]
    x, y = spot(rng, scene)
    count = int(rng.integers(3, 26))
    spread = max(math.sqrt(area) * 1.2, 0.03)
    lines = []
    for dx, dy in rng.normal(0, spread, (count, 2)).tolist():
        radius = max(1.1 / size, log_uniform(rng, 0.003, 0.012))
        lines.append(([(x + dx, y + dy), (x + dx + 0.0005, y + dy)], [2 * radius]))
    cover = strokes(size, lines) * scene.alpha
    delta = contrast(rng, scene)
    amount = -abs(delta) if chance(rng, 0.75) else abs(delta)
    return Change(image + _shift(rng, amount * 1.4) * cover, cover)


def stain(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A soft-edged tinted patch, or a ring left by a dried drop."""
    size = image.shape[1]
    area = max(area, 0.001)
    distance = blob(rng, size, spot(rng, scene), area)
    radius = math.sqrt(area / math.pi)
    soft = step(distance, radius * rng.uniform(0.1, 0.9) + 1.5 / size)
    if chance(rng, 0.25):
        ring = np.exp(-((distance / (radius * rng.uniform(0.1, 0.25))) ** 2))
        soft = np.maximum(soft * rng.uniform(0.2, 0.6), ring)
    if chance(rng, 0.4):
        soft = soft * np.clip(0.75 + 0.25 * clouds(rng, size, 12), 0.2, 1)
    soft = soft * scene.alpha
    amount = contrast(rng, scene)
    if chance(rng, 0.5):
        tint = np.clip(1 + amount * 1.3 + rng.normal(0, 0.18, 3), 0.1, 2.2)
        return Change(image * (1 + (colour_array(tint.tolist()) - 1) * soft), soft)
    return Change(image + _shift(rng, amount) * soft, soft)


def discolouration(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A wide patch whose hue or brightness has drifted."""
    size = image.shape[1]
    area = max(area, 0.01)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.1, 0.4))
    soft = step(distance, math.sqrt(area) * rng.uniform(0.1, 0.7)) * scene.alpha
    drift = rng.normal(0, 1, 3) + rng.normal(0, 0.7)
    drift *= (log_uniform(rng, 0.07, 0.3) + scene.rough) / (np.abs(drift).max() + 1e-3)
    grey = luma(image)
    changed = image + colour_array(drift.tolist()) * (0.5 + 0.5 * grey) * soft
    return Change(changed, soft)


def contamination(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A lump or smudge of a foreign material with its own texture, lit like the rest."""
    size = image.shape[1]
    distance = blob(rng, size, spot(rng, scene), area)
    cover = edge(distance)
    if scene.shape != "surface":
        cover = cover * np.maximum(scene.alpha, 0.0)
    radius = math.sqrt(area / math.pi)
    dome = np.sqrt(np.clip(-distance / radius, 0, 1))
    slope = np.clip(relief(dome, scene.light) * rng.uniform(0, 0.06), -0.4, 0.4)
    colour = colour_array(random_colour(rng, grey=0.5))
    local = float(luma(image)[cover > 0.5].mean()) if (cover > 0.5).any() else 0.5
    if abs(float(colour.mean()) - local) < 0.1 + scene.rough:
        colour = np.clip(colour + (0.25 if local < 0.5 else -0.25), 0, 1)
    grain = spectral(rng, size, slope=rng.uniform(0.3, 1.6)) * log_uniform(rng, 0.01, 0.12)
    changed = mix(image, (colour + grain) * (1 + slope), cover * rng.uniform(0.6, 1.0))
    return Change(changed, cover, solid=True)


def warp(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """The pattern pulled, twisted or squeezed inside a patch."""
    size = image.shape[1]
    if scene.shape == "surface" and (scene.rough < 0.015 or scene.material in SHAPELESS):
        return None
    area = max(area, 0.004)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=0.1)
    cover = step(distance, radius * 0.8)
    box = bounds(distance < radius * 0.4, 2)
    if box is None:
        return None
    rows, columns = box
    push = radius * size * rng.uniform(0.08, 0.3)
    dy, dx = (
        clouds(rng, size, min(0.6 / radius, 40))[rows, columns] * cover[rows, columns] * push
        for _ in range(2)
    )
    r, c = np.indices(dy.shape, dtype=np.float32)
    at = np.stack([r + rows.start + dy, c + columns.start + dx])
    changed = image.copy()
    for channel in range(3):
        changed[channel, rows, columns] = ndimage.map_coordinates(image[channel], at, order=1, mode="mirror")
    return Change(changed, (cover > 0.05).astype(np.float32), solid=True)


def smear(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A patch in which the texture is wiped out, evenly or in one direction."""
    size = image.shape[1]
    if scene.rough < 0.03:
        return None
    area = max(area, 0.004)
    distance = blob(rng, size, spot(rng, scene), area)
    cover = step(distance, math.sqrt(area) * rng.uniform(0.05, 0.4)) * scene.alpha
    width = max(3, round(size * rng.uniform(0.02, 0.08)))
    if chance(rng, 0.5):
        wiped = ndimage.uniform_filter1d(image, width * 2, axis=int(rng.integers(1, 3)), mode="mirror")
    else:
        wiped = np.stack([soft_blur(np.ascontiguousarray(channel), width) for channel in image])
    return Change(mix(image, wiped + rng.normal(0, 0.02), cover), cover, solid=True)


def dent(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A hollow or bump seen by its shading only."""
    size = image.shape[1]
    area = max(area, 0.0015)
    radius = math.sqrt(area / math.pi)
    u, v = rotated(size, spot(rng, scene), rng.uniform(0, math.pi))
    aspect = log_uniform(rng, 1, 2.5)
    height = np.exp(-1.5 * (u * u * aspect + v * v / aspect) / (radius * radius))
    slope = relief(height, scene.light) * radius
    strength = (log_uniform(rng, 0.1, 0.5) + scene.rough) * (1 if chance(rng, 0.5) else -1)
    shade = (slope * strength + rng.uniform(-0.3, 0.1) * abs(strength) * height) * scene.alpha
    if chance(rng, 0.3):
        shade = shade + abs(strength) * step(np.abs(slope - 0.5) - 0.1, 0.2) * height
    return Change(image + shade, (height > 0.01) * scene.alpha, solid=True)


def lump(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A swelling of the same stuff: blister, polyp, nodule; domed, often tinted."""
    size = image.shape[1]
    area = max(area, 0.002)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.02, 0.2))
    height = np.sqrt(np.clip(-distance / radius, 0, 1))
    slope = np.clip(relief(blur(height, radius * 0.12), scene.light) * radius, -1, 1)
    cover = step(distance, radius * rng.uniform(0.05, 0.5) + 1.0 / size) * scene.alpha
    tint = colour_array((1 + rng.normal(0, 0.15) + rng.normal(0, 0.12, 3)).tolist())
    strength = log_uniform(rng, 0.05, 0.3) + scene.rough
    changed = image * (1 + (tint - 1) * cover) + strength * slope * cover
    if chance(rng, 0.4):
        gloss = step(np.abs(slope - 0.9) - 0.15, 0.3) * cover
        changed = changed + rng.uniform(0.1, 0.4) * gloss
    return Change(changed, cover, solid=True)


def wrinkle(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A fold or ridge: a line lit on one side, dark on the other."""
    size = image.shape[1]
    length = min(0.8, max(0.08, math.sqrt(area) * 2.5))
    width = min(max(area / length, 2.0 / size), 0.03)
    lines = []
    origin = spot(rng, scene)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        points = curve(rng, origin, length, bend=0.8, wobble=0.08)
        lines.append((points, (width * np.sin(np.linspace(0.3, 2.8, len(points)))).tolist()))
    height = blur(strokes(size, lines), width * 0.5)
    slope = relief(height, scene.light) * width
    strength = rng.uniform(0.2, 0.8) + 2 * scene.rough
    cover = np.clip(height * 2.5, 0, 1) * scene.alpha
    return Change(image + slope * strength * scene.alpha - 0.1 * strength * height * scene.alpha, cover)


def cut(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A straight slit, opened like a lens, dark or showing what lies below."""
    size = image.shape[1]
    length = min(0.6, max(0.05, math.sqrt(area) * rng.uniform(1.5, 3)))
    opening = min(max(area / length, 1.5 / size), 0.05)
    x, y = spot(rng, scene)
    u, v = rotated(size, (x, y), rng.uniform(0, math.pi))
    profile = 0.5 * opening * np.clip(1 - (2 * u / length) ** 2, 0, 1)
    distance = np.abs(v + rng.uniform(-0.4, 0.4) * u * u / length) - profile
    distance = np.maximum(distance, np.abs(u) - length / 2)
    cover = edge(distance) * scene.alpha
    inner = (
        image * rng.uniform(0.05, 0.4) - scene.rough * 0.5
        if scene.under is None or chance(rng, 0.6)
        else scene.under
    )
    changed = mix(image, inner, cover)
    if chance(rng, 0.5):
        lip = step(np.abs(distance - 0.004) - 0.003, 0.006) * scene.alpha * (np.abs(u) < length / 2)
        changed = changed + rng.uniform(0.1, 0.35) * lip * (1 - cover)
        cover = np.maximum(cover, lip)
    return Change(changed, cover)


def thread(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A fibre, hair or loose end lying on top, with a thin shadow."""
    size = image.shape[1]
    length = log_uniform(rng, 0.1, 1.2)
    width = max(0.7 / size, log_uniform(rng, 0.003, 0.014))
    points = curve(
        rng, spot(rng, scene), length, bend=rng.uniform(1, 5), wobble=rng.uniform(0.02, 0.25), steps=40
    )
    cover = strokes(size, [(points, [width] * len(points))])
    colour = random_colour(rng, grey=0.5)
    if abs(sum(colour) / 3 - float(image.mean())) < 0.15 + scene.rough:
        colour = (0.95, 0.95, 0.93) if float(image.mean()) < 0.5 else (0.06, 0.06, 0.07)
    shadow = np.roll(cover, (1, 1), (0, 1)) * rng.uniform(0, 0.4)
    changed = mix(image * (1 - shadow), colour_array(colour), cover)
    return Change(changed, np.maximum(cover, shadow))


def burn(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A scorch or rust patch: dark or brown core, a warm halo, mottled."""
    size = image.shape[1]
    area = max(area, 0.002)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.2, 0.5))
    radius = math.sqrt(area / math.pi)
    mottle = np.clip(0.8 + 0.3 * spectral(rng, size, slope=rng.uniform(0.6, 1.5)), 0.1, 1.3)
    soft = step(distance, radius * rng.uniform(0.3, 1.2)) * mottle * scene.alpha
    target = colour_array((0.45, 0.24, 0.1)) if chance(rng, 0.5) else colour_array((0.1, 0.08, 0.06))
    return Change(mix(image, target, np.clip(soft * rng.uniform(0.45, 1.0), 0, 1)), np.clip(soft, 0, 1))


COMMON: dict[str, Defect] = {
    f.__name__: f
    for f in (
        scratch, streak, crack, hole, pits, stain, discolouration, contamination, warp, smear, dent, lump,
        wrinkle, cut, thread, burn,
    )
}  # fmt: skip
