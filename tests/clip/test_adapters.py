"""What is put into the towers by argument: adapters behind blocks, another text projection, the V-V path."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.layers import quick_gelu
from blemish.clip.model import CLIP
from blemish.types import FeatureSpec

SMALL = CLIPConfig(
    embed_dim=24,
    vision=VisionConfig(width=32, layers=4, heads=2, patch_size=8, image_size=32, mlp_width=64),
    text=TextConfig(width=20, layers=3, heads=2, mlp_width=48, context_length=20, vocab_size=50),
)
ALL = FeatureSpec(layers=(1, 2, 3, 4), projected=False)


@pytest.fixture
def clip() -> CLIP:
    torch.manual_seed(1)
    return CLIP(SMALL).reset_parameters().freeze()


def images() -> Tensor:
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(2))


def halved(x: Tensor) -> Tensor:
    return x / 2 + x.roll(1, dims=-1)


@pytest.mark.parametrize("chosen", [(1,), (2, 3), (4,), (1, 2, 3, 4)], ids=str)
def test_image_adapters_against_a_plain_loop(clip: CLIP, chosen: tuple[int, ...]) -> None:
    visual = clip.visual
    x, _ = visual.embed(images(), ALL.position_resize)
    expected = []
    for number, block in enumerate(visual.transformer.blocks, start=1):
        x = block(x, quick_gelu)
        x = halved(x) if number in chosen else x
        expected.append(x)
    adapters = dict.fromkeys(chosen, halved)
    got = clip.encode_image(images(), ALL, adapters=adapters)
    for ours, theirs in zip(got.tokens["qk"], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(got.class_feature, visual.ln_post(x[:, 0]) @ visual.proj)
    alone = clip.encode_image(images(), FeatureSpec(layers=(1,), streams=()), adapters=adapters)
    torch.testing.assert_close(alone.class_feature, got.class_feature)


def test_adapters_that_change_nothing(clip: CLIP) -> None:
    got = clip.encode_image(images(), ALL, adapters={2: lambda x: x})
    plain = clip.encode_image(images(), ALL)
    assert all(torch.equal(a, b) for a, b in zip(got.tokens["qk"], plain.tokens["qk"], strict=True))
    assert torch.equal(got.class_feature, plain.class_feature)


def test_gradients_reach_image_adapters_only(clip: CLIP) -> None:
    first, last = torch.nn.Linear(32, 32), torch.nn.Linear(32, 32)
    clip.encode_image(images(), FeatureSpec(), adapters={1: first, 4: last}).class_feature.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (*first.parameters(), *last.parameters()))
    assert all(p.grad is None for p in clip.parameters())


def test_text_adapters_and_projection_against_a_plain_loop(clip: CLIP) -> None:
    ids = torch.tensor([[1, 5, 6, 49, 0, 0], [1, 7, 8, 9, 10, 49]])
    new = torch.nn.Linear(20, 24)
    x = clip.embed(ids) + clip.positional_embedding[:6]
    for number, block in enumerate(clip.transformer.blocks, start=1):
        x = block(x, quick_gelu, causal=True)
        x = halved(x) if number in (1, 3) else x
    x = clip.ln_final(x[torch.arange(2), torch.tensor([3, 5])])
    eot = ids.argmax(dim=-1)
    adapters = {1: halved, 3: halved}
    got = clip.encode_embeddings(clip.embed(ids), eot, adapters=adapters)
    torch.testing.assert_close(got, x @ clip.text_projection)
    got = clip.encode_embeddings(clip.embed(ids), eot, adapters=adapters, projection=new)
    torch.testing.assert_close(got, new(x))


@pytest.mark.parametrize("start", [1, 3, 4])
def test_the_value_path_against_a_plain_loop(clip: CLIP, start: int) -> None:
    visual = clip.visual
    x, _ = visual.embed(images(), ALL.position_resize)
    expected = []
    for number, block in enumerate(visual.transformer.blocks, start=1):
        if number < start:
            x = block(x, quick_gelu)
        else:
            value = F.linear(block.ln_1(x), block.attn.in_proj_weight[64:], block.attn.in_proj_bias[64:])
            heads = value.unflatten(-1, (2, 16)).transpose(1, 2)
            weights = (heads @ heads.transpose(2, 3) / 4).softmax(dim=-1)
            x = x + block.attn.out_proj((weights @ heads).transpose(1, 2).flatten(2))
            x = x + block.mlp(block.ln_2(x), quick_gelu)
        expected.append(x)
    spec = FeatureSpec(layers=(1, 2, 3, 4), streams=("vv_path", "qk"), stream_start=start, projected=False)
    got = clip.encode_image(images(), spec)
    for ours, theirs in zip(got.tokens["vv_path"], expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    plain = clip.encode_image(images(), ALL)
    assert all(torch.equal(a, b) for a, b in zip(got.tokens["qk"], plain.tokens["qk"], strict=True))
    alone = clip.encode_image(images(), FeatureSpec(layers=(4,), streams=("vv_path",), stream_start=start))
    torch.testing.assert_close(alone.class_feature, plain.class_feature)
    assert (expected[-1] - plain.tokens["qk"][-1]).abs().max() > 1e-3
