"""Materials without repeated parts: grain, noise, wood, stone, skin, tissue and the like.

Each function draws one `Texture` of a material. They are listed by name in `NATURAL`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from blemish.synth.fields import (
    Field,
    Rng,
    blur,
    chance,
    clouds,
    colour_array,
    curve,
    grid,
    log_uniform,
    mix,
    relief,
    rotated,
    spectral,
    step,
    strokes,
)
from blemish.synth.palette import FLESH, WARM, palette


@dataclass
class Texture:
    """A material drawn over the whole picture.

    image: (3, S, S). under: what shows where a part of the pattern is taken away. ink: (S, S) coverage of the
    line art, drawn in the picture `fore` over `under`. labels: int (S, S), 0 between the repeated parts, 1.. on
    them. alpha: (S, S) coverage of the inspected thing where it does not fill the picture. threads: coordinates
    (along, across) counted in threads or courses. Materials without such structure leave these None.
    flat: the picture comes from a scanner, which has even light and little noise.
    """

    image: Field
    under: Field | None = None
    fore: Field | None = None
    ink: Field | None = None
    labels: np.ndarray | None = None
    alpha: Field | None = None
    threads: tuple[Field, Field] | None = None
    flat: bool = False


Material = Callable[[Rng, int], Texture]
GREYS = ((0.5, 0.5, 0.5), (0.7, 0.7, 0.7), (0.35, 0.35, 0.36), (0.6, 0.61, 0.63))


def _angle(rng: Rng) -> float:
    """Grain lies along the picture's axes half of the time, as parts do under an inspection camera."""
    return (
        float(rng.choice([0.0, math.pi / 2])) + rng.normal(0, 0.02)
        if chance(rng, 0.5)
        else rng.uniform(0, math.pi)
    )


def plastic(rng: Rng, size: int) -> Texture:
    """Nearly plain, with a faint cloudiness."""
    field = clouds(rng, size, rng.uniform(2, 8))
    if chance(rng, 0.5):
        field = field * 0.5 + spectral(rng, size, band=(rng.uniform(25, 70), rng.uniform(5, 20)))
    return Texture(palette(rng).paint(field, log_uniform(rng, 0.003, 0.03)))


def paint(rng: Rng, size: int) -> Texture:
    """A coat of lacquer: a gradient with orange peel, sometimes metal flakes."""
    colours = palette(rng)
    image = colours.paint(clouds(rng, size, 2), rng.uniform(0.01, 0.05))
    image = image + rng.uniform(0.004, 0.02) * spectral(rng, size, band=(rng.uniform(15, 45), 8))
    if chance(rng, 0.3):
        flakes = np.clip(rng.standard_normal((size, size), dtype=np.float32) - 2.2, 0, 1)
        image = image + rng.uniform(0.1, 0.4) * flakes
    return Texture(image)


def brushed(rng: Rng, size: int) -> Texture:
    """Metal ground in one direction."""
    angle = _angle(rng)
    field = spectral(rng, size, slope=rng.uniform(0.3, 1.0), stretch=log_uniform(rng, 8, 60), angle=angle)
    image = palette(rng, GREYS, keep=0.8).paint(field, log_uniform(rng, 0.02, 0.12))
    _, v = rotated(size, (0.5, 0.5), angle)
    sheen = np.cos((v - rng.uniform(-0.5, 0.5)) * rng.uniform(2, 7))
    return Texture(image * (1 + rng.uniform(0, 0.2) * sheen))


def steel(rng: Rng, size: int) -> Texture:
    """Rolled or cast metal: fine isotropic grain, faint bands."""
    field = spectral(rng, size, slope=rng.uniform(0.2, 1.2))
    bands = spectral(rng, size, slope=1.0, stretch=30, angle=_angle(rng))
    return Texture(
        palette(rng, GREYS, keep=0.85).paint(
            field + rng.uniform(0, 0.6) * bands, log_uniform(rng, 0.015, 0.1)
        )
    )


def cast(rng: Rng, size: int) -> Texture:
    """A rough relief under slanting light."""
    height = spectral(rng, size, slope=rng.uniform(1.2, 2.0))
    shade = relief(height, rng.uniform(0, 2 * math.pi))
    shade = shade / (float(shade.std()) + 1e-6)
    return Texture(palette(rng, GREYS).paint(shade, log_uniform(rng, 0.02, 0.12)))


