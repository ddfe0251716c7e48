"""A `Scene`: an object with its shading and shadow on a table, a tray or another texture; or a bare surface."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from blemish.synth.baked import specks
from blemish.synth.fields import (
    Field,
    Rng,
    chance,
    clouds,
    colour_array,
    edge,
    grid,
    log_uniform,
    luma,
    mix,
    relief,
    rotated,
    soft_blur,
    spectral,
    step,
)
from blemish.synth.objects import TAU, Form, box, dome
from blemish.synth.palette import random_colour
from blemish.synth.textures import Texture


@dataclass
class Scene:
    """A normal picture before lighting and camera, with what defects need to know about it.

    image: (3, S, S). alpha: (S, S) coverage of the inspected thing, ones on a full-frame surface. under: what
    would be seen without it (None on plain surfaces). fore and ink: line art as in `Texture`. labels: separate parts.
    threads as in `Texture`. flat: comes from a scanner. light: direction of the light in radians.
    rough: deviation of the fine texture, the least visible contrast.
    """

    image: Field
    alpha: Field
    material: str
    shape: str
    under: Field | None = None
    fore: Field | None = None
    ink: Field | None = None
    labels: np.ndarray | None = None
    threads: tuple[Field, Field] | None = None
    flat: bool = False
    light: float = 0.0
    rough: float = field(default=0.0)

    def __post_init__(self) -> None:
        grey = luma(self.image)
        fine = (grey - soft_blur(grey, max(4, grey.shape[0] // 28)))[::2, ::2]
        inside = self.alpha[::2, ::2] > 0.95
        self.rough = float(fine[inside].std()) if inside.any() else float(fine.std())


def backdrop(rng: Rng, size: int, texture: Texture | None) -> Field:
    """What an object lies on: a plain table, a tray with a rim, a belt, or the given texture."""
    if texture is not None:
        image = texture.image * rng.uniform(0.4, 1.0)
    else:
        shade = (
            rng.uniform(0, 0.12)
            if chance(rng, 0.25)
            else (rng.uniform(0.85, 1.0) if chance(rng, 0.2) else None)
        )
        colour = random_colour(rng, grey=0.6) if shade is None else (shade, shade, shade)
        image = colour_array(colour) + rng.uniform(0.002, 0.03) * clouds(rng, size, rng.uniform(1.5, 5))
        if chance(rng, 0.4):
            image = image + rng.uniform(0.003, 0.03) * spectral(rng, size, slope=rng.uniform(0.3, 1.5))
    if chance(rng, 0.3):
        u, v = rotated(size, (rng.normal(0.5, 0.05), rng.normal(0.5, 0.05)), rng.normal(0, 0.1))
        rim = box(u, v, rng.uniform(0.42, 0.55), rng.uniform(0.42, 0.55), rng.uniform(0.01, 0.2))
        image = (
            image
            + rng.uniform(-0.2, 0.2) * step(rim, 0.01)
            + rng.uniform(-0.2, 0.2) * step(np.abs(rim) - 0.012, 0.012)
        )
    elif chance(rng, 0.15):
        y, x = grid(size)
        line = (x if chance(rng, 0.5) else y) - rng.random()
        image = image + rng.uniform(-0.25, 0.25) * step(line, 0.008)
    return specks(rng, image) if chance(rng, 0.12) else image


def _shadow(rng: Rng, under: Field, alpha: Field, light: float) -> Field:
    """The backdrop with the object's soft shadow on it."""
    size = alpha.shape[0]
    reach = rng.uniform(0.005, 0.05) * size
    moved = np.roll(alpha, (round(math.sin(light) * -reach), round(math.cos(light) * -reach)), (0, 1))
    soft = soft_blur(moved, max(1, int(rng.integers(2, 9)) * size // 224))
    return under * (1 - rng.uniform(0.15, 0.6) * np.clip(soft, 0, 1))


def _shaded(rng: Rng, body: Field, form: Form, light: float) -> Field:
    """The object's colours under the light: by the form's own shade, or as a bevelled or domed body."""
    if form.shade is not None:
        return body * form.shade
    height = dome(form.distance, log_uniform(rng, 0.012, 0.35))
    slope = np.clip(relief(height, light) * rng.uniform(0.03, 0.12), -0.45, 0.45)
    body = body * (1 + slope) * (0.75 + 0.25 * height)
    if chance(rng, 0.4):
        gloss = np.exp(-(((slope - rng.uniform(0.05, 0.3)) / rng.uniform(0.02, 0.1)) ** 2))
        body = body + rng.uniform(0.05, 0.5) * gloss * (height < 0.98)
    return body


def compose(rng: Rng, texture: Texture, behind: Field, form: Form, material: str, shape: str) -> Scene:
    """The object of the given outline and texture, shaded, with its shadow, on what is behind it."""
    light = rng.uniform(0, TAU)
    alpha = edge(form.distance)
    under = np.clip(behind, 0, 1)
    body = texture.image
    if abs(gap := float(body.mean() - under.mean())) < 0.12:
        under = np.clip(under + (0.2 if gap < 0 or float(under.mean()) < 0.15 else -0.2), 0, 1)
    if form.paint is not None:
        body = body + form.paint
    body = np.clip(_shaded(rng, body, form, light), 0, 1)
    ground = _shadow(rng, under, alpha, light) if chance(rng, 0.6) else under
    image = mix(ground, body, alpha)
    return Scene(image, alpha, material, shape, under=under, labels=form.labels, light=light)
