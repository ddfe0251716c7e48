"""Pictures of medical instruments, and the like: sections of a head, ultrasound, radiographs, a view into a bowel.

Each is drawn whole, with `alpha` where tissue is, so that defects keep off the dark surround and the overlays.
They only look alike; they know no anatomy.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from blemish.synth.fields import (
    Field,
    Rng,
    blur,
    chance,
    clouds,
    colour_array,
    edge,
    grid,
    log_uniform,
    mix,
    relief,
    rotated,
    spectral,
    step,
)
from blemish.synth.lettering import write
from blemish.synth.palette import palette
from blemish.synth.textures import Material, Texture

TAU = 2 * math.pi


def _grey(rng: Rng, value: Field) -> Field:
    """A grey field as a picture, now and then tinted as displays do."""
    tint = colour_array(rng.uniform(0.85, 1.1, 3).tolist()) if chance(rng, 0.1) else colour_array((1, 1, 1))
    image: Field = np.clip(value, 0, 1) * tint
    return image


def _overlay(rng: Rng, image: Field, share: float) -> Field:
    """Letters and marks of the device, which belong to a normal picture."""
    if not chance(rng, share):
        return image
    size = image.shape[1]
    canvas = Image.new("L", (size * 2, size * 2))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        write(rng, pen, size * 2, most=0.06)
    ink = np.asarray(canvas.reduce(2), dtype=np.float32) / 255
    y, x = grid(size)
    border = (np.maximum(np.abs(x - 0.5), np.abs(y - 0.5)) > 0.4).astype(np.float32)
    return mix(image, rng.uniform(0.6, 1.0), ink * border)


def _head(rng: Rng, size: int, ct: bool) -> Texture:
    """A section through a head: scalp, skull, folded cortex, white matter, ventricles, midline."""
    tall = log_uniform(rng, 0.95, 1.35)
    a = rng.uniform(0.3, 0.46) / max(1.0, tall / 1.15)
    centre = (rng.normal(0.5, 0.02), rng.normal(0.5, 0.02))
    u, v = rotated(size, centre, rng.normal(0, 0.06))
    radius = np.sqrt((u / a) ** 2 + (v / (a * tall)) ** 2) * (1 + 0.015 * clouds(rng, size, 4))
    depth = (1 - radius) * a
    folds = clouds(rng, size, rng.uniform(9, 16))
    folds = np.tanh(2 * (0.7 * folds + 0.7 * folds[:, ::-1]))
    if ct:
        brain, cortex, fluid, scalp, bone = rng.uniform(0.3, 0.5), 0.03, -0.15, 0.3, rng.uniform(0.85, 1.0)
    else:
        brain, cortex, fluid = rng.uniform(0.25, 0.55), rng.uniform(-0.15, 0.15), rng.uniform(-0.25, 0.35)
        scalp, bone = rng.uniform(0.4, 0.9), rng.uniform(0.03, 0.15)
    shell, thick = rng.uniform(0.008, 0.025), rng.uniform(0.012, 0.03) * (1.5 if ct else 1.0)
    tissue = brain + cortex * step(radius - 0.75 - 0.08 * folds, 0.05)
    tissue = tissue - rng.uniform(0.04, 0.14) * np.clip(folds, 0, 1) * step(0.6 - radius, 0.2)
    if chance(rng, 0.3 if ct else 0.7):  # furrows between the folds, those of both halves alike but not equal
        furrows = spectral(rng, size, band=(rng.uniform(12, 26), rng.uniform(4, 8)))
        furrows = furrows + rng.uniform(0, 0.8) * furrows[:, ::-1]
        lines = np.exp(-((furrows / rng.uniform(0.15, 0.4)) ** 2))
        outer = step(rng.uniform(0.4, 0.75) - radius, 0.15)
        tissue = tissue + fluid * rng.uniform(0.3, 1.0) * lines * outer
    au = np.abs(u + 0.006 * clouds(rng, size, 4))
    for _ in range(int(rng.integers(1, 4))):
        cu, cv = rng.uniform(0.02, 0.2) * a, rng.uniform(-0.45, 0.4) * a
        wide, high = rng.uniform(0.06, 0.16) * a, rng.uniform(0.12, 0.45) * a
        lean = rng.normal(0, 0.5)
        pool = np.sqrt(((au - cu - lean * (v - cv)) / wide) ** 2 + ((v - cv) / high) ** 2) - 1
        tissue = tissue + fluid * step(pool, 0.4)
    tissue = tissue - rng.uniform(0, 0.12) * step(au - 0.004, 0.008) * step(0.25 - radius, 0.2)
    tissue = tissue + rng.uniform(0.005, 0.03) * spectral(rng, size, slope=0.7)
    image = np.full((size, size), 0.0 if chance(rng, 0.5) else rng.uniform(0, 0.06), dtype=np.float32)
    image = mix(image, scalp, edge(-depth))
    image = mix(image, bone, edge(shell - depth))
    alpha = edge(shell + thick - depth)
    image = mix(image, tissue, alpha)
    return Texture(_overlay(rng, _grey(rng, image), 0.2), alpha=alpha, flat=True)


def mri(rng: Rng, size: int) -> Texture:
    """A magnetic resonance section of a head."""
    return _head(rng, size, ct=False)


def ct(rng: Rng, size: int) -> Texture:
    """A computed tomography section of a head: a white skull around flat grey."""
    return _head(rng, size, ct=True)


def ultrasound(rng: Rng, size: int) -> Texture:
    """Layers of tissue in speckle, in a full field or a fan, with bright interfaces and dark vessels."""
    fan = chance(rng, 0.4)
    y, x = grid(size)
    depth: Field = np.hypot(x - 0.5, y + 0.35) - 0.4 if fan else y
    across: Field = np.arctan2(x - 0.5, y + 0.35) if fan else x
    bent = depth + rng.uniform(0.01, 0.06) * clouds(rng, size, rng.uniform(1.5, 4))
    image = 0.35 + rng.uniform(0.05, 0.15) * clouds(rng, size, rng.uniform(2, 5))
    for place in rng.uniform(0.05, 0.95, int(rng.integers(2, 7))).tolist():
        line = np.abs(bent - place - rng.normal(0, 0.3) * (across - 0.5) ** 2)
        image = image + rng.uniform(0.1, 0.5) * np.exp(-((line / log_uniform(rng, 0.004, 0.02)) ** 2))
        image = image + rng.uniform(-0.1, 0.1) * step(bent - place, 0.02)
    if chance(rng, 0.5):
        u, v = rotated(size, (rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8)), rng.normal(0, 0.5))
        vessel = np.hypot(u / rng.uniform(0.03, 0.12), v / rng.uniform(0.02, 0.05)) - 1
        image = image * (1 - rng.uniform(0.5, 0.9) * step(vessel, 0.3))
    fine = rng.uniform(0.4, 0.8)
    speckle = np.hypot(*(spectral(rng, size, slope=fine, stretch=0.4, angle=0.0) for _ in range(2)))
    image = image * (1 - rng.uniform(0, 0.5) * depth) * (0.35 + rng.uniform(0.3, 0.6) * speckle)
    alpha: Field = np.ones((size, size), dtype=np.float32)
    if fan:
        alpha = edge(
            np.maximum(np.maximum(np.abs(across) - rng.uniform(0.45, 0.65), -depth) * 0.5, depth - 0.85)
        )
    elif chance(rng, 0.5):
        alpha = edge(
            np.maximum(np.abs(x - 0.5) - rng.uniform(0.35, 0.48), np.abs(y - 0.5) - rng.uniform(0.38, 0.48))
        )
    image = np.asarray(image * alpha, dtype=np.float32)
    return Texture(_overlay(rng, _grey(rng, image), 0.5), alpha=alpha, flat=True)


def xray(rng: Rng, size: int) -> Texture:
    """A radiograph of a chest: two dark lungs under ribs, spine, heart, diaphragm; or of a casting."""
    u, v = rotated(size, (rng.normal(0.5, 0.03), rng.normal(0.5, 0.03)), rng.normal(0, 0.04))
    au = np.abs(u)
    body = 0.7 + rng.uniform(0.02, 0.06) * clouds(rng, size, 4)
    side = rng.uniform(0.17, 0.22)
    lung = (
        np.hypot((au - side - 0.04 * v) / rng.uniform(0.12, 0.16), (v + 0.03) / rng.uniform(0.27, 0.36)) - 1
    )
    lung = lung + 0.05 * clouds(rng, size, 5)
    alpha = step(lung, rng.uniform(0.1, 0.3))
    image = body - rng.uniform(0.3, 0.55) * alpha
    pitch = rng.uniform(0.07, 0.11)
    bow = v + rng.uniform(0.6, 1.4) * (au - 0.18) ** 2 * 2 - rng.uniform(0.1, 0.4) * au
    ribs = np.clip(np.sin(bow * (TAU / pitch)) * 2 + 0.2, 0, 1) * step(au - 0.36, 0.05)
    image = image + rng.uniform(0.04, 0.14) * ribs
    vessels = np.abs(spectral(rng, size, slope=1.3))
    image = image + rng.uniform(0.03, 0.12) * np.exp(-((vessels / 0.15) ** 2)) * alpha * step(au - 0.2, 0.2)
    image = image + rng.uniform(0.05, 0.2) * step(au - rng.uniform(0.03, 0.06), 0.03)
    heart = np.hypot((u - 0.06) / rng.uniform(0.12, 0.18), (v - 0.15) / rng.uniform(0.13, 0.2)) - 1
    heart_cover = step(heart, 0.15)
    image = np.maximum(image, image + (body - image) * heart_cover * 0.9)
    image = image * (1 - rng.uniform(0.3, 0.9) * step(0.42 - au - 0.06 * v, 0.04))
    image = image + rng.uniform(0.003, 0.02) * spectral(rng, size, slope=0.5)
    return Texture(_overlay(rng, _grey(rng, image), 0.5), alpha=alpha * (1 - heart_cover), flat=True)


def endoscopy(rng: Rng, size: int) -> Texture:
    """A look down a wet tube: folds around a dark far end, vessels, glare, a dark frame with text."""
    hints = ((0.8, 0.42, 0.33), (0.85, 0.55, 0.42), (0.7, 0.3, 0.25), (0.75, 0.5, 0.45))
    colours = palette(rng, hints, keep=0.95)
    centre = (rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9))
    u, v = rotated(size, centre, rng.uniform(0, TAU), log_uniform(rng, 0.8, 1.25))
    uneven = clouds(rng, size, rng.uniform(2, 4))
    far = np.sqrt(u * u + v * v) * (1 + 0.15 * uneven) + 0.02 * clouds(rng, size, 6)
    phase = np.log(far + 0.08) * rng.uniform(3, 9)
    folds = np.abs(np.sin(phase + 0.5 * uneven))
    light = np.clip(far / rng.uniform(0.1, 0.4), 0.08, 1)
    shade = light * (0.75 + rng.uniform(0.1, 0.35) * folds) + 0.06 * uneven
    image = colours.base * shade
    net = np.abs(spectral(rng, size, slope=rng.uniform(1.4, 2.0)))
    vessels = np.exp(-((net / rng.uniform(0.03, 0.08)) ** 2))
    image = image * (1 - rng.uniform(0, 0.25) * vessels * colour_array((0.3, 1.0, 0.9)))
    gloss = relief(blur(folds + 0.3 * clouds(rng, size, 25), 0.006), rng.uniform(0, TAU))
    shine = step(rng.uniform(1.6, 2.6) - gloss / (float(gloss.std()) + 1e-6), 0.3) * light
    image = mix(image, 1.0, shine * rng.uniform(0.4, 0.95))
    image = image + 0.012 * spectral(rng, size, slope=0.8)
    y, x = grid(size)
    dx, dy = np.abs(x - 0.5), np.abs(y - 0.5)
    alpha: Field = np.ones((size, size), dtype=np.float32)
    if chance(rng, 0.7):
        reach = rng.uniform(0.44, 0.52)
        if chance(rng, 0.5):
            alpha = edge(
                np.maximum(np.maximum(dx, dy) - reach, (dx + dy) * 0.7071 - reach * rng.uniform(1.0, 1.25))
            )
        else:
            alpha = edge(np.hypot(dx, dy) - reach * rng.uniform(1.0, 1.2))
    image = mix(rng.uniform(0, 0.05) + np.zeros_like(image), image, alpha)
    return Texture(_overlay(rng, image, 0.3), alpha=alpha * (light > 0.35))


SCANS: dict[str, Material] = {f.__name__: f for f in (mri, ct, ultrasound, xray, endoscopy)}