def wood(rng: Rng, size: int) -> Texture:
    """Grain of a board or rings of a trunk, with fibres."""
    colours = palette(rng, WARM, keep=0.85)
    angle = _angle(rng)
    far = rng.uniform(0, 0.3) if chance(rng, 0.25) else rng.uniform(1.0, 4.0)
    across = rng.uniform(0, 2 * math.pi)
    u, v = rotated(size, (0.5 + far * math.cos(across), 0.5 + far * math.sin(across)), angle)
    radius = np.sqrt((u * rng.uniform(0.15, 0.4)) ** 2 + v * v) if far > 0.5 else np.sqrt(u * u + v * v)
    warped = radius + rng.uniform(0.01, 0.04) * clouds(rng, size, rng.uniform(2, 4))
    phase = warped * rng.uniform(8, 40)
    rings = (phase - np.floor(phase)) ** rng.uniform(1, 3)
    fibres = spectral(rng, size, slope=0.6, stretch=25, angle=angle)
    image = colours.paint(rings - 0.4, -rng.uniform(0.05, 0.2))
    return Texture(image + rng.uniform(0.01, 0.05) * fibres)


def leather(rng: Rng, size: int) -> Texture:
    """A net of creases between small bulges."""
    centre = rng.uniform(14, 45)
    net = spectral(rng, size, band=(centre, centre * 0.25))
    height = np.sqrt(np.abs(net)) + 0.2 * clouds(rng, size, centre)
    shade = 0.7 * height + 0.15 * relief(height, rng.uniform(0, 6.28)) / centre
    colours = palette(rng, (*WARM, (0.15, 0.12, 0.1), (0.3, 0.1, 0.08)))
    return Texture(colours.paint(shade - float(shade.mean()), rng.uniform(0.05, 0.25)))


def skin(rng: Rng, size: int) -> Texture:
    """Living skin: fine lines, uneven pigment, now and then hairs."""
    centre = rng.uniform(30, 70)
    lines = np.abs(spectral(rng, size, band=(centre, centre * 0.4)))
    image = palette(rng, FLESH, keep=0.9).paint(lines, rng.uniform(0.01, 0.05))
    image = image + colour_array((1.0, 0.4, 0.4)) * (rng.uniform(0.01, 0.05) * spectral(rng, size, slope=1.5))
    if chance(rng, 0.35):
        hairs = []
        for _ in range(int(rng.integers(1, 14))):
            start = (rng.uniform(-0.1, 1.1), rng.uniform(-0.1, 1.1))
            points = curve(rng, start, rng.uniform(0.2, 0.8), bend=1.0, wobble=0.03)
            hairs.append((points, [log_uniform(rng, 0.003, 0.009)] * len(points)))
        image = mix(image, colour_array((0.12, 0.08, 0.06)), strokes(size, hairs) * rng.uniform(0.5, 0.9))
    return Texture(image)


def tissue(rng: Rng, size: int) -> Texture:
    """Wet mucous tissue: folds, vessels and small highlights."""
    hints = ((0.75, 0.35, 0.3), (0.8, 0.5, 0.4), (0.65, 0.25, 0.22), (0.7, 0.55, 0.55), (0.5, 0.5, 0.5))
    colours = palette(rng, hints, keep=0.9)
    height = clouds(rng, size, rng.uniform(2, 6))
    light = rng.uniform(0, 2 * math.pi)
    shade = relief(height, light)
    image = colours.base * (1 + rng.uniform(0.008, 0.03) * shade + 0.05 * height)
    net = np.abs(spectral(rng, size, slope=rng.uniform(1.5, 2.2)))
    vessels = np.exp(-((net / rng.uniform(0.03, 0.1)) ** 2))
    image = image * (1 - rng.uniform(0, 0.25) * vessels * colour_array((0.3, 1.0, 0.9)))
    if chance(rng, 0.5):
        shine = step(rng.uniform(2.2, 3.2) - height - 0.4 * clouds(rng, size, 30), 0.3)
        image = mix(image, 1.0, shine * rng.uniform(0.4, 0.9))
    return Texture(image + 0.015 * spectral(rng, size, slope=0.8))


