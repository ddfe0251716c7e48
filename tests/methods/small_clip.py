"""A small random CLIP whose sizes are all different, and what the tests of the methods do with it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.shared import encode_for
from blemish.clip.tokenizer import Tokenizer
from blemish.methods import build
from blemish.types import ImageFeatures, Target

CONFIG = CLIPConfig(
    embed_dim=28,
    vision=VisionConfig(width=36, layers=4, heads=2, patch_size=8, image_size=24, mlp_width=72),
    text=TextConfig(width=20, layers=3, heads=2, mlp_width=40),
    source="random",
)
SIZE = (24, 40)


def make_clip(config: CLIPConfig, dtype: torch.dtype = torch.float32) -> CLIP:
    torch.manual_seed(3)
    made = CLIP(config).reset_parameters().freeze().to(dtype)
    made.tokenizer = Tokenizer.clip()
    return made


def make(clip: CLIP, variant: tuple[str, dict[str, Any]], **more: Any) -> Any:
    torch.manual_seed(4)
    name, options = variant
    return build(name, clip, **(options | more)).eval()


def encode(clip: CLIP, method: Any, count: int, seed: int = 0, learning: bool = False) -> ImageFeatures:
    """Features of noise. learning: with gradients, which reach methods that learn inside the image tower."""
    generator = torch.Generator().manual_seed(seed)
    with torch.set_grad_enabled(learning):
        return encode_for(clip, method, torch.randn(count, 3, *SIZE, generator=generator))


def pick(features: ImageFeatures, rows: Any) -> ImageFeatures:
    """The features of some of the images, every tensor among them."""
    found = {f.name: getattr(features, f.name) for f in fields(features)}
    found |= {name: value[rows] for name, value in found.items() if isinstance(value, torch.Tensor)}
    found["tokens"] = {stream: tuple(t[rows] for t in layers) for stream, layers in features.tokens.items()}
    return ImageFeatures(**found)


def target(count: int) -> Target:
    label = torch.arange(count) % 2
    mask = torch.zeros(count, *SIZE)
    mask[1::2, 5:20, 8:30] = 1
    return Target(label, mask)
