from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blemish.parts.attention import PatchAttention


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_plain_attention(scale: float) -> None:
    """The cheap order of the products against plain multi-head attention, values and gradients."""
    torch.manual_seed(0)
    attention = PatchAttention(12, 24, heads=4, scale=scale).double()
    text = F.normalize(torch.randn(3, 2, 12, dtype=torch.double), dim=-1)
    patches = F.normalize(torch.randn(3, 35, 24, dtype=torch.double), dim=-1)

    def split(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (4, 6)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
        split(attention.query(text)),
        split(attention.key(patches)),
        split(attention.value(patches)),
        scale=scale,
    )
    expected = F.normalize(attention.out(attended.transpose(1, 2).flatten(2)), dim=-1)
    got = attention(text, patches)
    torch.testing.assert_close(got, expected)
    scores = split(attention.query(text)) @ split(attention.key(patches)).transpose(-1, -2)
    maps = attention.maps(text, patches, (5, 7))
    assert maps.shape == (3, 4, 2, 5, 7) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.flatten(3), (scale * scores).softmax(dim=-1).float())
    weights = torch.randn_like(got)
    wanted = torch.autograd.grad((expected * weights).sum(), list(attention.parameters()))
    found = torch.autograd.grad((got * weights).sum(), list(attention.parameters()))
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(("width", "asked", "used"), [(768, 8, 8), (28, 8, 7), (13, 8, 1), (24, 5, 4)])
def test_heads_divide_the_width(width: int, asked: int, used: int) -> None:
    assert PatchAttention(8, width, asked).heads == used


def test_order_of_patches_does_not_matter() -> None:
    torch.manual_seed(1)
    attention = PatchAttention(8, 8, heads=2)
    text, patches = F.normalize(torch.randn(2, 2, 8), dim=-1), F.normalize(torch.randn(2, 9, 8), dim=-1)
    torch.testing.assert_close(attention(text, patches[:, torch.randperm(9)]), attention(text, patches))
