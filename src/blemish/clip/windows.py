"""Class features of windows of k x k patches: the image tower sees the patches of one window and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .layers import Block

# Numbers in the widest tensor of one chunk (tokens times the MLP's width): 16 MB in float32.
CHUNK_VALUES = 4_000_000


def window_counts(grid: tuple[int, int], sizes: Sequence[int]) -> tuple[int, ...]:
    """How many windows of k x k patches, one patch apart, a grid (rows, columns) has, for each k in `sizes`.

    Raises ValueError for windows that are larger than the grid.
    """
    for k in sizes:
        if not 1 <= k <= min(grid):
            raise ValueError(
                f"windows of {k} x {k} patches do not fit a grid of {grid[0]} x {grid[1]}; "
                "use smaller windows or a larger image size"
            )
    return tuple((grid[0] - k + 1) * (grid[1] - k + 1) for k in sizes)


def window_patches(grid: tuple[int, int], k: int, device: torch.device | None = None) -> Tensor:
    """The patches of every window: (windows, k * k) numbers from 0, windows and patches row by row."""
    numbers = torch.arange(grid[0] * grid[1], device=device).view(grid)
    return numbers.unfold(0, k, 1).unfold(1, k, 1).reshape(-1, k * k)


def window_class_tokens(
    tokens: Tensor,
    grid: tuple[int, int],
    k: int,
    blocks: Sequence[Block],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """The class token after the last block, for every window of k x k patches: (B, windows, W).

    tokens: (B, 1+N, W), what the first block is given for the whole image, positions included. A window is the
    class token and its own patches; the others are left out, not masked. Windows stand in the batch dimension,
    so many at once that no tensor has much more than `CHUNK_VALUES` numbers. Raises ValueError for windows that
    are larger than the grid.
    """
    (count,) = window_counts(grid, [k])
    patches = window_patches(grid, k, tokens.device) + 1
    rows = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
    batch, length, _ = tokens.shape
    if torch.compiler.is_exporting():  # images that cannot be counted cannot be cut into chunks
        return _class_token(tokens[:, rows].flatten(0, 1), blocks, activation).unflatten(0, (batch, count))
    every = (rows + length * torch.arange(batch, device=tokens.device)[:, None, None]).flatten(0, 1)
    flat = tokens.flatten(0, 1)
    chunk = max(1, CHUNK_VALUES // (rows.shape[1] * blocks[0].mlp.c_fc.out_features))
    found = [_class_token(flat[part], blocks, activation) for part in every.split(chunk)]
    return torch.cat(found).unflatten(0, (batch, count))


def _class_token(x: Tensor, blocks: Sequence[Block], activation: Callable[[Tensor], Tensor]) -> Tensor:
    """(M, T, W) -> the first token after the last block, (M, W); the others are not computed there."""
    for block in blocks[:-1]:
        x = block(x, activation)
    last = blocks[-1]
    query, key, value = last.attn.qkv(last.ln_1(x))
    first = x[:, :1] + last.attn.attend(query[:, :, :1], key, value)
    return last.feed_forward(first, activation)[:, 0]
