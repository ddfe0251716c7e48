"""One pass for several specifications gives what each alone gives, to the last bit."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.shared import encode_shared, shared_passes
from blemish.types import FeatureSpec, ImageFeatures

CONFIG = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=32, layers=4, heads=2, patch_size=8, image_size=32, mlp_width=64),
    text=TextConfig(width=24, layers=3, heads=2, mlp_width=48, context_length=20, vocab_size=50),
    activation="gelu",
)
QUARTERS = (0.25, 0.5, 0.75, 1.0)
SPECS = [
    FeatureSpec(),
    FeatureSpec(layers=(1.0,), streams=("vv",), class_ln_post=False),
    FeatureSpec(layers=QUARTERS, projected=False),
    FeatureSpec(layers=QUARTERS, projected=True, class_ln_post=False),
    FeatureSpec(layers=(4, 2, 2), streams=("qk", "vv", "qq", "kk"), stream_start=3),
    FeatureSpec(layers=(1, 3), streams=("vv",), stream_start=2, stream_ffn=True, projected=False),
    FeatureSpec(layers=(2,), projected=False, activation="gelu"),
    FeatureSpec(layers=(3,), streams=("kk",), stream_start=1.0),
]


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(1)
    return CLIP(CONFIG).reset_parameters().freeze()


def images(side: int = 32, count: int = 3) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(2))


def assert_equal(found: ImageFeatures, alone: ImageFeatures) -> None:
    assert torch.equal(found.class_feature, alone.class_feature)
    assert found.tokens.keys() == alone.tokens.keys()
    for stream, layers in alone.tokens.items():
        assert len(found.tokens[stream]) == len(layers)
        assert all(torch.equal(a, b) for a, b in zip(found.tokens[stream], layers, strict=True))
    assert (found.plain_class_feature is None) == (alone.plain_class_feature is None)
    if found.plain_class_feature is not None and alone.plain_class_feature is not None:
        assert torch.equal(found.plain_class_feature, alone.plain_class_feature)
    assert (found.grid, found.image_size) == (alone.grid, alone.image_size)


def count_blocks(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one for every forward pass through the first block's norm."""
    calls: list[int] = []
    norm = clip.visual.transformer.blocks[0].ln_1
    real = norm.forward
    monkeypatch.setattr(norm, "forward", lambda x: (calls.append(len(x)), real(x))[1])
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_to_separate_passes(clip: CLIP, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    clip.to(dtype)
    alone = [clip.encode_image(images(), spec) for spec in SPECS]
    calls = count_blocks(clip, monkeypatch)
    found = encode_shared(clip, images(), SPECS)
    assert len(calls) == 1
    for one, other in zip(found, alone, strict=True):
        assert_equal(one, other)


def test_every_pair_is_equal_to_separate_passes(clip: CLIP) -> None:
    alone = [clip.encode_image(images(), spec) for spec in SPECS]
    for i, first in enumerate(SPECS):
        for j, second in enumerate(SPECS):
            found = encode_shared(clip, images(), [first, second])
            assert_equal(found[0], alone[i])
            assert_equal(found[1], alone[j])


@pytest.mark.parametrize(
    ("specs", "side", "passes"),
    [
        ([FeatureSpec(), FeatureSpec(position_resize="bilinear")], 32, [[0, 1]]),
        ([FeatureSpec(), FeatureSpec(position_resize="bilinear")], 48, [[0], [1]]),
        ([FeatureSpec(), FeatureSpec(activation="quick_gelu"), FeatureSpec(activation="gelu")], 48, [[0, 2], [1]]),
        ([FeatureSpec(layers=(1,)), FeatureSpec(projected=False), FeatureSpec(streams=("vv",))], 48, [[0, 1, 2]]),
    ],
)  # fmt: skip
def test_passes_part_at_the_first_block(
    clip: CLIP,
    monkeypatch: pytest.MonkeyPatch,
    specs: Sequence[FeatureSpec],
    side: int,
    passes: list[list[int]],
) -> None:
    assert shared_passes(clip, specs, (side, side)) == passes
    alone = [clip.encode_image(images(side), spec) for spec in specs]
    calls = count_blocks(clip, monkeypatch)
    for found, other in zip(encode_shared(clip, images(side), specs), alone, strict=True):
        assert_equal(found, other)
    assert len(calls) == len(passes)


def test_wrong_layers_and_sizes_are_refused(clip: CLIP) -> None:
    with pytest.raises(ValueError, match="layer 9"):
        encode_shared(clip, images(), [FeatureSpec(), FeatureSpec(layers=(9,))])
    with pytest.raises(ValueError, match="divisible by 8"):
        encode_shared(clip, images(30), [FeatureSpec()])
    assert encode_shared(clip, images(), []) == []


def test_second_inputs_are_passed_for_those_who_asked(clip: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = [FeatureSpec(), FeatureSpec(layers=(4, 2), class_size=24)]
    alone = [clip.encode_image(images(), spec) for spec in specs]
    calls = count_blocks(clip, monkeypatch)
    found = encode_shared(clip, images(), specs)
    assert len(calls) == 2
    for a, b in zip(found, alone, strict=True):
        assert_equal(a, b)
    assert found[0].plain_class_feature is None and found[1].plain_class_feature is not None
