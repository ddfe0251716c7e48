"""Defects of structure: missing, misplaced and extra parts, chips, and faults of line art (open, short ...)."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from blemish.synth.breaks import element as part_of
from blemish.synth.compose import Scene
from blemish.synth.defects import SHAPELESS, Change, Defect, spot
from blemish.synth.fields import (
    Field,
    Rng,
    blob,
    chance,
    clouds,
    colour_array,
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


def missing(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A part of a row left out, or a piece broken off an object's border."""
    if scene.under is None:
        return None
    element = part_of(rng, scene)
    if element is not None:
        cover = ndimage.binary_dilation(element, iterations=1).astype(np.float32)
        return Change(mix(image, scene.under, cover), cover, solid=True)
    if scene.shape == "surface":
        return None
    size = image.shape[1]
    border = (scene.alpha > 0.5) & (soft_blur(scene.alpha, max(3, size // 20)) < 0.85)
    if not border.any():
        return None
    centre = spot(rng, scene, border.astype(np.float32))
    distance = blob(rng, size, centre, min(max(area, 0.003) * 2, 0.3), ragged=rng.uniform(0.05, 0.35))
    if chance(rng, 0.35):
        u, _ = rotated(size, centre, rng.uniform(0, 2 * math.pi))
        distance = u + 0.02 * clouds(rng, size, 10) - 0.02
        if float(((distance < 0) & (scene.alpha > 0.5)).mean()) > 0.2:
            return None
    cover = edge(distance) * scene.alpha
    changed = mix(image, scene.under, cover)
    if chance(rng, 0.6):
        face = step(np.abs(distance - 0.008) - 0.006, 0.006) * scene.alpha
        changed = changed * (1 + rng.uniform(-0.5, 0.3) * face * (1 - cover))
        cover = np.maximum(cover, face)
    return Change(changed, cover, solid=True)


def chip(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A flake off the surface: rough stuff of another tone with a lit border."""
    size = image.shape[1]
    area = min(max(area, 0.001), 0.06)
    distance = blob(rng, size, spot(rng, scene), area, ragged=rng.uniform(0.2, 0.45))
    cover = edge(distance) * scene.alpha
    rough = spectral(rng, size, slope=rng.uniform(0.8, 1.6))
    tone = rng.uniform(0.1, 0.35) * (1 if chance(rng, 0.6) else -1) * (1 + 2 * scene.rough)
    inner = image.mean((1, 2), keepdims=True) + tone + rng.uniform(0.03, 0.1) * rough
    changed = mix(image, inner, cover)
    rim = step(np.abs(distance) - 0.006, 0.006) * scene.alpha
    changed = changed + rng.uniform(0.1, 0.3) * rim * np.clip(-relief(distance, scene.light), -1, 1)
    return Change(changed, np.maximum(cover, rim), solid=True)


def foreign(rng: Rng, scene: Scene, image: Field, area: float) -> Change:
    """Something that does not belong: a small shaded body with a shadow, on the part or beside it."""
    size = image.shape[1]
    area = min(max(area, 0.0008), 0.1)
    radius = math.sqrt(area / math.pi)
    x, y = spot(rng, scene) if chance(rng, 0.75) else (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9))
    u, v = rotated(size, (x, y), rng.uniform(0, 2 * math.pi))
    aspect = log_uniform(rng, 1, 4)
    kind = int(rng.integers(4))
    distance: Field
    if kind == 0:
        distance = np.sqrt(u * u * aspect + v * v / aspect) - radius
    elif kind == 1:
        root = math.sqrt(aspect)
        distance = np.maximum(np.abs(u) - radius / root, np.abs(v) - radius * root * 0.8)
    elif kind == 2:
        distance = blob(rng, size, (x, y), area)
    else:
        distance = np.abs(np.sqrt(u * u + v * v) - radius) - radius * rng.uniform(0.2, 0.4)
    cover = edge(distance)
    height = np.clip(-distance / (radius * rng.uniform(0.2, 0.8)), 0, 1)
    shade = 1 + np.clip(relief(height, scene.light) * radius * rng.uniform(0.1, 0.3), -0.4, 0.4)
    colour = np.asarray(random_colour(rng, grey=0.4))
    inside = cover > 0.5
    local = float(luma(image)[inside].mean()) if inside.any() else 0.5
    if abs(float(colour.mean()) - local) < 0.15 + scene.rough:
        colour = colour * 0.3 if local > 0.45 else 1 - 0.4 * (1 - colour)
    offset = max(1, round(size * rng.uniform(0.004, 0.015)))
    shadow = np.clip(np.roll(soft_blur(cover, 2), (offset, offset), (0, 1)), 0, 1) * rng.uniform(0, 0.5)
    grain = rng.uniform(0, 0.05) * spectral(rng, size, slope=0.8)
    changed = mix(image * (1 - shadow), (colour_array(colour.tolist()) + grain) * shade, cover)
    return Change(changed, np.maximum(cover, shadow), solid=True)


def misplaced(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A part of a row moved from its place, or a patch of a pattern shifted or turned."""
    size = image.shape[1]
    element = part_of(rng, scene)
    if element is not None and scene.under is not None:
        rows, columns = (np.flatnonzero(element.any(axis)) for axis in (1, 0))
        extent = max(len(rows), len(columns))
        angle = rng.uniform(0, 2 * math.pi)
        reach = extent * rng.uniform(0.2, 0.6)
        move = (round(math.sin(angle) * reach), round(math.cos(angle) * reach))
        cover = ndimage.binary_dilation(element, iterations=1).astype(np.float32)
        emptied = mix(image, scene.under, cover)
        lifted, mould = np.roll(image, move, (1, 2)), np.roll(element.astype(np.float32), move, (0, 1))
        return Change(mix(emptied, lifted, mould), np.maximum(cover, mould), solid=True)
    if scene.rough < 0.03 or scene.material in SHAPELESS:
        return None
    area = max(area, 0.004)
    distance = blob(rng, size, spot(rng, scene), area, ragged=0.1)
    cover = edge(distance) * scene.alpha
    if scene.shape == "surface" and chance(rng, 0.6):
        other = np.rot90(image, int(rng.integers(1, 4)), (1, 2))
    else:
        reach = max(3, round(size * math.sqrt(area) * rng.uniform(0.2, 0.8)))
        other = np.roll(image, rng.integers(-reach, reach + 1, 2).tolist(), (1, 2))
    return Change(mix(image, other, cover), cover, solid=True)


def _nearby(scene: Scene, rng: Rng, on_ink: bool) -> tuple[slice, slice, Field, np.ndarray] | None:
    """A window of line art around a random place.

    Returns its rows and columns, the depth of its pixels inside ink (or gap) and the nearest pixel outside.
    """
    assert scene.ink is not None
    size = scene.ink.shape[0]
    target = scene.ink if on_ink else 1 - scene.ink
    x, y = spot(rng, scene, target)
    reach = max(16, size // 6)
    rows = slice(max(0, int(y * size) - reach), min(size, int(y * size) + reach))
    columns = slice(max(0, int(x * size) - reach), min(size, int(x * size) + reach))
    inside = target[rows, columns] > 0.5
    if inside.all() or not inside.any():
        return None
    depth, nearest = ndimage.distance_transform_edt(inside, return_indices=True)
    return rows, columns, depth.astype(np.float32), nearest


def _ridge(rng: Rng, depth: Field, low: float, high: float) -> tuple[int, int] | None:
    """A random pixel on the middle line of tracks (or gaps) whose half width is between low and high pixels."""
    peaks = (depth >= ndimage.maximum_filter(depth, 3) - 0.3) & (depth >= low) & (depth <= high)
    peaks[:2], peaks[-2:], peaks[:, :2], peaks[:, -2:] = False, False, False, False
    found = np.flatnonzero(peaks)
    if not len(found):
        return None
    row, column = divmod(int(found[rng.integers(len(found))]), depth.shape[1])
    return row, column


def _repaint(scene: Scene, image: Field, cover: Field, *, add: bool) -> Change | None:
    """Ink added (foreground) or removed (what lies below) within cover."""
    if scene.under is None or scene.fore is None or scene.ink is None:
        return None
    cover = cover * scene.alpha * ((1 - scene.ink) if add else 1.0)
    return Change(mix(image, scene.fore if add else scene.under, cover), cover)


def _across(scene: Scene, rng: Rng, on_ink: bool) -> tuple[tuple[float, float], float, float] | None:
    """A middle point of a track (or gap): centre (x, y), half width, direction of the nearest border (radians)."""
    if scene.ink is None:
        return None
    size = scene.ink.shape[0]
    for _ in range(3):
        near = _nearby(scene, rng, on_ink)
        if near is None:
            continue
        rows, columns, depth, nearest = near
        found = _ridge(rng, depth, 1.0, size / 14)
        if found is None:
            continue
        row, column = found
        to_row, to_column = (int(i) for i in nearest[:, row, column])
        centre = ((column + columns.start + 0.5) / size, (row + rows.start + 0.5) / size)
        return centre, float(depth[row, column]) / size, math.atan2(to_row - row, to_column - column)
    return None


def _line(size: int, start: tuple[float, float], angle: float, length: float, width: float) -> Field:
    end = (start[0] + math.cos(angle) * length, start[1] + math.sin(angle) * length)
    return strokes(size, [([start, end], [width])])


def open_circuit(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A track, wire or printed line interrupted."""
    found = _across(scene, rng, on_ink=True)
    if found is None:
        return None
    (x, y), half, angle = found
    size = image.shape[1]
    reach = half * 1.5 + 1.0 / size
    start = (x - math.cos(angle) * reach, y - math.sin(angle) * reach)
    return _repaint(
        scene, image, _line(size, start, angle, 2 * reach, half * rng.uniform(0.7, 3) + 1 / size), add=False
    )


def short(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """Two neighbouring tracks bridged."""
    found = _across(scene, rng, on_ink=False)
    if found is None:
        return None
    (x, y), half, angle = found
    size = image.shape[1]
    reach = half * 1.25 + 1.0 / size
    start = (x - math.cos(angle) * reach, y - math.sin(angle) * reach)
    width = max(half * rng.uniform(0.3, 1.4), 1.5 / size)
    return _repaint(scene, image, _line(size, start, angle, 2 * reach, width), add=True)


def spur(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """Copper growing out of a track without reaching the next."""
    found = _across(scene, rng, on_ink=False)
    if found is None:
        return None
    (x, y), half, angle = found
    size = image.shape[1]
    reach = half * rng.uniform(0.6, 1.2) + 1.5 / size
    start = (x + math.cos(angle) * half, y + math.sin(angle) * half)
    width = max(half * rng.uniform(0.4, 1.0), 1.5 / size)
    return _repaint(
        scene, image, _line(size, start, angle + math.pi + rng.normal(0, 0.3), reach, width), add=True
    )


def mouse_bite(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A notch in the border of a track."""
    found = _across(scene, rng, on_ink=True)
    if found is None:
        return None
    (x, y), half, angle = found
    size = image.shape[1]
    centre = (x + math.cos(angle) * half, y + math.sin(angle) * half)
    radius = max(half * rng.uniform(0.6, 1.3), 1.6 / size)
    return _repaint(scene, image, edge(blob(rng, size, centre, math.pi * radius**2, ragged=0.2)), add=False)


def pinhole(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """A small hole inside copper or print."""
    found = _across(scene, rng, on_ink=True)
    if found is None:
        return None
    centre, half, _ = found
    size = image.shape[1]
    radius = max(half * rng.uniform(0.3, 0.7), 1.2 / size)
    return _repaint(scene, image, edge(blob(rng, size, centre, math.pi * radius**2, ragged=0.15)), add=False)


def island(rng: Rng, scene: Scene, image: Field, area: float) -> Change | None:
    """Copper or print where there should be none."""
    found = _across(scene, rng, on_ink=False)
    if found is None:
        return None
    centre, half, _ = found
    size = image.shape[1]
    radius = max(half * rng.uniform(0.35, 0.9), 1.3 / size)
    return _repaint(scene, image, edge(blob(rng, size, centre, math.pi * radius**2, ragged=0.35)), add=True)


PARTS: dict[str, Defect] = {f.__name__: f for f in (missing, chip, foreign, misplaced)}
LINE_ART: dict[str, Defect] = {
    f.__name__: f for f in (open_circuit, short, spur, mouse_bite, pinhole, island)
}
