"""Light and camera: uneven light, colour cast, greyscale, defocus and motion blur, sharpening, noise, tone, JPEG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from blemish.synth.fields import Field, Rng, blur, chance, clouds, colour_array, grid, log_uniform, luma

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Camera:
    """The settings of one shot, so that a scene and its twin without defect are seen alike.

    light: brightness factor (S, S). cast: colour factor (3, 1, 1), None for white. grey: no colour. sigma: blur as a
    fraction of the side. motion: shift while the shutter was open, in pixels (down, right). sharpen: strength of the
    edge filter. noise: deviation of the sensor noise; shot: share of it that grows with the light. gamma, contrast:
    tone curve. quality: JPEG quality, None for no compression. seed: of the noise.
    """

    light: Field
    cast: Field | None
    grey: bool
    sigma: float
    motion: tuple[int, int]
    sharpen: float
    noise: float
    shot: float
    gamma: float
    contrast: float
    quality: int | None
    seed: int

    @property
    def reach(self) -> float:
        """How far the shot carries a change beyond its place, as a fraction of the side."""
        side: int = self.light.shape[0]
        return 1.5 * self.sigma + max(map(abs, self.motion)) / side


def random_camera(rng: Rng, size: int, *, scanner: bool = False) -> Camera:
    """A random shot: gradients, cloudy light, vignette, mild faults of the camera; a scanner has few of them."""
    light: Field = np.ones((size, size), dtype=np.float32) if scanner else _random_light(rng, size)
    calm = 0.4 if scanner else 1.0
    motion = (0, 0)
    if not scanner and chance(rng, 0.08):
        steps = log_uniform(rng, 0.004, 0.012) * size
        angle = rng.uniform(0, math.pi)
        motion = (round(math.sin(angle) * steps), round(math.cos(angle) * steps))
    tinted = not scanner and chance(rng, 0.25)
    cast = colour_array((1 + rng.normal(0, 0.06, 3)).tolist()) if tinted else None
    return Camera(
        light=light,
        cast=cast,
        grey=chance(rng, 0.8 if scanner else 0.3),
        sigma=log_uniform(rng, 0.0015, 0.007) if chance(rng, 0.45 * calm) else 0.0,
        motion=motion,
        sharpen=rng.uniform(0.3, 1.2) if chance(rng, 0.12) else 0.0,
        noise=log_uniform(rng, 0.002, 0.03 * calm) if chance(rng, 0.8 * calm) else 0.0,
        shot=rng.uniform(0, 1),
        gamma=log_uniform(rng, 0.75, 1.3) if chance(rng, 0.5 * calm) else 1.0,
        contrast=rng.uniform(0.75, 1.2) if chance(rng, 0.4 * calm) else 1.0,
        quality=int(rng.integers(40, 96)) if chance(rng, 0.4) else None,
        seed=int(rng.integers(2**62)),
    )


def _random_light(rng: Rng, size: int) -> Field:
    y, x = grid(size)
    light: Field = np.ones((size, size), dtype=np.float32)
    if chance(rng, 0.6):
        across, down = rng.normal(0, 0.18, 2).tolist()
        light = light + ((x - 0.5) * across + (y - 0.5) * down)
    if chance(rng, 0.35):
        cx, cy = rng.uniform(0, 1, 2).tolist()
        squared = (x - cx) ** 2 + (y - cy) ** 2
        light = light + rng.uniform(-0.25, 0.45) * np.exp(-squared / rng.uniform(0.02, 0.5))
    if chance(rng, 0.25):
        light = light * (1 - rng.uniform(0.2, 1.0) * ((x - 0.5) ** 2 + (y - 0.5) ** 2))
    if chance(rng, 0.25):
        light = light + rng.uniform(0.01, 0.06) * clouds(rng, size, rng.uniform(1.5, 4))
    lit: Field = np.maximum(light, 0.1) * rng.uniform(0.8, 1.1)
    return lit


def expose(image: Field, camera: Camera) -> Field:
    """The lit picture in [0, 1] before blur and noise, (3, S, S); what a defect's visibility is judged on."""
    lit = np.clip(image, 0, 1)
    lit *= camera.light
    if camera.cast is not None:
        lit *= camera.cast
    if camera.grey:
        lit = np.broadcast_to(luma(lit)[None], lit.shape)
    clipped: Field = np.clip(lit, 0, 1)
    return clipped


def soften(field: Field, camera: Camera) -> Field:
    """The camera's defocus and motion blur of (..., H, W): the picture or a part of it."""
    field = blur(field, camera.sigma, camera.light.shape[0])
    for axis, steps in zip((-2, -1), camera.motion, strict=True):
        if abs(steps) > 1:
            field = ndimage.uniform_filter1d(field, abs(steps), axis=axis, mode="nearest")
    return field


def develop(lit: Field, camera: Camera) -> Pixels:
    """An exposed picture (3, S, S) as the camera's file shows it, uint8 (S, S, 3)."""
    rng = np.random.default_rng(camera.seed)
    if camera.grey:
        lit = lit[:1]
    lit = soften(lit, camera)
    if camera.sharpen:
        lit = lit + camera.sharpen * (lit - blur(lit, 1.2 / lit.shape[-1]))
    if camera.noise:
        channels = 3 if not camera.grey and chance(rng, 0.5) else 1
        noise = rng.standard_normal((channels, *lit.shape[1:]), dtype=np.float32)
        noise *= camera.noise
        if camera.shot > 0.3:
            noise *= (
                1 - camera.shot + camera.shot * np.sqrt(np.maximum(luma(lit) if len(lit) > 1 else lit[0], 0))
            )
        lit = lit + noise
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
