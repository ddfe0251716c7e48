"""Defects of living things as cameras and scanners show them: lesions, polyps, tumours, bleeds, nodules, opacities."""

from __future__ import annotations

import math

import numpy as np

from blemish.synth.compose import Scene
from blemish.synth.defects import Change, Defect, spot
from blemish.synth.fields import (
    Field,
    Rng,
    blob,
    blur,
    chance,
    clouds,
    colour_array,
    log_uniform,
    luma,
    mix,
    relief,
    spectral,
    step,
)


def lesion(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A pigmented or inflamed spot on skin: uneven brown, black or red with a soft ragged border."""
    size = image.shape[1]
    area = log_uniform(rng, max(area, 0.002), 0.3)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.1, 0.45))
    cover = step(distance, radius * rng.uniform(0.05, 0.6)) * scene.alpha
    mottle = clouds(rng, size, min(1.5 / radius, size / 4)) + 0.4 * spectral(rng, size, slope=0.8)
    tones = ((0.3, 0.2, 0.16), (0.55, 0.36, 0.28), (0.12, 0.1, 0.1), (0.9, 0.5, 0.48), (0.6, 0.5, 0.48))
    first, second = (colour_array(tones[i]) for i in rng.choice(len(tones), 2, replace=False).tolist())
    inner = mix(first, second, np.clip(0.5 + rng.uniform(0, 0.5) * mottle, 0, 1)) * (1 + 0.06 * mottle)
    light = luma(image) / max(float(luma(image).mean()), 0.05)
    return Change(mix(image, inner * light, cover * rng.uniform(0.35, 0.95)), cover, solid=True)


def polyp(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A rounded growth of the same wet tissue, lit like the rest, with a shadow at its foot and glare on top."""
    size = image.shape[1]
    area = log_uniform(rng, max(area, 0.004), 0.2)
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.02, 0.15))
    height = np.sqrt(np.clip(-distance / radius, 0, 1))
    cover = step(distance, radius * rng.uniform(0.05, 0.25)) * scene.alpha
    texture = clouds(rng, size, min(4 / radius, size / 3))
    tint = colour_array((1 + rng.uniform(-0.05, 0.25) + rng.normal(0, 0.06, 3)).tolist())
    inside = cover > 0.5
    own = image[:, inside].mean(axis=1) if inside.any() else np.full(3, 0.5)
    flat = colour_array(own.tolist()) * (0.55 + 0.6 * height) * (1 + rng.uniform(0.01, 0.06) * texture)
    changed = mix(image, (image + (flat - image) * rng.uniform(0.4, 1.0)) * tint, cover)
    slope = np.clip(relief(blur(height, radius * 0.1), scene.light) * radius, -1, 1)
    changed = changed + rng.uniform(0.04, 0.15) * slope * cover
    foot = step(np.abs(distance - 0.1 * radius) - 0.08 * radius, 0.1 * radius) * scene.alpha
    changed = changed * (1 - rng.uniform(0.1, 0.45) * foot * (1 - cover))
    if chance(rng, 0.6):
        shine = step(rng.uniform(0.8, 1.5) - texture - slope, 0.3) * cover
        changed = mix(changed, 1.0, shine * rng.uniform(0.3, 0.9))
    return Change(changed, np.maximum(cover, foot), solid=True)


def _inside(rng: Rng, scene: Scene, area: float, ragged: float) -> tuple[Field, Field, float]:
    """Signed distance, soft cover and radius of a patch within the tissue."""
    size = scene.alpha.shape[0]
    radius = math.sqrt(area / math.pi)
    distance = blob(rng, size, spot(rng, scene), area, ragged=ragged)
    return distance, step(distance, radius * rng.uniform(0.1, 0.6)) * scene.alpha, radius


def tumour(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A mass in a section: a bright or dark core, often with a bright ring and swollen tissue around it."""
    size = image.shape[1]
    area = min(max(area, 0.003), 0.08)
    distance, cover, radius = _inside(rng, scene, area, rng.uniform(0.1, 0.35))
    sign = 1.0 if chance(rng, 0.7) else -1.0
    amount = sign * (log_uniform(rng, 0.08, 0.4) + scene.rough)
    grain = 1 + 0.3 * clouds(rng, size, min(2 / radius, size / 4))
    changed = image + amount * grain * cover
    if chance(rng, 0.5):
        ring = step(np.abs(distance + 0.15 * radius) - 0.12 * radius, 0.15 * radius) * scene.alpha
        changed = changed - amount * rng.uniform(0.3, 1.4) * (cover - ring) * (distance < -0.2 * radius)
    if chance(rng, 0.5):
        halo = step(distance - rng.uniform(0.3, 0.9) * radius, 0.6 * radius) * scene.alpha
        changed = changed + rng.uniform(-0.1, 0.12) * halo * (1 - cover)
        cover = np.maximum(cover, halo)
    return Change(changed, cover, solid=True)


def bleed(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """Fresh blood in a section: a bright patch, a crescent along the skull, or streaks in the folds."""
    size = image.shape[1]
    area = min(max(area, 0.003), 0.09)
    kind = rng.random()
    amount = log_uniform(rng, 0.1, 0.4) + scene.rough
    if kind < 0.4:
        _, cover, _ = _inside(rng, scene, area, rng.uniform(0.15, 0.4))
        return Change(image + amount * cover, cover, solid=True)
    distance, _, radius = _inside(rng, scene, area * 2.5, 0.15)
    near = step(distance, radius * 0.4) * scene.alpha
    if kind < 0.75:
        rim = blur(scene.alpha, rng.uniform(0.015, 0.04))
        crescent = step(rim - rng.uniform(0.8, 0.97), 0.04) * near
        return Change(image + amount * crescent, crescent, solid=True)
    web = np.exp(-((clouds(rng, size, rng.uniform(7, 14)) / 0.3) ** 2))
    return Change(image + amount * web * near, web * near)


def nodule(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A rounded region in speckle, darker or lighter than its surroundings, with or without a rim."""
    area = min(max(area, 0.004), 0.15)
    distance, cover, radius = _inside(rng, scene, area, rng.uniform(0.03, 0.25))
    factor = rng.uniform(0.15, 0.6) if chance(rng, 0.75) else rng.uniform(1.5, 2.2)
    changed = image * (1 + (factor - 1) * cover)
    if chance(rng, 0.5):
        rim = step(np.abs(distance) - 0.07 * radius, 0.1 * radius) * scene.alpha
        changed = changed + rng.uniform(-0.3, 0.3) * rim
        cover = np.maximum(cover, rim)
    if chance(rng, 0.25):
        specks = step(2.2 - spectral(rng, image.shape[1], band=(60, 20)), 0.4) * (distance < 0)
        changed = changed + rng.uniform(0.2, 0.5) * specks * cover
    return Change(changed, cover, solid=True)


def opacity(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """A cloudy whitening in a lung or a casting's radiograph, patchy or even."""
    size = image.shape[1]
    area = min(max(area, 0.01), 0.12)
    _, cover, radius = _inside(rng, scene, area, rng.uniform(0.15, 0.45))
    patchy = np.clip(0.7 + 0.5 * clouds(rng, size, min(2.5 / radius, size / 4)), 0, 1.3)
    cover = blur(cover, 0.01) * patchy * scene.alpha
    return Change(image + (log_uniform(rng, 0.07, 0.3) + scene.rough) * cover, cover, solid=True)


LESIONS: dict[str, Defect] = {f.__name__: f for f in (lesion, polyp, tumour, bleed, nodule, opacity)}
