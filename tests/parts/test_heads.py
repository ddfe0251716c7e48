from __future__ import annotations

import math

import pytest
import torch

from blemish.parts.heads import PatchHeads


def test_parameters_of_the_papers_backbone() -> None:
    """APRIL-GAN's four heads on ViT-L/14, in the names of its files."""
    with torch.device("meta"):
        heads = PatchHeads(4, 1024, 768)
    assert sum(p.numel() for p in heads.parameters()) == 3_148_800
    assert list(heads.state_dict()) == [f"fc.{i}.{kind}" for i in range(4) for kind in ("weight", "bias")]
    assert heads.fc[0].weight.shape == (768, 1024)
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchHeads(4, 1024, 768, bias=False).parameters()) == 4 * 768 * 1024


def test_each_layer_through_its_own_head() -> None:
    heads = PatchHeads(2, 6, 5)
    tokens = [torch.randn(3, 1 + 4, 6) for _ in range(2)]
    found = heads(tokens)
    for head, layer, patches in zip(heads.fc, tokens, found, strict=True):
        assert isinstance(head, torch.nn.Linear)
        for image in range(3):
            for patch in range(4):
                plain = head.weight @ layer[image, 1 + patch] + head.bias
                torch.testing.assert_close(patches[image, patch], plain / plain.norm())


def test_class_token_is_left_out() -> None:
    heads, layer = PatchHeads(1, 6, 5), torch.randn(2, 5, 6)
    changed = layer.clone()
    changed[:, 0] = 100
    assert torch.equal(heads([layer])[0], heads([changed])[0])


def test_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="3 layers of tokens for 2 heads"):
        PatchHeads(2, 6, 5)([torch.randn(1, 5, 6)] * 3)


def test_half_precision_tokens() -> None:
    found = PatchHeads(1, 6, 5)([torch.randn(1, 5, 6).bfloat16()])[0]
    assert found.dtype == torch.float32


def test_reset_is_by_the_generator() -> None:
    one, two = PatchHeads(2, 16, 5), PatchHeads(2, 16, 5)
    for heads in (one, two):
        heads.reset(torch.Generator().manual_seed(1))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.abs().max() <= 1 / math.sqrt(16) and a.abs().max() > 0.5 / math.sqrt(16)
