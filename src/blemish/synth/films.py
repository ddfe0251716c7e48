"""Defects of films, deposits and wear: oil, glue, mould, pokes, abraded patches, broken-off crumbs."""

from __future__ import annotations

import math

import numpy as np

from blemish.synth.compose import Scene
from blemish.synth.defects import Change, Defect, contrast, spot
from blemish.synth.fields import (
    Field,
    Rng,
    blob,
    blur,
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
    spectral,
    step,
    strokes,
)


def oil(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A wet film: darker, more saturated, rainbow fringes or a bright meniscus; sometimes a spray of drops."""
    size = image.shape[1]
    area = max(area, 0.002)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.05, 0.35))
    if chance(rng, 0.4):
        drops = step(rng.uniform(0.6, 1.4) - spectral(rng, size, band=(rng.uniform(12, 40), 8)), 0.3)
        cover = drops * step(distance, math.sqrt(area) * 0.5) * scene.alpha
    else:
        cover = step(distance, rng.uniform(0.006, 0.03)) * scene.alpha
    deep = rng.uniform(0.15, 0.5) + scene.rough
    grey = luma(image)
    changed = image - deep * cover * (0.35 * image + 0.2 * (grey[None] - image) + 0.08)
    rim = step(np.abs(distance + 0.006) - 0.005, 0.008) * cover
    changed = changed + rng.uniform(0.05, 0.35) * rim
    if chance(rng, 0.4):
        phase = distance * rng.uniform(60, 200) + clouds(rng, size, 6)
        bands = np.stack([np.cos(phase + shift) for shift in (0.0, 2.1, 4.2)])
        changed = changed + rng.uniform(0.05, 0.2) * bands * cover
    return Change(changed, cover, solid=True)


def glue(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A clear or milky drop or string of adhesive with sharp highlights."""
    size = image.shape[1]
    area = min(max(area, 0.0015), 0.08)
    radius = math.sqrt(area / math.pi)
    if chance(rng, 0.5):
        points = curve(rng, spot(rng, scene), radius * rng.uniform(3, 7), bend=3, wobble=0.15, steps=20)
        width = radius * rng.uniform(0.3, 0.6)
        bead = strokes(size, [(points, (width * rng.uniform(0.6, 1.4, len(points))).tolist())])
        height = np.clip(blur(bead, width * 0.35) * 1.4 - 0.3, 0, 1)
        lit = relief(height, scene.light) * width
    else:
        distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.05, 0.3))
        bead = edge(distance)
        height = np.sqrt(np.clip(-distance / radius, 0, 1))
        lit = relief(height, scene.light) * radius
    cover = np.clip(bead, 0, 1) * scene.alpha
    tint = colour_array((rng.choice([0.95, 0.9, 0.75]).item(), 0.9, rng.choice([0.9, 0.6]).item()))
    changed = mix(image, tint, cover * rng.uniform(0.1, 0.5) * height)
    changed = changed + (rng.uniform(0.08, 0.3) + scene.rough) * np.clip(lit, -1, 1) * cover
    gloss = step(np.abs(lit - rng.uniform(0.3, 0.7)) - 0.1, 0.2) * cover
    return Change(changed + rng.uniform(0.2, 0.6) * gloss, cover, solid=True)


def mould(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A ragged fuzzy growth or a bloom of rot, dense inside and speckled towards its rim."""
    size = image.shape[1]
    area = max(area, 0.004)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.2, 0.5))
    fuzz = spectral(rng, size, slope=rng.uniform(0.3, 1.0))
    dense = np.clip(0.9 - distance / radius * 0.8 + 0.5 * fuzz - 0.9, 0, 1)
    cover = np.clip(dense * 2, 0, 1) * step(distance - 0.4 * radius, 0.3 * radius) * scene.alpha
    tones = ((0.9, 0.9, 0.88), (0.35, 0.45, 0.4), (0.15, 0.16, 0.14), (0.5, 0.45, 0.3))
    tone = colour_array(tones[int(rng.integers(len(tones)))])
    if abs(float(tone.mean()) - float(image.mean())) < 0.12:
        tone = tone * 0.3 if float(image.mean()) > 0.4 else 1 - 0.2 * (1 - tone)
    return Change(mix(image, tone + 0.08 * fuzz, cover * rng.uniform(0.5, 0.95)), cover)


def poke(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A push of a pointed tool: a small dark core in a dimple with a raised, lit rim."""
    size = image.shape[1]
    radius = log_uniform(rng, 2.2 / size, max(0.03, 3.3 / size)) + 0.2 * math.sqrt(min(area, 0.02) / math.pi)
    u, v = rotated(size, spot(rng, scene), rng.uniform(0, math.pi), log_uniform(rng, 0.7, 1.4))
    r = np.sqrt(u * u + v * v) / radius
    core = step(r - rng.uniform(0.25, 0.5), 0.3)
    rim = np.exp(-(((r - 0.9) / 0.35) ** 2))
    toward = (u * math.cos(scene.light) + v * math.sin(scene.light)) / (radius * np.maximum(r, 0.2))
    strength = rng.uniform(0.15, 0.45) + scene.rough
    shade = (strength * rim * toward - (strength + 0.15) * core) * scene.alpha
    return Change(image + shade, (r < 1.8) * scene.alpha, solid=True)


def abrasion(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A rubbed patch: many fine scratches one way, or a surface made rough or dull."""
    size = image.shape[1]
    area = max(area, 0.004)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.15, 0.4))
    cover = step(distance, radius * rng.uniform(0.3, 1.0)) * scene.alpha
    if chance(rng, 0.6):
        grain = spectral(rng, size, slope=0.2, stretch=log_uniform(rng, 6, 30), angle=rng.uniform(0, math.pi))
        amount = np.clip(grain - rng.uniform(0, 0.8), 0, 2)
        return Change(image + contrast(rng, scene) * amount * cover, cover)
    grain = spectral(rng, size, slope=rng.uniform(0.2, 1.0))
    amount = (rng.uniform(0.04, 0.12) + 1.2 * scene.rough) * grain
    return Change(image + (amount + rng.normal(0, 0.04)) * cover, cover, solid=True)


def crumbs(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """Broken-off bits lying beside or on the object: flakes of its own stuff with small shadows."""
    if scene.shape == "surface" or scene.under is None:
        return None
    size = image.shape[1]
    x, y = spot(rng, scene)
    spread = rng.uniform(0.05, 0.25)
    lines = []
    for dx, dy in rng.normal(0, spread, (int(rng.integers(3, 24)), 2)).tolist():
        if 0.01 < x + dx < 0.99 and 0.01 < y + dy < 0.99:
            radius = log_uniform(rng, 1.0 / size, 0.02)
            tail = rng.normal(0, radius, 2).tolist()
            lines.append(([(x + dx, y + dy), (x + dx + tail[0], y + dy + tail[1])], [2 * radius]))
    if not lines:
        return None
    cover = strokes(size, lines) * (1 - scene.alpha if chance(rng, 0.7) else 1.0)
    inside = scene.alpha > 0.9
    own = image[:, inside].mean(axis=1) if inside.any() else np.full(3, 0.5)
    stuff = colour_array((own * rng.uniform(0.6, 1.3)).tolist()) + 0.06 * spectral(rng, size, slope=0.6)
    shadow = np.roll(cover, (1, 1), (0, 1)) * (1 - cover) * rng.uniform(0, 0.5)
    return Change(mix(image * (1 - shadow), stuff, cover), np.maximum(cover, shadow))


FILMS: dict[str, Defect] = {f.__name__: f for f in (oil, glue, mould, poke, abrasion, crumbs)}
