"""Defects of whole parts: broken, bent, of a wrong colour, turned round; faults of weave and print."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from blemish.synth.compose import Scene
from blemish.synth.defects import Change, Defect, spot
from blemish.synth.fields import (
    Field,
    Mask,
    Rng,
    blob,
    chance,
    clouds,
    colour_array,
    edge,
    log_uniform,
    luma,
    mix,
    rotated,
    soft_blur,
    spectral,
    step,
)
from blemish.synth.palette import random_colour


def element(rng: Rng, scene: Scene) -> Mask | None:
    """One separate part of a pattern or row: a whole one if possible."""
    if scene.labels is None:
        return None
    numbers, counts = np.unique(scene.labels[scene.labels > 0], return_counts=True)
    whole = numbers[counts > 0.5 * counts.max()] if len(numbers) else numbers
    if not len(whole):
        return None
    number = int(whole[rng.integers(len(whole))])
    chosen: Mask = scene.labels == number
    return chosen if chosen.mean() < 0.2 else None


def _side(rng: Rng, scene: Scene, low: float, high: float) -> tuple[Field, float] | None:
    """A jagged line across the object: the signed distance to it, with a share `low` to `high` of the object beyond.

    Returns the distance (positive beyond the line) and the line's angle in radians.
    """
    inside = scene.alpha > 0.5
    if scene.under is None or scene.shape == "surface" or not inside.any():
        return None
    size = scene.alpha.shape[0]
    angle = rng.uniform(0, 2 * math.pi)
    u, v = rotated(size, (0.5, 0.5), angle)
    jagged = u + rng.uniform(0.004, 0.02) * clouds(rng, size, rng.uniform(6, 20))
    jagged = jagged + rng.uniform(0.01, 0.05) * clouds(rng, size, rng.uniform(2, 4))
    if chance(rng, 0.3):
        jagged = jagged + rng.uniform(-2, 2) * v * v
    place = float(np.quantile(jagged[inside][::7], 1 - rng.uniform(low, high)))
    return jagged - place, angle


def _wedge(rng: Rng, scene: Scene) -> tuple[Field, float] | None:
    """A jagged sector with its tip inside the object, open to a side: as `_side`, with its middle line's angle."""
    inside = scene.alpha > 0.5
    if scene.under is None or scene.shape == "surface" or not inside.any():
        return None
    size = scene.alpha.shape[0]
    angle = rng.uniform(0, 2 * math.pi)
    u, v = rotated(size, spot(rng, scene), angle)
    half = log_uniform(rng, 0.05, 0.8)
    v = v + rng.uniform(0, 0.05) * clouds(rng, size, rng.uniform(2, 7))
    distance = u * math.sin(half) - np.abs(v) * math.cos(half)
    distance = distance + rng.uniform(0.002, 0.012) * clouds(rng, size, rng.uniform(8, 25))
    share = float((distance[inside] > 0).mean())
    return (distance, angle) if 0.01 < share < 0.6 else None


