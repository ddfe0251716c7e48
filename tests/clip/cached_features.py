"""What the tests of the feature cache share: specifications, inputs by key, comparisons."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blemish.clip.model import CLIP
from blemish.types import FeatureSpec, ImageFeatures

SIZE = 40
RAW = FeatureSpec(layers=(0.25, 1.0, 3), projected=False, position_resize="bilinear")
STREAMS = FeatureSpec(layers=(4, 2), streams=("vv", "qk"), stream_start=2, class_ln_post=False)
SECOND = FeatureSpec(layers=(1.0, 1.0), streams=("qk", "kk", "qq"), stream_ffn=True, class_size=24)
CLASS_ONLY = FeatureSpec(streams=())
TOLERANCE = {"fp16": 2**-11, "bf16": 2**-8, "int8": 1 / 250}


def pixels(key: str) -> np.ndarray:
    return np.random.default_rng(list(key.encode())).standard_normal((3, SIZE, SIZE)).astype(np.float32)


class Loader:
    """Makes the network's input of each key and counts how often."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys, self.calls = keys, Counter[str]()

    def __call__(self, index: int) -> np.ndarray:
        self.calls[self.keys[index]] += 1
        return pixels(self.keys[index])


def encoded(clip: CLIP, keys: Sequence[str], spec: FeatureSpec) -> ImageFeatures:
    with torch.no_grad():
        return clip.encode_image(torch.from_numpy(np.stack([pixels(key) for key in keys])), spec)


def check_equal(found: ImageFeatures, expected: ImageFeatures, storage: str) -> None:
    """The same structure, and values as near as the storage allows."""

    def near(a: Tensor, b: Tensor, tolerance: float) -> None:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        assert a.is_contiguous()
        peak = b.abs().amax(-1, keepdim=True)
        assert ((a - b).abs() <= tolerance * peak + 1e-5).all()

    assert list(found.tokens) == list(expected.tokens)
    for stream, layers in expected.tokens.items():
        assert isinstance(found.tokens[stream], tuple)
        for a, b in zip(found.tokens[stream], layers, strict=True):
            near(a, b, TOLERANCE[storage])
    for field in dataclasses.fields(expected):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, Tensor):
            near(a, b, 1e-5)
        elif field.name != "tokens":
            assert a == b
