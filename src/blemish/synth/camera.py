"""Light and camera: uneven light, greyscale, blur, sensor noise, tone curve, JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.synth.fields import Field, Rng, blur, chance, clouds, grid, log_uniform, luma

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """The settings of one shot, so that a scene and its twin without defect are seen alike.

    light: brightness factor (S, S). grey: no colour. sigma: blur as a fraction of the side. noise: deviation of the
    sensor noise. gamma, contrast: tone curve. quality: JPEG quality, None for no compression. seed: of the noise.
    """

    light: Field
    grey: bool
    sigma: float
    noise: float
    gamma: float
    contrast: float
    quality: int | None
    seed: int


def random_camera(rng: Rng, size: int) -> Camera:
    """A random shot: linear and radial gradients, cloudy light, vignette, and mild faults of the camera."""
    y, x = grid(size)
    light: Field = np.ones((size, size), dtype=np.float32)
    if chance(rng, 0.6):
        across, down = rng.normal(0, 0.18, 2).tolist()
        light = light + (x - 0.5) * across + (y - 0.5) * down
    if chance(rng, 0.35):
        cx, cy = rng.uniform(0, 1, 2).tolist()
        squared = (x - cx) ** 2 + (y - cy) ** 2
        light = light + rng.uniform(-0.25, 0.45) * np.exp(-squared / rng.uniform(0.02, 0.5))
    if chance(rng, 0.25):
        light = light * (1 - rng.uniform(0.2, 1.0) * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    if chance(rng, 0.25):
        light = light + rng.uniform(0.01, 0.06) * clouds(rng, size, rng.uniform(1.5, 4))
    return Camera(
        light=np.maximum(light, 0.1) * rng.uniform(0.8, 1.1),
        grey=chance(rng, 0.3),
        sigma=log_uniform(rng, 0.0015, 0.007) if chance(rng, 0.45) else 0.0,
        noise=log_uniform(rng, 0.002, 0.03) if chance(rng, 0.8) else 0.0,
        gamma=log_uniform(rng, 0.75, 1.3) if chance(rng, 0.5) else 1.0,
        contrast=rng.uniform(0.8, 1.15) if chance(rng, 0.4) else 1.0,
        quality=int(rng.integers(40, 96)) if chance(rng, 0.35) else None,
        seed=int(rng.integers(2**62)),
    )


def expose(image: Field, camera: Camera) -> Field:
    """The lit picture in [0, 1] before blur and noise, (3, S, S); what a defect's visibility is judged on."""
    lit = np.clip(image, 0, 1) * camera.light
    if camera.grey:
        lit = np.repeat(luma(lit)[None], 3, axis=0)
    clipped: Field = np.clip(lit, 0, 1)
    return clipped


def develop(lit: Field, camera: Camera) -> Pixels:
    """An exposed picture (3, S, S) as the camera's file shows it, uint8 (S, S, 3)."""
    rng = np.random.default_rng(camera.seed)
    if camera.grey:
        lit = lit[:1]
    lit = blur(lit, camera.sigma)
    if camera.noise:
        channels = 3 if not camera.grey and chance(rng, 0.5) else 1
        noise = rng.standard_normal((channels, *lit.shape[1:]), dtype=np.float32)
        lit = lit + camera.noise * noise
    pixels = np.clip(lit * 255 + 0.5, 0, 255).astype(np.uint8)
    if camera.gamma != 1.0 or camera.contrast != 1.0:
        level = np.linspace(0, 1, 256) ** camera.gamma
        curve = np.clip((level - 0.5) * camera.contrast + 0.5, 0, 1)
        pixels = (curve * 255 + 0.5).astype(np.uint8)[pixels]
    if camera.grey:
        pixels = np.repeat(pixels, 3, axis=0)
    pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    if camera.quality is not None:
        store = io.BytesIO()
        Image.fromarray(pixels).save(store, "JPEG", quality=camera.quality)
        pixels = np.asarray(Image.open(store)).copy()
    return pixels