def broken(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """An object broken through: a side or a wedge is gone or has shifted; the fracture shows rough stuff."""
    found = _wedge(rng, scene) if chance(rng, 0.4) else _side(rng, scene, 0.06, 0.55)
    if found is None or scene.under is None:
        return None
    distance, angle = found
    size = image.shape[1]
    gone = edge(-distance) * scene.alpha
    face_width = rng.uniform(0.004, 0.035)
    face = step(np.abs(distance + 0.5 * face_width) - 0.5 * face_width, 0.006) * scene.alpha * (1 - gone)
    inside = scene.alpha > 0.9
    own = image[:, inside].mean(axis=1) if inside.any() else np.full(3, 0.5)
    rough = spectral(rng, size, slope=rng.uniform(0.5, 1.2))
    tone = colour_array((own * rng.uniform(0.55, 1.5)).tolist()) + rng.uniform(0.04, 0.12) * rough
    below = scene.under * (1 - rng.uniform(0, 0.5) * soft_blur(1 - gone, max(3, size // 40)))
    changed = mix(mix(image, below, gone), tone, face * rng.uniform(0.3, 0.95))
    support = np.maximum(gone, face)
    if chance(rng, 0.3):
        reach = size * rng.uniform(0.015, 0.08)
        turn = angle + rng.normal(0, 0.3)
        move = (round(math.sin(turn) * reach), round(math.cos(turn) * reach))
        piece, mould = np.roll(image, move, (1, 2)), np.roll(gone, move, (0, 1))
        changed = mix(changed, piece, mould)
        support = np.maximum(support, mould)
    return Change(changed, support, solid=True)


def bent(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """One end of an object (a leg, a tip, an arm) bent sideways against the rest."""
    found = _side(rng, scene, 0.06, 0.3)
    if found is None or scene.under is None:
        return None
    distance, angle = found
    size = image.shape[1]
    far = np.clip(distance, 0, None)
    if float(far.max()) * size < 3:
        return None
    reach = float(far[scene.alpha > 0.5].max()) + 1e-3
    push = rng.uniform(0.15, 0.5) * (1 if chance(rng, 0.5) else -1)
    shift = (push * far * np.clip(far / reach, 0.3, 1) * size).astype(np.float32)
    rows, columns = np.indices((size, size), dtype=np.float32)
    at = np.stack([rows - shift * math.cos(angle), columns + shift * math.sin(angle)])
    alpha = ndimage.map_coordinates(scene.alpha, at, order=1, mode="nearest")
    moved = np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in image])
    beyond = step(-distance, 0.01)
    cleared = mix(image, scene.under, scene.alpha * beyond)
    changed = mix(cleared, moved, alpha * beyond)
    return Change(changed, np.maximum(alpha, scene.alpha) * beyond, solid=True)


def wrong_colour(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A part, or one end of an object, in a colour or tone it should not have."""
    chosen = element(rng, scene)
    if chosen is not None:
        cover: Field = ndimage.binary_dilation(chosen).astype(np.float32) * scene.alpha
    elif scene.shape == "surface":
        return None
    else:
        found = _side(rng, scene, 0.1, 0.5)
        if found is None:
            return None
        cover = step(-found[0], rng.uniform(0.005, 0.1)) * scene.alpha
    inside = cover > 0.5
    if not inside.any():
        return None
    grey = luma(image)
    mean = float(grey[inside].mean())
    colour = np.asarray(random_colour(rng, grey=0.3))
    if abs(float(colour.mean()) - mean) < 0.12 + scene.rough and float(np.ptp(colour)) < 0.3:
        colour = colour * 0.4 if mean > 0.4 else 1 - 0.5 * (1 - colour)
    painted = colour_array(colour.tolist()) * (0.4 + 0.6 * grey / max(mean, 0.05))
    return Change(mix(image, painted, cover * rng.uniform(0.4, 1.0)), cover, solid=True)


def turned(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A part of a row turned or tilted in its place."""
    chosen = element(rng, scene)
    if chosen is None or scene.under is None:
        return None
    size = image.shape[1]
    rows, columns = (np.flatnonzero(chosen.any(axis)) for axis in (1, 0))
    centre = (0.5 * (rows[0] + rows[-1]), 0.5 * (columns[0] + columns[-1]))
    half = int(0.75 * max(len(rows), len(columns))) + 2
    top, left = max(0, int(centre[0]) - half), max(0, int(centre[1]) - half)
    area_ = (slice(top, min(size, int(centre[0]) + half)), slice(left, min(size, int(centre[1]) + half)))
    angle = rng.uniform(0.25, 2.9) * (1 if chance(rng, 0.5) else -1)
    r, c = np.indices(chosen[area_].shape, dtype=np.float32)
    dy, dx = r + top - centre[0], c + left - centre[1]
    at = np.stack(
        [
            centre[0] + dy * math.cos(angle) - dx * math.sin(angle),
            centre[1] + dx * math.cos(angle) + dy * math.sin(angle),
        ]
    )
    mould = ndimage.map_coordinates(chosen.astype(np.float32), at, order=1)
    moved = np.stack([ndimage.map_coordinates(channel, at, order=1, mode="nearest") for channel in image])
    old = ndimage.binary_dilation(chosen[area_]).astype(np.float32)
    changed = image.copy()
    emptied = mix(image[(slice(None), *area_)], scene.under[(slice(None), *area_)], old)
    changed[(slice(None), *area_)] = mix(emptied, moved, mould)
    cover = np.zeros((size, size), dtype=np.float32)
    cover[area_] = np.maximum(old, mould)
    return Change(changed, cover, solid=True)


def weave_error(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A thread that is missing, doubled, of another tone or pulled, along a row or column of a weave."""
    if scene.threads is None:
        return None
    size = image.shape[1]
    axis = int(rng.integers(2))
    across, along = scene.threads[axis], scene.threads[1 - axis]
    x, y = spot(rng, scene)
    row, column = int(y * size), int(x * size)
    count = int(rng.choice([1, 1, 1, 2, 3]))
    start = math.floor(float(across[row, column]))
    middle = float(along[row, column])
    reach = rng.uniform(2, 30)
    inside = np.abs(across - start - 0.5 * count) - 0.5 * count
    cover = step(inside, 0.25) * step(np.abs(along - middle) - reach, 1.0) * scene.alpha
    kind = int(rng.integers(3))
    if kind == 0:
        changed: Field = image * (1 - rng.uniform(0.4, 0.9) * cover)
    elif kind == 1:
        changed = mix(
            image, colour_array(random_colour(rng)) * (0.5 + luma(image)), cover * rng.uniform(0.5, 1)
        )
    else:
        gradient = np.abs(np.gradient(across)[1]).mean()
        pitch = 1.0 / max(float(gradient), 0.02)
        changed = mix(image, np.roll(image, max(1, round(0.5 * pitch)), 2) * rng.uniform(0.75, 1.2), cover)
    return Change(changed, cover, solid=True)


def misprint(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """Print that is faint, doubled, smeared or left out in a patch."""
    if scene.ink is None or scene.under is None or scene.fore is None:
        return None
    size = image.shape[1]
    distance = blob(rng, size, spot(rng, scene, scene.ink), max(area, 0.004), ragged=0.3)
    patch = step(distance, rng.uniform(0.004, 0.04)) * scene.alpha
    kind = int(rng.integers(3))
    if kind == 0:
        cover = patch * scene.ink
        return Change(mix(image, scene.under, cover * rng.uniform(0.5, 1)), cover)
    move = (rng.choice([-1, 1], 2) * rng.integers(1, max(3, size // 40), 2)).tolist()
    if kind == 1:
        ghost = np.roll(scene.ink, move, (0, 1))
    else:
        ghost = ndimage.uniform_filter1d(scene.ink, max(5, size // 20), axis=int(rng.integers(2)))
    cover = patch * np.clip(ghost - scene.ink, 0, 1)
    return Change(mix(image, scene.fore, cover * rng.uniform(0.5, 1)), cover)


BREAKS: dict[str, Defect] = {
    f.__name__: f for f in (broken, bent, wrong_colour, turned, weave_error, misprint)
}
