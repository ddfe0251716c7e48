"""One generated picture: a scene, its defects with exact masks, the light and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from blemish.synth.camera import Camera, Pixels, develop, expose, random_camera
from blemish.synth.captions import NORMAL_STATES, states_of, title
from blemish.synth.defects import Change
from blemish.synth.families import DEFECT_FUNCTIONS, MATERIAL_FUNCTIONS, SURFACE, Families
from blemish.synth.fields import Field, Mask, Rng, blur, bounds, chance, close, log_uniform
from blemish.synth.fittings import fit
from blemish.synth.objects import SHAPES as OUTLINES
from blemish.synth.objects import Scene, backdrop, compose
from blemish.synth.palette import colour_name
from blemish.synth.structural import LINE_ART, PARTS

MIN_SIZE = 64
ATTEMPTS = 8
SCENES = 40
USUAL = ("scratch", "crack", "hole", "stain", "pits", "missing")
"""The defects that real parts show most, drawn somewhat more often."""
MIN_AREA, MAX_AREA = 0.0002, 0.35
"""A mask outside these fractions of the picture is not counted as a defect."""
BODIES = ("plastic", "paint", "brushed", "steel", "cast", "wood", "rubber", "ceramic", "stone", "foam")
"""Materials that most objects are made of."""
VISIBLE = 0.03
"""Least mean brightness change, of a full range of 1, inside a mask; below it a defect is not counted."""


@dataclass(frozen=True)
class Picture:
    """A generated picture and what is known about it.

    image: uint8 (H, W, 3). mask: bool (H, W), True on the defects; empty on a normal picture. caption: one sentence.
    states: words for its state. material, shape: names from MATERIALS and SHAPES. defect_type: the first defect's
    name, None when normal. colour: everyday word for the inspected thing's colour.
    """

    image: Pixels
    mask: Mask
    caption: str
    states: tuple[str, ...]
    material: str
    shape: str
    defect_type: str | None
    colour: str = "grey"


def draw(
    rng: Rng, size: int = 224, *, defect: bool | None = None, families: Families | None = None
) -> Picture:
    """Draw one picture; the same generator state gives the same picture.

    size: side in pixels, at least 64. defect: True, False, or None for a defective one in about 60 % of the draws.
    families: which materials, shapes and defect types may appear, all by default. Raises ValueError for a size too
    small, or when none of the allowed defects fits any allowed material or shape.
    """
    return draw_pair(rng, size, defect=defect, families=families)[0]


def draw_pair(
    rng: Rng, size: int = 224, *, defect: bool | None = None, families: Families | None = None
) -> tuple[Picture, Pixels]:
    """As `draw`, with the same shot without the defect, uint8 (H, W, 3), beside it."""
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; generated pictures are at least {MIN_SIZE} pixels wide")
    families = families or Families()
    wanted = chance(rng, 0.6) if defect is None else defect
    for _ in range(SCENES):
        scene = random_scene(rng, size, families)
        camera = random_camera(rng, size)
        clean = expose(scene.image, camera)
        if not wanted:
            return _picture(rng, scene, develop(clean, camera), np.zeros((size, size), dtype=bool), ())
        lit, mask, names = _damage(rng, scene, camera, clean, families)
        if names:
            return _picture(rng, scene, develop(lit, camera), mask, names)[0], develop(clean, camera)
    raise ValueError(
        f"none of the defects {', '.join(families.defects)} shows on the allowed materials "
        "and shapes; allow more of them"
    )


def random_scene(rng: Rng, size: int, families: Families) -> Scene:
    """A normal surface (about half) or object of the allowed materials and shapes."""
    outlines = [name for name in families.shapes if name != SURFACE]
    whole = SURFACE in families.shapes and (not outlines or chance(rng, 0.52))
    choice = families.materials
    if not whole and chance(rng, 0.6):
        choice = tuple(name for name in choice if name in BODIES) or choice
    material = choice[int(rng.integers(len(choice)))]
    if "circuit" in families.materials and whole and chance(rng, 0.06):
        material = "circuit"
    texture = MATERIAL_FUNCTIONS[material](rng, size)
    if whole:
        plain = np.ones((size, size), dtype=np.float32)
        image = np.clip(texture.image, 0, 1)
        if texture.ink is None and chance(rng, 0.25):
            image = fit(rng, image)
        return Scene(
            image, plain, material, SURFACE, texture.under, texture.fore, texture.ink, texture.labels,
            rng.uniform(0, 6.28),
        )  # fmt: skip
    shape = outlines[int(rng.integers(len(outlines)))]
    form = OUTLINES[shape](rng, size)
    behind = None
    if chance(rng, 0.25):
        other = families.materials[int(rng.integers(len(families.materials)))]
        behind = MATERIAL_FUNCTIONS[other](rng, size)
    return compose(rng, texture, backdrop(rng, size, behind), form, material, shape)


def _candidates(rng: Rng, scene: Scene, families: Families) -> list[str]:
    """Allowed defects in the order to try them: those of the scene's own structure first, often."""
    names = list(families.defects)
    rng.shuffle(names)
    if chance(rng, 0.15):
        names.sort(key=lambda name: name not in USUAL)
    special: set[str] = set()
    if scene.ink is not None and chance(rng, 0.2 if scene.material == "printed" else 0.65):
        special |= set(LINE_ART)
    if scene.labels is not None and chance(rng, 0.35):
        special |= {"missing", "misplaced"}
    if scene.shape != SURFACE and chance(rng, 0.15):
        special |= set(PARTS)
    return sorted(names, key=lambda name: name not in special)


