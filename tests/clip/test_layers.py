"""Attention written out in two products, against torch's own; the activation in parts, against the whole."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blemish.clip import layers

SLOW = frozenset({"avx2", "avx512f", "avx512_bf16"})


def inputs(tokens: int, dtype: torch.dtype = torch.bfloat16, heads: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as `Attention.qkv` gives them: views of one tensor."""
    x = torch.randn(2, tokens, 3 * heads * 16, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    query, key, value = x.view(2, tokens, 3, heads, 16).permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Calls of torch's fused kernel, on a processor where it is slow in bf16."""
    calls: list[bool] = []
    real = F.scaled_dot_product_attention

    def counted(*args: Tensor, is_causal: bool = False) -> Tensor:
        calls.append(is_causal)
        return real(*args, is_causal=is_causal)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(layers, "cpu_flags", lambda: SLOW)
    return calls


@pytest.mark.parametrize("heads_at_once", [0.01, 0.3, 1, 3, 4])
@torch.no_grad()
def test_written_out_equals_fused(
    monkeypatch: pytest.MonkeyPatch, fused: list[bool], heads_at_once: float
) -> None:
    query, key, value = inputs(37)
    monkeypatch.setattr(layers, "HEADS_AT_ONCE", int(heads_at_once * 2 * 37 * 37))
    monkeypatch.setattr(layers, "ROWS_AT_ONCE", int(heads_at_once * 37 * 37))
    found = layers.scaled_attention(query, key, value)
    assert not fused
    assert found.dtype == torch.bfloat16 and found.shape == query.shape
    exact = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    torch.testing.assert_close(found.double(), exact, atol=0.02, rtol=0.02)


@torch.no_grad()
def test_fewer_queries_than_keys(fused: list[bool]) -> None:
    query, key, value = inputs(37)
    whole = layers.scaled_attention(query, key, value)
    row = layers.scaled_attention(query[:, :, :1], key, value)
    assert not fused
    torch.testing.assert_close(row, whole[:, :, :1], atol=0.02, rtol=0.02)


@torch.no_grad()
def test_fused_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, fused: list[bool]) -> None:
    layers.scaled_attention(*inputs(5, torch.float32))
    layers.scaled_attention(*inputs(5), causal=True)
    assert fused == [False, True]
    for flags in (SLOW | {"amx_bf16"}, frozenset({"avx2"})):
        monkeypatch.setattr(layers, "cpu_flags", lambda flags=flags: flags)
        layers.scaled_attention(*inputs(5))
    assert len(fused) == 4


def test_fused_where_gradients_are_recorded(fused: list[bool]) -> None:
    layers.scaled_attention(*inputs(5))
    assert fused == [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_in_parts_is_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 7, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = x * torch.sigmoid(1.702 * x)
    # Not 50: what is left of a part after the processor's vectors is rounded otherwise.
    monkeypatch.setattr(layers, "PART", 64)
    kept = x.clone()
    with torch.no_grad():
        assert torch.equal(layers.quick_gelu(x), expected)
        turned = layers.quick_gelu(x.transpose(0, 2))
    torch.testing.assert_close(turned, expected.transpose(0, 2))
    assert torch.equal(x, kept)
    with torch.no_grad():
        overwritten = x.clone()
        assert torch.equal(layers.quick_gelu(overwritten, in_place=True), expected)
        assert torch.equal(overwritten, expected)
    x.requires_grad_()
    layers.quick_gelu(x).sum().backward()
    assert x.grad is not None
