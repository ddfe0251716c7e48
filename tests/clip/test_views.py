"""The transformed copies of an image."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blemish.clip.cache import FeatureCache
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.shared import encode_shared
from blemish.clip.views import COUNT, copies
from blemish.types import FeatureSpec

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(1)
    vision = VisionConfig(width=16, layers=2, heads=2, patch_size=8, image_size=16, mlp_width=24)
    text = TextConfig(width=8, layers=1, heads=2, mlp_width=16)
    return CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text)).reset_parameters().freeze()


def made(images: torch.Tensor) -> list[torch.Tensor]:
    return list(copies(images, MEAN, STD))


def test_twenty_one_copies_beside_the_image() -> None:
    found = made(torch.randn(2, 3, 16, 24))
    assert len(found) == COUNT == 21
    assert [tuple(f.shape[-2:]) for f in found] == [(16, 24)] * 18 + [(24, 16), (16, 24), (24, 16)]
    assert all(torch.isfinite(f).all() and f.dtype == torch.float32 for f in found)
    for i, a in enumerate(found):
        assert all(a.shape != b.shape or (a - b).abs().max() > 0.1 for b in found[:i])


def test_a_flat_image_stays_flat() -> None:
    """Nothing black comes in from outside; grey is the luminance."""
    flat = torch.tensor([1.0, -0.5, 0.25]).view(1, 3, 1, 1).expand(1, 3, 16, 24)
    found = made(flat)
    grey = found.pop(17)
    for copy in found:
        torch.testing.assert_close(copy, flat[..., :1, :1].expand_as(copy))
    level = 0.299 * (0.5 + 0.2) + 0.587 * (0.4 - 0.125) + 0.114 * (0.3 + 0.075)
    expected = torch.tensor([(level - m) / s for m, s in zip(MEAN, STD, strict=True)])
    torch.testing.assert_close(grey, expected.view(1, 3, 1, 1).expand_as(grey))


@pytest.mark.parametrize("size", [(60, 60), (60, 90)])
def test_rotations_turn_and_shifts_move_without_stretching(size: tuple[int, int]) -> None:
    """A spot goes where a rotation about the centre, or a shift by a share of the sides, takes it."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = 5.0, -4.0  # from the centre, in pixels
    spot = torch.exp(-((columns - width / 2 - x) ** 2 + (rows - height / 2 - y) ** 2) / 4)
    found = made(spot.expand(1, 3, -1, -1))

    def place(copy: torch.Tensor) -> tuple[float, float]:
        weight = copy[0, 0] / copy[0, 0].sum()
        return float((weight * columns).sum()) - width / 2, float((weight * rows).sum()) - height / 2

    for sixteenths, copy in zip((-4, -3, -2, -1, 1, 2, 3, 4), found, strict=False):
        angle = -sixteenths * math.pi / 16
        turned = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
        assert place(copy) == pytest.approx(turned, abs=0.1)
    assert place(found[8]) == pytest.approx((x + 0.1 * width, y + 0.1 * height), abs=0.1)
    assert place(found[13]) == pytest.approx((x - 0.05 * width, y + 0.05 * height), abs=0.1)
    assert place(found[16]) == pytest.approx((-x, y), abs=0.1)


@torch.no_grad()
def test_their_class_features(clip: CLIP) -> None:
    images = torch.randn(2, 3, 16, 24)
    spec = FeatureSpec(streams=("vv",), stream_start=1, views=True)
    features = clip.encode_image(images, spec)
    views = features.view_class_features
    assert views is not None and views.shape == (2, COUNT, 12)
    for place, changed in ((16, images.flip(-1)), (19, images.flip(-1).flip(-2))):
        own = clip.encode_image(changed, replace(spec, views=False))
        assert own.view_class_features is None
        torch.testing.assert_close(views[:, place], own.class_feature, atol=1e-5, rtol=0)
    both = encode_shared(clip, images, [FeatureSpec(), spec])
    assert both[0].view_class_features is None
    assert both[1].view_class_features is not None and torch.equal(both[1].view_class_features, views)


def test_they_can_be_cached(clip: CLIP, tmp_path: Path) -> None:
    spec = FeatureSpec(views=True)
    cache = FeatureCache(tmp_path, clip, spec, 16)
    pixels = torch.randn(3, 16, 16).numpy()
    cache.build(["a"], lambda _: pixels)
    read = cache.read(["a"]).view_class_features
    with torch.no_grad():
        expected = clip.encode_image(torch.from_numpy(pixels)[None], spec).view_class_features
    assert read is not None and expected is not None
    torch.testing.assert_close(read, expected, atol=1e-2, rtol=1e-2)
