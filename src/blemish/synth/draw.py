"""One generated picture: a scene, its defects with exact masks, the light and the camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from blemish.synth.camera import Camera, Pixels, develop, expose, random_camera, soften
from blemish.synth.captions import NORMAL_STATES, states_of, title
from blemish.synth.compose import Scene, backdrop, compose
from blemish.synth.defects import Change
from blemish.synth.families import (
    BODIES,
    DEFECT_FUNCTIONS,
    GROWN,
    HOMES,
    LIVING,
    MATERIAL_FUNCTIONS,
    OUTLINES,
    SURFACE,
    USUAL_MATERIALS,
    Families,
)
from blemish.synth.fields import Field, Mask, Rng, blur, bounds, chance, close, log_uniform
from blemish.synth.fittings import ON_OBJECTS, fit, glare, shade
from blemish.synth.objects import Form
from blemish.synth.palette import colour_name
from blemish.synth.scans import SCANS
from blemish.synth.structural import LINE_ART, PARTS
from blemish.synth.textures import Texture

MIN_SIZE = 64
ATTEMPTS = 8
SCENES = 40
USUAL = ("scratch", "crack", "hole", "stain", "pits", "missing")
"""The defects that real parts show most, drawn somewhat more often."""
WHOLE = ("broken", "bent")
"""Defects that move the object, and so would take earlier ones along: only drawn first."""
MIN_AREA, MAX_AREA = 0.0002, 0.35
"""A mask outside these fractions of the picture is not counted as a defect."""
VISIBLE, FAINT = 0.03, 0.018
"""Least mean brightness change, of a full range of 1, inside a mask; below it a defect is not counted. The second
holds for smooth surfaces and quiet sensors, where the eye sees more."""


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


@dataclass(frozen=True)
class Shot:
    """A scene before the camera: exposed without (`clean`) and with (`lit`) its defects, their mask and names."""

    scene: Scene
    camera: Camera
    clean: Field
    lit: Field
    mask: Mask
    defects: tuple[str, ...]


def draw(
    rng: Rng, size: int = 224, *, defect: bool | None = None, families: Families | None = None
) -> Picture:
    """Draw one picture; the same generator state gives the same picture.

    size: side in pixels, at least 64. defect: True, False, or None for a defective one in about 60 % of the draws.
    families: which materials, shapes and defect types may appear, all by default. Raises ValueError for a size too
    small, or when none of the allowed defects fits any allowed material or shape.
    """
    shot = shoot(rng, size, defect, families or Families())
    return _picture(rng, shot, develop(shot.lit, shot.camera))


def draw_pair(
    rng: Rng, size: int = 224, *, defect: bool | None = None, families: Families | None = None
) -> tuple[Picture, Pixels]:
    """As `draw`, with the same shot without the defect, uint8 (H, W, 3), beside it."""
    shot = shoot(rng, size, defect, families or Families())
    return _picture(rng, shot, develop(shot.lit, shot.camera)), develop(shot.clean, shot.camera)


def shoot(rng: Rng, size: int, defect: bool | None, families: Families) -> Shot:
    """What `draw` and `draw_pair` show, before the camera adds noise and compression."""
    if size < MIN_SIZE:
        raise ValueError(f"size is {size}; generated pictures are at least {MIN_SIZE} pixels wide")
    wanted = chance(rng, 0.6) if defect is None else defect
    for _ in range(SCENES):
        around = _at_home(rng, families) if wanted else families
        scene = random_scene(rng, size, around)
        camera = random_camera(rng, size, scanner=scene.flat)
        clean = expose(scene.image, camera)
        if not wanted:
            return Shot(scene, camera, clean, clean, np.zeros((size, size), dtype=bool), ())
        lit, mask, names = damage(rng, scene, camera, clean, families)
        if names:
            return Shot(scene, camera, clean, lit, mask, names)
    raise ValueError(
        f"none of the defects {', '.join(families.defects)} shows on the allowed materials "
        "and shapes; allow more of them"
    )


def _at_home(rng: Rng, families: Families) -> Families:
    """Now and then only the materials and shapes that one of the defects needs; always when all of them need some."""
    homed = [name for name in families.defects if name in HOMES]
    if not homed or (len(homed) < len(families.defects) and not chance(rng, 0.15)):
        return families
    home = HOMES[homed[int(rng.integers(len(homed)))]]
    materials = tuple(name for name in families.materials if name in home.materials)
    shapes = tuple(name for name in families.shapes if name in home.shapes)
    if not materials or not shapes:
        return families
    return replace(families, materials=materials, shapes=shapes)


def random_scene(rng: Rng, size: int, families: Families) -> Scene:
    """A normal surface (about half) or object of the allowed materials and shapes."""
    outlines = [name for name in families.shapes if name != SURFACE]
    if SURFACE in families.shapes and (not outlines or chance(rng, 0.52)):
        return _surface(rng, size, families)
    grown = [name for name in outlines if name in GROWN] if chance(rng, 0.1) else outlines
    outlines = grown or outlines
    shape = outlines[int(rng.integers(len(outlines)))]
    choice = tuple(name for name in families.materials if name not in SCANS) or families.materials
    if chance(rng, 0.65):
        usual = USUAL_MATERIALS.get(shape, BODIES)
        choice = tuple(name for name in usual if name in choice) or choice
    elif chance(rng, 0.5):
        choice = tuple(name for name in choice if name in BODIES) or choice
    material = choice[int(rng.integers(len(choice)))]
    texture = MATERIAL_FUNCTIONS[material](rng, size)
    form = OUTLINES[shape](rng, size)
    if chance(rng, 0.2):
        texture.image = fit(rng, texture.image, ON_OBJECTS)
    behind = None
    if chance(rng, 0.25):
        others = tuple(name for name in families.materials if name not in SCANS)
        if others:
            behind = MATERIAL_FUNCTIONS[others[int(rng.integers(len(others)))]](rng, size)
    ground = backdrop(rng, size, behind)
    if form.labels is None and chance(rng, 0.1):
        ground = _neighbour(rng, ground, texture, material, shape)
    return compose(rng, texture, ground, form, material, shape)


def _neighbour(rng: Rng, ground: Field, texture: Texture, material: str, shape: str) -> Field:
    """The table with another such object on it that the picture's border cuts off; it is not inspected."""
    size = ground.shape[1]
    form = OUTLINES[shape](rng, size)
    angle, far = rng.uniform(0, 2 * math.pi), rng.uniform(0.6, 0.95) * size
    move = (far * math.sin(angle), far * math.cos(angle))
    distance = ndimage.shift(form.distance, move, order=1, mode="constant", cval=0.2)
    beside = Form(
        distance, None if form.shade is None else ndimage.shift(form.shade, move, order=1, mode="nearest")
    )
    turned = replace(texture, image=np.ascontiguousarray(np.rot90(texture.image, 1, (1, 2))))
    return compose(rng, turned, ground, beside, material, shape).image


