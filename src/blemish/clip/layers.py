"""The transformer block that both CLIP towers are made of, with its differences as arguments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import cpu_flags
from .packed import Linear, Packable

# Numbers in the attention weights of several heads that are written out at once, and of a part of one head where it has
# more: 4 and 16 MB in bf16, measured on ViT-L/14 from 224 to 1036 pixels.
HEADS_AT_ONCE = 2_000_000
ROWS_AT_ONCE = 8_000_000
# Numbers that the activation handles at once on a CPU: 1 MB in bf16. A multiple of the processor's vectors, beside
# which single numbers may be rounded otherwise.
PART = 1 << 19


def quick_gelu(x: Tensor, in_place: bool = False) -> Tensor:
    """x * sigmoid(1.702 x), the activation OpenAI trained CLIP with. Any shape.

    in_place: x may be overwritten, which saves memory where no gradients are recorded.
    """
    # Tracing first: what it traces must not depend on the size of the batch.
    if (
        torch.compiler.is_compiling()
        or torch.is_grad_enabled()
        or x.device.type != "cpu"
        or x.numel() <= PART
    ):
        return x * torch.sigmoid(1.702 * x)
    # The same, part by part: three passes over memory that the cache holds, in place of three new large tensors.
    flat = x.reshape(-1)
    out = flat if in_place else torch.empty_like(flat)
    gates = torch.empty_like(flat[:PART])
    for given, into in zip(flat.split(PART), out.split(PART), strict=True):
        gate = torch.mul(given, 1.702, out=gates[: len(given)]).sigmoid_()
        torch.mul(given, gate, out=into)
    return out.view(x.shape)


ACTIVATION_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def resolve_layers(layers: Sequence[int | float], depth: int) -> tuple[int, ...]:
    """Block numbers counted from 1, from numbers (int) or fractions of the depth (float in (0, 1]).

    The papers' {6, 12, 18, 24} of 24 blocks are quarters: (0.25, 0.5, 0.75, 1.0) give 3, 6, 9, 12 of 12.
    Halves round up. Raises ValueError for a number outside 1..depth or a fraction outside (0, 1].
    """
    found = []
    for layer in layers:
        if isinstance(layer, float):
            if not 0.0 < layer <= 1.0:
                raise ValueError(f"layer fraction {layer} is outside (0, 1]; 0.25 is a quarter of the depth")
            found.append(max(1, math.floor(layer * depth + 0.5)))
        elif 1 <= layer <= depth:
            found.append(int(layer))
        else:
            raise ValueError(
                f"layer {layer} does not exist in a tower of {depth} blocks; "
                f"use 1 to {depth}, or fractions such as 0.25"
            )
    return tuple(found)


def scaled_attention(query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
    """softmax(query key^T / sqrt(d)) value for each head: (B, heads, N, d), (B, heads, M, d) twice -> (B, heads, N, d).

    Torch's fused kernel, except in bf16 on CPUs that have AVX512-BF16 but no AMX: its products are slow there, and
    two plain products with a softmax between them take two thirds of the time, as many heads at once as the cache
    holds, and of long sequences some rows. Not where gradients are recorded, which would keep the weights of every
    block.
    """
    if causal or torch.is_grad_enabled() or torch.compiler.is_compiling() or not _is_slow_when_fused(query):
        return F.scaled_dot_product_attention(query, key, value, is_causal=causal)
    total, count, width = query.shape[0] * query.shape[1], *query.shape[2:]
    others = key.shape[2]
    heads = min(total, max(1, HEADS_AT_ONCE // (count * others)))
    rows = count if count * others <= ROWS_AT_ONCE else max(1, ROWS_AT_ONCE // others)
    # Products of parts of contiguous tensors copy nothing.
    queries = (query * width**-0.5).contiguous().view(total, count, width)
    keys = key.contiguous().view(total, others, width).transpose(1, 2)
    values = value.contiguous().view(total, others, width)
    out = torch.empty_like(queries)
    scores = out.new_empty(heads, rows, others)
    weights = torch.empty_like(scores)
    for h, r in itertools.product(range(0, total, heads), range(0, count, rows)):
        part = slice(h, h + heads)
        into = out[part, r : r + rows]
        place = slice(len(into)), slice(into.shape[1])
        torch.bmm(queries[part, r : r + rows], keys[part], out=scores[place])
        torch.softmax(scores[place], dim=-1, out=weights[place])
        torch.bmm(weights[place], values[part], out=into)
    return out.view(query.shape)


def _is_slow_when_fused(x: Tensor) -> bool:
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return False
    return "avx512_bf16" in cpu_flags() and "amx_bf16" not in cpu_flags()


class Attention(Packable):
    """Multi-head attention with CLIP's parameter names; heads are contiguous channel slices."""

    names = ("in_proj_weight", "in_proj_bias")

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of the {heads} attention heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(B, N, k*W) -> (k, B, heads, N, W/heads) for k stacked projections."""
        batch, count, _ = x.shape
        width = self.in_proj_weight.shape[1]
        return x.view(batch, count, -1, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, W), already normalised -> queries, keys, values, each (B, heads, N, W/heads)."""
        query, key, value = self.split(self.product(x)).unbind(0)
        return query, key, value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool = False) -> Tensor:
        """softmax(query key^T / sqrt(d)) value per head, then the output projection: (B, N, W)."""
        out = scaled_attention(query, key, value, causal)
        result: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return result


class MLP(nn.Module):
    """Two linear layers; the activation between them is chosen by the caller."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.c_fc = Linear(width, hidden)
        self.c_proj = Linear(hidden, width)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        hidden = self.c_fc(x)
        hidden = quick_gelu(hidden, in_place=True) if activation is quick_gelu else activation(hidden)
        out: Tensor = self.c_proj(hidden)
        return out


class Block(nn.Module):
    """Pre-norm residual block: x + attention(ln_1 x), then + mlp(ln_2 x)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor], causal: bool = False) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        x = x + self.attn.attend(*self.attn.qkv(self.ln_1(x)), causal=causal)
        return self.feed_forward(x, activation)

    def feed_forward(self, x: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        """The second half of the block: (B, N, W) -> (B, N, W)."""
        out: Tensor = x + self.mlp(self.ln_2(x), activation)
        return out


class Transformer(nn.Module):
    """A stack of blocks under CLIP's name `resblocks`; the towers walk through it themselves."""

    def __init__(self, width: int, layers: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_width) for _ in range(layers))

    def reset_parameters(self) -> None:
        """Random weights with CLIP's own scales, from the global generator."""
        attn_std = self.width**-0.5
        proj_std = attn_std * (2 * self.layers) ** -0.5
        for block in self.blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=attn_std)
            nn.init.normal_(block.attn.out_proj.weight, std=proj_std)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * self.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=proj_std)
            for bias in (
                block.attn.in_proj_bias,
                block.attn.out_proj.bias,
                block.mlp.c_fc.bias,
                block.mlp.c_proj.bias,
            ):
                nn.init.zeros_(bias)

    @property
    def blocks(self) -> list[Block]:
        """The blocks, typed."""
        return [b for b in self.resblocks if isinstance(b, Block)]
