"""Class features of windows: which patches they see, and that they are the tower's own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from blemish.clip import windows
from blemish.clip.cache import FeatureCache
from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.layers import ACTIVATION_FUNCTIONS
from blemish.clip.model import CLIP
from blemish.clip.shared import encode_shared
from blemish.clip.windows import window_counts, window_patches
from blemish.types import FeatureSpec, ImageFeatures

CONFIG = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=32, layers=3, heads=2, patch_size=8, image_size=32, mlp_width=48),
    text=TextConfig(width=24, layers=1, heads=2, mlp_width=48, context_length=20, vocab_size=50),
)
LITE = replace(CONFIG, vision=VisionConfig(32, 3, 2, 16, 48, 48, stem="lite"))


def make(config: CLIPConfig = CONFIG) -> CLIP:
    torch.manual_seed(1)
    clip = CLIP(config).reset_parameters().freeze()
    torch.nn.init.normal_(clip.visual.ln_pre.weight, 1, 0.2)  # an ln_pre that does something
    torch.nn.init.normal_(clip.visual.ln_pre.bias, 0, 0.2)
    return clip


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return make()


def images(height: int = 32, width: int = 32, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(2))


def windows_of(features: ImageFeatures) -> Tensor:
    assert features.windows is not None
    return features.windows


def test_windows_of_the_paper() -> None:
    """A grid of 15 x 15: a corner patch lies in one window of each kind, an inner one in 4 and in 9."""
    assert window_counts((15, 15), (2, 3)) == (196, 169)
    for k, inside in ((2, 4), (3, 9)):
        patches = window_patches((15, 15), k)
        assert patches.shape == ((16 - k) ** 2, k * k)
        seen = Counter(patches.flatten().tolist())
        assert seen[0] == seen[14] == seen[210] == seen[224] == 1
        assert seen[7 * 15 + 7] == seen[2 * 15 + 2] == inside
        assert seen[7] == k, "at the border"
        assert set(seen) == set(range(225))


def test_patches_of_a_window_lie_together() -> None:
    patches = window_patches((3, 4), 2)
    expected = [[4 * r + c, 4 * r + c + 1, 4 * r + 4 + c, 4 * r + 5 + c] for r in range(2) for c in range(3)]
    assert patches.tolist() == expected
    assert window_counts((3, 4), (1, 2, 3)) == (12, 6, 2)


@pytest.mark.parametrize("class_ln_post", [True, False])
@torch.no_grad()
def test_against_one_window_at_a_time(clip: CLIP, class_ln_post: bool) -> None:
    """Tokens before `ln_pre` are picked, normed and passed through the tower, a window by itself."""
    pixels = images(24, 40)
    spec = FeatureSpec(windows=(2, 3), class_ln_post=class_ln_post)
    found = windows_of(clip.encode_image(pixels, spec))
    tower = clip.visual
    assert found.shape == (2, 2 * 4 + 1 * 3, 24)
    tokens = tower.conv1(pixels).flatten(2).transpose(1, 2)
    tokens = torch.cat([tower.class_embedding.expand(2, 1, -1), tokens], dim=1)
    tokens = tokens + tower.positions((3, 5), spec.position_resize)
    expected = []
    for k in (2, 3):
        for top in range(4 - k):
            for left in range(6 - k):
                rows = [0] + [1 + 5 * (top + r) + left + c for r in range(k) for c in range(k)]
                x = tower.ln_pre(tokens[:, rows])
                for block in tower.transformer.blocks:
                    x = block(x, ACTIVATION_FUNCTIONS["quick_gelu"])
                x = tower.ln_post(x[:, 0]) if class_ln_post else x[:, 0]
                expected.append(x @ tower.proj)
    torch.testing.assert_close(found, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, LITE], ids=["patch", "lite"])
@torch.no_grad()
def test_window_of_the_whole_grid_is_the_image(config: CLIPConfig) -> None:
    clip = make(config)
    grid = 4 if config is CONFIG else 3
    side = grid * config.vision.patch_size
    features = clip.encode_image(images(side, side), FeatureSpec(windows=(grid,)))
    assert features.grid == (grid, grid)
    torch.testing.assert_close(windows_of(features)[:, 0], features.class_feature, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_patches_outside_a_window_do_not_count(clip: CLIP) -> None:
    spec = FeatureSpec(windows=(2,))
    pixels = images(count=1)
    changed = pixels.clone()
    changed[..., 24:, 24:] = 3  # the last patch
    before, after = (windows_of(clip.encode_image(p, spec))[0] for p in (pixels, changed))
    torch.testing.assert_close(before[:-1], after[:-1], atol=1e-6, rtol=0)
    assert (before[-1] - after[-1]).abs().max() > 1e-2


@torch.no_grad()
def test_chunks_of_any_size_give_the_same(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FeatureSpec(windows=(2, 1))
    passes: list[tuple[int, ...]] = []
    norm = clip.visual.transformer.blocks[0].ln_1
    real = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: (passes.append(tuple(x.shape)), real(x))[1])
    expected = windows_of(clip.encode_image(images(), spec))
    assert passes == [(18, 5, 32), (32, 2, 32), (2, 17, 32)], "a pass for each scale, and one for the image"
    passes.clear()
    monkeypatch.setattr(windows, "CHUNK_VALUES", 5 * 48 * 7)
    torch.testing.assert_close(windows_of(clip.encode_image(images(), spec)), expected, atol=1e-5, rtol=1e-5)
    assert [shape[0] for shape in passes] == [7, 7, 4, 17, 15, 2]
    monkeypatch.setattr(windows, "CHUNK_VALUES", 1)
    torch.testing.assert_close(windows_of(clip.encode_image(images(), spec)), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_windows_change_nothing_else(clip: CLIP) -> None:
    plain = clip.encode_image(images(), FeatureSpec())
    both = clip.encode_image(images(), FeatureSpec(windows=(2,)))
    assert plain.windows is None
    assert torch.equal(plain.class_feature, both.class_feature)
    assert torch.equal(plain.tokens["qk"][0], both.tokens["qk"][0])


@torch.no_grad()
def test_methods_share_windows(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [
        FeatureSpec(windows=(2, 3)),
        FeatureSpec(),
        FeatureSpec(windows=(3, 2), class_ln_post=False),
        FeatureSpec(windows=(4,)),
    ]
    alone = [clip.encode_image(images(), spec) for spec in specs]
    passes: list[int] = []
    norm = clip.visual.transformer.blocks[0].ln_1
    real = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: (passes.append(len(x)), real(x))[1])
    for found, other in zip(encode_shared(clip, images(), specs), alone, strict=True):
        assert torch.equal(found.class_feature, other.class_feature)
        assert (found.windows is None) == (other.windows is None)
        assert found.windows is None or torch.equal(found.windows, windows_of(other))
    assert passes == [18, 8, 2, 2], "each scale once, and the images once"


@pytest.mark.parametrize("storage", ["fp16", "int8"])
@torch.no_grad()
def test_windows_are_cached(clip: CLIP, tmp_path: Path, storage: str) -> None:
    spec = FeatureSpec(windows=(3, 2))
    cache = FeatureCache(tmp_path, clip, spec, 32, storage=storage)
    pixels = images(count=3)
    cache.build(["a", "b", "c"], lambda i: np.ascontiguousarray(pixels[i].numpy()))
    found, expected = (
        windows_of(f) for f in (cache.read(["c", "a"]), clip.encode_image(pixels[[2, 0]], spec))
    )
    assert found.shape == expected.shape == (2, 4 + 9, 24)
    assert (found - expected).abs().max() <= expected.abs().max() / (2000 if storage == "fp16" else 250)
    folders = {FeatureCache(tmp_path, clip, replace(spec, windows=w), 32).folder for w in ((3, 2), (2,), ())}
    assert len(folders) == 3


def test_half_precision() -> None:
    clip = make().to(torch.bfloat16)
    found = windows_of(clip.encode_image(images(), FeatureSpec(windows=(2,))))
    assert found.dtype == torch.bfloat16
    expected = windows_of(make().encode_image(images(), FeatureSpec(windows=(2,))))
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_windows_that_do_not_fit_are_refused(clip: CLIP) -> None:
    with pytest.raises(ValueError, match="5 x 5 patches do not fit a grid of 4 x 6"):
        clip.encode_image(images(32, 48), FeatureSpec(windows=(5,)))
    with pytest.raises(ValueError, match="windows is"):
        FeatureSpec(windows=(2, 0))