def _surface(rng: Rng, size: int, families: Families) -> Scene:
    material = families.materials[int(rng.integers(len(families.materials)))]
    if "circuit" in families.materials and chance(rng, 0.06):
        material = "circuit"
    texture = MATERIAL_FUNCTIONS[material](rng, size)
    image = np.clip(texture.image, 0, 1)
    if texture.ink is None and material not in LIVING and chance(rng, 0.3):
        image = fit(rng, image) if texture.labels is None else fit(rng, image, (glare, shade))
    alpha = np.ones((size, size), dtype=np.float32) if texture.alpha is None else texture.alpha
    return Scene(
        image, alpha, material, SURFACE, texture.under, texture.fore, texture.ink, texture.labels,
        texture.threads, texture.flat, rng.uniform(0, 6.28),
    )  # fmt: skip


def _candidates(rng: Rng, scene: Scene, families: Families) -> list[str]:
    """Defects allowed here in the order to try them: those that belong to the scene's structure first, often."""
    names = [name for name in families.defects if _fits(name, scene)]
    rng.shuffle(names)
    if chance(rng, 0.15):
        names.sort(key=lambda name: name not in USUAL)
    special: set[str] = set()
    if scene.ink is not None and chance(rng, 0.2 if scene.material == "printed" else 0.75):
        special |= set(LINE_ART)
    if scene.labels is not None and chance(rng, 0.35):
        special |= {"missing", "misplaced", "turned", "wrong_colour"}
    if scene.threads is not None and chance(rng, 0.25):
        special |= {"weave_error"}
    if scene.material == "printed" and chance(rng, 0.25):
        special |= {"misprint"}
    if scene.shape != SURFACE and chance(rng, 0.3):
        special |= {*PARTS, "broken", "bent"} if chance(rng, 0.5) else {"broken", "missing"}
    if scene.material in LIVING and chance(rng, 0.75):
        special |= {name for name in names if name in HOMES}
    return sorted(names, key=lambda name: name not in special)