def _damage(
    rng: Rng, scene: Scene, camera: Camera, clean: Field, families: Families
) -> tuple[Field, Mask, tuple[str, ...]]:
    """The exposed picture with one to three visible defects, their mask, and their names (none: nothing fitted)."""
    size = clean.shape[1]
    image, lit = scene.image, clean
    mask = np.zeros((size, size), dtype=bool)
    kept: list[str] = []
    wanted = int(rng.choice([1, 1, 1, 1, 2, 2, 3]))
    candidates = _candidates(rng, scene, families)
    for attempt in range(min(ATTEMPTS, 4 * len(candidates))):
        name = candidates[attempt % len(candidates)]
        change = DEFECT_FUNCTIONS[name](rng, scene, image, log_uniform(rng, 0.0005, 0.2))
        if change is None:
            continue
        new = expose(change.image, camera)
        found = visible(lit, new, change, math.hypot(scene.rough, camera.noise), camera.sigma)
        if found is None:
            continue
        image, lit = np.clip(change.image, 0, 1), new
        mask |= found
        kept.append(name)
        if len(kept) == wanted:
            break
    return lit, mask, tuple(kept)


def visible(before: Field, after: Field, change: Change, rough: float, sigma: float) -> Mask | None:
    """The mask of a change: where it can be seen, as smooth blobs; None when it cannot be seen.

    before, after: exposed pictures (3, S, S). rough: deviation of the surface's own fine texture and the sensor's
    noise. sigma: the camera's blur, as a fraction of the side.
    """
    size = change.support.shape[0]
    amount = np.abs(after - before).max(axis=0)
    if float(amount.max()) < VISIBLE:
        return None
    amount = blur(amount, max(sigma, 0.7 / size))
    threshold = max(0.6 * VISIBLE, min(0.22 * float(amount.max()), 2 * VISIBLE), 0.25 * rough)
    box = bounds(amount > threshold, max(4, size // 32))
    if box is None:
        return None
    amount, support = amount[box], change.support[box]
    reach = 1 + math.ceil(
        1.5 * sigma * size
    )  # the camera's blur carries the change beyond where it was drawn
    near = ndimage.binary_dilation(support > 0.05, iterations=reach)
    spread = ndimage.uniform_filter(np.minimum(amount, 3 * threshold) * near, max(3, size // 56) | 1)
    found = ((amount > threshold) & near) | ((spread > threshold * 0.75) & (support > 0.25))
    if change.solid:
        found = ndimage.binary_fill_holes(close(found, 0.35 * math.sqrt(float(found.sum())))) & near
    else:
        found = close(found, 1.5)
    area = int(found.sum())
    if not max(5, MIN_AREA * size * size) <= area <= MAX_AREA * size * size:
        return None
    if float(amount[found].mean()) < 0.8 * VISIBLE + 0.6 * rough / (1 + math.sqrt(area) / 12):
        return None
    mask = np.zeros((size, size), dtype=bool)
    mask[box] = found
    return mask


def _picture(
    rng: Rng, scene: Scene, image: Pixels, mask: Mask, defects: tuple[str, ...]
) -> tuple[Picture, Pixels]:
    inside = scene.alpha > 0.5
    seen = image[::4, ::4][inside[::4, ::4]]
    mean = (seen if len(seen) else image.reshape(-1, 3)).mean(axis=0) / 255
    colour = colour_name((float(mean[0]), float(mean[1]), float(mean[2])))
    states = states_of(defects) if defects else NORMAL_STATES
    name = defects[0] if defects else None
    caption = title(rng, scene.material, scene.shape, colour, name)
    return Picture(image, mask, caption, states, scene.material, scene.shape, name, colour), image
