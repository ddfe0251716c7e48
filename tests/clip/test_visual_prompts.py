"""Learned tokens inside the image tower, against a plain loop over its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.layers import quick_gelu
from blemish.clip.model import CLIP
from blemish.clip.shared import encode_for, shared_passes
from blemish.types import Encodes, FeatureSpec, ImageFeatures

WIDTH, DEPTH, HEADS = 24, 4, 2
RAW = FeatureSpec(layers=(1, 2, 4), projected=False)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    torch.manual_seed(0)
    vision = VisionConfig(width=WIDTH, layers=DEPTH, heads=HEADS, patch_size=8, image_size=24, mlp_width=48)
    text = TextConfig(width=16, layers=2, heads=2, mlp_width=32)
    return CLIP(CLIPConfig(embed_dim=12, vision=vision, text=text)).reset_parameters().freeze()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def draw(count: int, *shape: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(*shape, generator=generator) for _ in range(count)]


def plain_loop(
    clip: CLIP, images: torch.Tensor, prompts: Sequence[torch.Tensor], hidden: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Every block's tokens without the prompts, and the class feature. hidden: nobody attends to prompts."""
    visual = clip.visual
    x, _ = visual.embed(images, "bicubic")
    count, found = x.shape[1], []
    for number, block in enumerate(visual.transformer.resblocks):
        if number < len(prompts):
            x = torch.cat([x[:, :count], prompts[number].expand(len(x), -1, -1)], dim=1)
        q, k, v = F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        heads = []
        for h in range(HEADS):
            part = slice(h * WIDTH // HEADS, (h + 1) * WIDTH // HEADS)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / (WIDTH // HEADS) ** 0.5
            if hidden:
                scores[:, :, count:] = -torch.inf
            heads.append(scores.softmax(dim=-1) @ v[..., part])
        x = x + block.attn.out_proj(torch.cat(heads, dim=-1))
        x = x + block.mlp.c_proj(quick_gelu(block.mlp.c_fc(block.ln_2(x))))
        found.append(x[:, :count])
    return found, visual.ln_post(x[:, 0]) @ visual.proj


@pytest.mark.parametrize("depth", [1, 3, 4])
@torch.no_grad()
def test_against_a_plain_loop(clip: CLIP, images: torch.Tensor, depth: int) -> None:
    prompts = draw(depth, 2, 5, WIDTH)
    got = clip.encode_image(images, RAW, prompts)
    tokens, class_feature = plain_loop(clip, images, prompts)
    for block, found in zip(RAW.layers, got.tokens["qk"], strict=True):
        assert found.shape == (2, 1 + 15, WIDTH), "prompts are in no feature"
        torch.testing.assert_close(found, tokens[int(block) - 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.class_feature, class_feature, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_extra_tokens_count_because_they_are_attended_to(clip: CLIP, images: torch.Tensor) -> None:
    """Zero prompts still take their share of the attention; hidden from it they change nothing."""
    plain = clip.encode_image(images, RAW)
    zero = [torch.zeros(5, WIDTH)] * 3
    got = clip.encode_image(images, RAW, zero)
    assert (got.class_feature - plain.class_feature).abs().max() > 1e-3
    tokens, class_feature = plain_loop(clip, images, zero, hidden=True)
    torch.testing.assert_close(class_feature, plain.class_feature, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[-1], plain.tokens["qk"][-1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_prompt_acts_from_its_block_on(clip: CLIP, images: torch.Tensor) -> None:
    first, second, other = draw(3, 5, WIDTH)
    a, b = (clip.encode_image(images, RAW, [first, p]).tokens["qk"] for p in (second, other))
    assert torch.equal(a[0], b[0])
    assert (a[1] - b[1]).abs().max() > 1e-3
    shared = clip.encode_image(images, RAW, [first, second])
    own = clip.encode_image(images, RAW, [p.expand(2, -1, -1) for p in (first, second)])
    assert torch.equal(shared.class_feature, own.class_feature)


@torch.no_grad()
def test_class_feature_alone_and_streams(clip: CLIP, images: torch.Tensor) -> None:
    """The last block may compute its class row only; parallel streams lose the prompts too."""
    prompts = draw(3, 5, WIDTH)
    whole = clip.encode_image(images, RAW, prompts)
    short = clip.encode_image(images, FeatureSpec(layers=(2,), projected=False), prompts)
    torch.testing.assert_close(short.class_feature, whole.class_feature, atol=1e-5, rtol=1e-5)
    streams = clip.encode_image(images, FeatureSpec(streams=("vv", "qk"), stream_start=2), prompts)
    assert streams.tokens["vv"][0].shape == streams.tokens["qk"][0].shape == (2, 16, 12)


def test_gradients_reach_the_prompts_and_nothing_else(clip: CLIP, images: torch.Tensor) -> None:
    prompts = [p.requires_grad_() for p in draw(3, 5, WIDTH)]
    features = clip.encode_image(images, RAW, prompts)
    features.tokens["qk"][0].square().sum().backward(retain_graph=True)
    assert prompts[0].grad is not None and prompts[0].grad.abs().amin(dim=1).gt(0).all()
    assert prompts[1].grad is None, "block 1 is before the second prompt"
    features.class_feature.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in prompts)
    assert all(p.grad is None for p in clip.parameters())


def test_more_prompts_than_blocks_are_refused(clip: CLIP, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="5 visual prompts for an image tower of 4 blocks"):
        clip.encode_image(images, RAW, draw(5, 5, WIDTH))


def test_methods_that_encode_for_themselves_are_asked(clip: CLIP, images: torch.Tensor) -> None:
    class Own:
        needs = FeatureSpec(cacheable=False)

        def encode(self, given: torch.Tensor) -> ImageFeatures:
            return clip.encode_image(given, self.needs, [torch.ones(1, WIDTH)])

    assert isinstance(Own(), Encodes)
    plain = SimpleNamespace(needs=FeatureSpec())
    with torch.no_grad():
        own, frozen = (encode_for(clip, method, images) for method in (Own(), plain))  # type: ignore[arg-type]
    assert torch.equal(frozen.class_feature, clip.encode_image(images).class_feature)
    assert not torch.equal(own.class_feature, frozen.class_feature)


def test_such_methods_share_no_pass(clip: CLIP) -> None:
    specs = [
        FeatureSpec(),
        FeatureSpec(cacheable=False),
        FeatureSpec(layers=(1,)),
        FeatureSpec(cacheable=False),
    ]
    assert shared_passes(clip, specs, (24, 24)) == [[0, 2], [1], [3]]
