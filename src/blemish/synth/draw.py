"""One generated picture: a scene, its defects with exact masks, the light and the camera."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from blemish.synth.camera import Camera, Pixels, develop, expose, random_camera
from blemish.synth.captions import NORMAL_STATES, states_of, title
from blemish.synth.families import DEFECT_FUNCTIONS, MATERIAL_FUNCTIONS, SURFACE, Families
from blemish.synth.fields import Field, Mask, Rng, blur, chance, log_uniform
from blemish.synth.objects import SHAPES as OUTLINES
from blemish.synth.objects import Scene, backdrop, compose
from blemish.synth.palette import colour_name
from blemish.synth.structural import LINE_ART, PARTS

MIN_SIZE = 64
ATTEMPTS = 8
SCENES = 40
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
        f"none of the defects {', '.join(families.defects)} shows on the allowed materials and shapes; allow more of them"
    )


def random_scene(rng: Rng, size: int, families: Families) -> Scene:
    """A normal surface (about half) or object of the allowed materials and shapes."""
    outlines = [name for name in families.shapes if name != SURFACE]
    whole = SURFACE in families.shapes and (not outlines or chance(rng, 0.52))
    material = families.materials[int(rng.integers(len(families.materials)))]
    if "circuit" in families.materials and whole and chance(rng, 0.06):
        material = "circuit"
    texture = MATERIAL_FUNCTIONS[material](rng, size)
    if whole:
        plain = np.ones((size, size), dtype=np.float32)
        image = np.clip(texture.image, 0, 1)
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
    special: set[str] = set()
    if scene.ink is not None and chance(rng, 0.65):
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
        found = visible(lit, new, change.support, scene.rough, camera.sigma)
        if found is None:
            continue
        image, lit = np.clip(change.image, 0, 1), new
        mask |= found
        kept.append(name)
        if len(kept) == wanted:
            break
    return lit, mask, tuple(kept)


def visible(before: Field, after: Field, support: Field, rough: float, sigma: float) -> Mask | None:
    """The mask of a change: where it can be seen, closed to smooth blobs; None when it cannot.

    before, after: exposed pictures (3, S, S). support: (S, S), where the defect meant to be. rough: deviation of the
    surface's own fine texture. sigma: the camera's blur, as a fraction of the side.
    """
    size = support.shape[0]
    change = np.abs(after - before).max(axis=0)
    if float(change.max()) < VISIBLE:
        return None
    change = blur(change, max(sigma, 0.7 / size))
    threshold = max(0.6 * VISIBLE, 0.22 * float(change.max()), 0.25 * rough)
    rows, columns = (np.flatnonzero((change > threshold).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    pad = max(4, size // 32)
    box = (
        slice(max(0, rows[0] - pad), min(size, rows[-1] + pad + 1)),
        slice(max(0, columns[0] - pad), min(size, columns[-1] + pad + 1)),
    )
    local = change[box] > threshold
    near = ndimage.binary_dilation(support[box] > 0.1, iterations=1)
    smooth = ndimage.uniform_filter(np.minimum(change[box], 3 * threshold) * near, max(3, size // 56) | 1)
    filled = (smooth > threshold * 0.75) & (support[box] > 0.25)
    found = ndimage.binary_closing(np.pad((local & near) | filled, 3), iterations=2)[3:-3, 3:-3]
    found = ndimage.binary_fill_holes(found) if found.mean() < 0.9 and support[box].max() > 0.9 else found
    area = int(found.sum())
    if area < 3 or area > 0.35 * size * size:
        return None
    strength = float(change[box][found].mean())
    if strength < VISIBLE * 0.8 + 0.3 * rough / (1 + area / 40):
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