def stone(rng: Rng, size: int) -> Texture:
    """Granite: grains of two or three tones."""
    centre = log_uniform(rng, 12, 60)
    first, second = (spectral(rng, size, band=(centre * k, centre * 0.6)) for k in (1.0, 1.3))
    colours = palette(rng, GREYS)
    image = colours.paint(first, rng.uniform(0.01, 0.04))
    depth = rng.uniform(0.08, 0.35)
    image = image - depth * step(1.0 - first, 0.6)
    return Texture(image + rng.uniform(-0.2, 0.3) * step(1.2 - second, 0.6))


def concrete(rng: Rng, size: int) -> Texture:
    """Cloudy cement with sand grain and pores that belong to it."""
    image = palette(rng, GREYS, keep=0.85).paint(
        spectral(rng, size, slope=rng.uniform(0.8, 1.4)), rng.uniform(0.02, 0.09)
    )
    if chance(rng, 0.5):
        pores = step(rng.uniform(2.6, 3.2) - spectral(rng, size, band=(rng.uniform(15, 40), 12)), 0.5)
        image = image * (1 - rng.uniform(0.1, 0.4) * pores)
    return Texture(image)


def marble(rng: Rng, size: int) -> Texture:
    """Cloudy stone with veins."""
    u, _ = rotated(size, (0.5, 0.5), rng.uniform(0, math.pi))
    turbulence = spectral(rng, size, slope=rng.uniform(1.3, 1.8))
    veins = np.abs(np.sin(u * rng.uniform(5, 20) + turbulence * rng.uniform(0.8, 2.5))) ** rng.uniform(
        0.3, 1.5
    )
    image = palette(rng, ((0.85, 0.84, 0.82), (0.3, 0.32, 0.3))).paint(veins - 0.7, rng.uniform(0.06, 0.3))
    return Texture(image + 0.02 * turbulence)


def asphalt(rng: Rng, size: int) -> Texture:
    """Coarse fine-grained grit: road, sandpaper, terrazzo."""
    grit = spectral(rng, size, slope=rng.uniform(0.0, 0.5))
    grit = blur(grit, rng.uniform(0, 0.005))
    grit = grit / (float(grit.std()) + 1e-6)
    uneven = clouds(rng, size, 3) * 0.2
    return Texture(palette(rng, GREYS, keep=0.8).paint(grit + uneven, rng.uniform(0.04, 0.14)))


def carpet(rng: Rng, size: int) -> Texture:
    """Loops or pile: strong band-pass grain."""
    centre = rng.uniform(18, 60)
    field = spectral(
        rng,
        size,
        band=(centre, centre * rng.uniform(0.15, 0.5)),
        stretch=log_uniform(rng, 1.0, 3.0),
        angle=_angle(rng),
    )
    return Texture(palette(rng).paint(field, rng.uniform(0.04, 0.15)))


def paper(rng: Rng, size: int) -> Texture:
    """Light sheet with fibres."""
    fibres = spectral(rng, size, slope=0.5, stretch=5, angle=0.4) + spectral(
        rng, size, slope=0.5, stretch=5, angle=2.0
    )
    hints = ((0.9, 0.89, 0.86), (0.8, 0.72, 0.58), (0.95, 0.95, 0.95))
    return Texture(palette(rng, hints, keep=0.85).paint(fibres, rng.uniform(0.006, 0.04)))


def rubber(rng: Rng, size: int) -> Texture:
    """Dark, dull, fine-grained."""
    hints = ((0.1, 0.1, 0.1), (0.2, 0.2, 0.21), (0.15, 0.13, 0.12))
    return Texture(
        palette(rng, hints, keep=0.85).paint(spectral(rng, size, slope=0.4), rng.uniform(0.006, 0.035))
    )


def ceramic(rng: Rng, size: int) -> Texture:
    """Glazed: plain with broad highlights, sometimes speckled."""
    image = palette(rng, ((0.9, 0.9, 0.88), (0.75, 0.7, 0.62))).paint(
        clouds(rng, size, 3), rng.uniform(0.005, 0.03)
    )
    if chance(rng, 0.5):
        specks = step(rng.uniform(1.8, 2.8) - spectral(rng, size, band=(rng.uniform(20, 50), 15)), 0.4)
        image = image * (1 - rng.uniform(0.1, 0.5) * specks)
    y, x = grid(size)
    shine = np.exp(-(((x - rng.random()) ** 2 + (y - rng.random()) ** 2) / rng.uniform(0.01, 0.15)))
    return Texture(image + rng.uniform(0.0, 0.3) * shine)