def _fits(name: str, scene: Scene) -> bool:
    if name in LINE_ART or name == "misprint":
        return scene.ink is not None
    home = HOMES.get(name)
    return home is None or (scene.material in home.materials and scene.shape in home.shapes)


def damage(
    rng: Rng, scene: Scene, camera: Camera, clean: Field, families: Families
) -> tuple[Field, Mask, tuple[str, ...]]:
    """The exposed picture with one to six visible defects, their mask, and their names (none: nothing fitted)."""
    size = clean.shape[1]
    image, lit = scene.image, clean
    mask = np.zeros((size, size), dtype=bool)
    kept: list[str] = []
    wanted = int(rng.choice([1, 1, 1, 1, 2, 2, 3]))
    candidates = _candidates(rng, scene, families)
    if candidates and candidates[0] in LINE_ART:
        wanted = int(rng.integers(1, 7))
    for attempt in range(min(ATTEMPTS + wanted, 4 * len(candidates))):
        name = candidates[attempt % len(candidates)]
        if kept and name in WHOLE:
            continue
        change = DEFECT_FUNCTIONS[name](rng, scene, image, log_uniform(rng, 0.0005, 0.2))
        if change is None:
            continue
        new = expose(change.image, camera)
        found = visible(lit, new, change, math.hypot(scene.rough, camera.noise), camera)
        if found is None:
            continue
        image, lit = np.clip(change.image, 0, 1), new
        mask |= found
        kept.append(name)
        if len(kept) == wanted:
            break
    if len(kept) > 1:
        mask = _still_seen(mask, lit - clean, camera)
    return lit, mask, tuple(kept)


def _still_seen(mask: Mask, difference: Field, camera: Camera) -> Mask:
    """The patches of a mask in which something differs: a later defect may have undone an earlier one by chance."""
    amount = np.abs(soften(difference, camera)).max(axis=0)
    patches, count = ndimage.label(mask, np.ones((3, 3)))
    most = ndimage.maximum(amount, patches, np.arange(count + 1))
    keep = np.asarray(most) >= FAINT
    keep[0] = False
    seen: Mask = keep[patches]
    return seen if seen.any() else mask


def visible(before: Field, after: Field, change: Change, rough: float, camera: Camera) -> Mask | None:
    """The mask of a change: where it can be seen, as smooth blobs; None when it cannot be seen.

    before, after: exposed pictures (3, S, S). rough: deviation of the surface's own fine texture and the sensor's
    noise.
    """
    size = change.support.shape[0]
    least = min(VISIBLE, FAINT + 0.5 * rough)
    difference = after[:1] - before[:1] if camera.grey else after - before
    changed = np.abs(difference).max(axis=0) > 0.4 * least
    reach = 1 + math.ceil(camera.reach * size)  # blur carries the change beyond where it was drawn
    box = bounds(changed, max(4, size // 32, 2 * reach))
    if box is None:
        return None
    amount = np.abs(soften(difference[(slice(None), *box)], camera)).max(axis=0)
    support = change.support[box]
    if not camera.sigma:  # a sensor's pixels are not perfectly sharp either
        amount = blur(amount, 0.4 / size, size)
    threshold = max(0.6 * least, min(0.25 * float(amount.max()), 2.5 * least), 0.25 * rough)
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
    if float(amount[found].mean()) < 0.8 * least + 0.6 * rough / (1 + math.sqrt(area) / 12):
        return None
    mask = np.zeros((size, size), dtype=bool)
    mask[box] = found
    return mask


def _picture(rng: Rng, shot: Shot, image: Pixels) -> Picture:
    scene, name = shot.scene, shot.defects[0] if shot.defects else None
    seen = image[::4, ::4][scene.alpha[::4, ::4] > 0.5]
    mean = (seen if len(seen) else image.reshape(-1, 3)).mean(axis=0) / 255
    colour = colour_name((float(mean[0]), float(mean[1]), float(mean[2])))
    states = states_of(shot.defects) if name else NORMAL_STATES
    caption = title(rng, scene.material, scene.shape, colour, name)
    return Picture(image, shot.mask, caption, states, scene.material, scene.shape, name, colour)
