"""Random colours, and the word for a colour."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from blemish.synth.fields import Field, Rng, chance, colour_array

WARM = ((0.55, 0.35, 0.2), (0.7, 0.5, 0.3), (0.4, 0.25, 0.15), (0.8, 0.62, 0.42))
FLESH = ((0.85, 0.62, 0.52), (0.75, 0.42, 0.38), (0.6, 0.38, 0.28), (0.9, 0.72, 0.64))
COLOURS = (
    "black", "white", "grey", "red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "brown", "beige",
)  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Two colours, each (3, 1, 1): `base` and the direction `accent` in which a texture moves away from it."""

    base: Field
    accent: Field

    def paint(self, texture: Field, contrast: float) -> Field:
        """(S, S) texture with unit deviation to an image (3, S, S): base + contrast * texture * accent."""
        return self.base + (contrast * texture) * self.accent


def random_colour(rng: Rng, *, grey: float = 0.4) -> tuple[float, float, float]:
    """An RGB triple in [0, 1]; grey with probability `grey`, else of any hue, seldom garish."""
    value = rng.uniform(0.08, 0.95)
    if chance(rng, grey):
        return (value, value, value)
    return colorsys.hsv_to_rgb(rng.random(), float(rng.beta(1.6, 2.2)), value)


def palette(rng: Rng, hints: tuple[tuple[float, float, float], ...] = (), *, keep: float = 0.65) -> Palette:
    """A random palette; with probability `keep` near one of the hinted base colours."""
    if hints and chance(rng, keep):
        hint = np.asarray(hints[int(rng.integers(len(hints)))]) * rng.uniform(0.7, 1.25) + rng.normal(
            0, 0.04, 3
        )
        base = np.clip(hint, 0.03, 0.97)
    else:
        base = np.asarray(random_colour(rng))
    accent = (
        np.ones(3) if chance(rng, 0.5) else 0.6 + 0.8 * base / (base.max() + 1e-3) + rng.normal(0, 0.15, 3)
    )
    return Palette(colour_array(base.tolist()), colour_array(accent.tolist()))


def colour_name(rgb: tuple[float, float, float]) -> str:
    """The everyday word (one of COLOURS) for an RGB triple in [0, 1]."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(min(1.0, max(0.0, c)) for c in rgb))
    if value < 0.14:
        return "black"
    if saturation < 0.14:
        return "white" if value > 0.82 else ("black" if value < 0.2 else "grey")
    degrees = hue * 360
    if 12 <= degrees < 50 and value < 0.65:
        return "brown"
    if 20 <= degrees < 65 and saturation < 0.4:
        return "beige"
    names = ((12, "red"), (42, "orange"), (68, "yellow"), (160, "green"), (198, "cyan"), (255, "blue"))
    for limit, name in (*names, (290, "purple"), (338, "pink"), (361, "red")):
        if degrees < limit:
            return name
    return "red"