def foam(rng: Rng, size: int) -> Texture:
    """Sponge or bread: round pores of all sizes."""
    field = np.maximum(
        spectral(rng, size, band=(rng.uniform(12, 25), 6)),
        spectral(rng, size, band=(rng.uniform(30, 60), 15)),
    )
    pores = step(rng.uniform(0.9, 1.6) - field, rng.uniform(0.5, 1.5))
    image = palette(rng, ((0.85, 0.75, 0.5), (0.7, 0.55, 0.35), (0.5, 0.5, 0.55))).paint(field, 0.02)
    return Texture(image * (1 - rng.uniform(0.15, 0.5) * pores))


def peel(rng: Rng, size: int) -> Texture:
    """Skin of fruit and vegetables: blended colours, specks, streaks, a sheen."""
    hints = ((0.8, 0.25, 0.15), (0.9, 0.6, 0.3), (0.55, 0.65, 0.25), (0.7, 0.52, 0.32), (0.95, 0.5, 0.12))
    colours, other = palette(rng, hints, keep=0.9), palette(rng, hints, keep=0.9)
    blend = np.clip(0.5 + rng.uniform(0.1, 0.5) * clouds(rng, size, rng.uniform(1.2, 3)), 0, 1)
    image = mix(colours.base, other.base, blend * rng.uniform(0.1, 0.8))
    streaks = spectral(rng, size, slope=0.9, stretch=log_uniform(rng, 1, 12), angle=_angle(rng))
    image = image * (1 + rng.uniform(0.01, 0.07) * streaks)
    specks = step(rng.uniform(1.9, 2.8) - spectral(rng, size, band=(rng.uniform(25, 70), 15)), 0.5)
    return Texture(image + rng.uniform(-0.2, 0.25) * specks)


def glass(rng: Rng, size: int) -> Texture:
    """A glossy pane or screen, dark or light, with reflections that are normal."""
    value = rng.uniform(0.03, 0.25) if chance(rng, 0.6) else rng.uniform(0.4, 0.9)
    image = colour_array((value + rng.normal(0, 0.02, 3)).tolist()) + np.zeros((3, size, size), np.float32)
    for _ in range(int(rng.integers(0, 4))):
        u, v = rotated(size, (rng.random(), rng.random()), rng.uniform(0, math.pi))
        soft = log_uniform(rng, 0.004, 0.2)
        window = step(np.abs(v) - rng.uniform(0.03, 0.3), soft) * step(
            np.abs(u) - rng.uniform(0.1, 1.0), soft
        )
        image = image + rng.uniform(0.02, 0.25) * window * (0.7 + 0.3 * clouds(rng, size, 2))
    return Texture(image + rng.uniform(0.002, 0.01) * spectral(rng, size, slope=1.0))


def road(rng: Rng, size: int) -> Texture:
    """Paving seen from above: grit, wheel tracks, worn markings, patches and joints that are normal."""
    grit = spectral(rng, size, slope=rng.uniform(0.1, 0.6))
    grey = rng.uniform(0.3, 0.7)
    angle = _angle(rng)
    u, v = rotated(size, (rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)), angle)
    image = colour_array((grey * rng.uniform(0.97, 1.03, 3)).tolist()) + rng.uniform(0.03, 0.1) * grit
    image = image * (1 + rng.uniform(0, 0.1) * np.cos(v * rng.uniform(4, 12)) + 0.04 * clouds(rng, size, 4))
    if chance(rng, 0.4):
        lane = step(np.abs(v) - rng.uniform(0.02, 0.08), 0.01)
        if chance(rng, 0.4):
            lane = lane * step(np.abs(u - 0.1) - rng.uniform(0.1, 0.3), 0.01)
        worn = np.clip(0.8 + 0.25 * grit, 0, 1)
        image = mix(
            image, colour_array((0.9, 0.9, rng.uniform(0.4, 0.9))), lane * worn * rng.uniform(0.5, 1.0)
        )
    if chance(rng, 0.25):
        image = image * (1 - rng.uniform(0.05, 0.25) * step(v - rng.uniform(-0.3, 0.3), 0.006))
    return Texture(image)


NATURAL: dict[str, Material] = {
    f.__name__: f
    for f in (
        plastic, paint, brushed, steel, cast, wood, leather, skin, tissue, stone, concrete, marble, asphalt,
        carpet, paper, rubber, ceramic, foam, peel, glass, road,
    )
}  # fmt: skip
