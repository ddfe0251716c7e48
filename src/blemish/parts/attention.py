"""Texts that attend to the patches of an image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchAttention(nn.Module):
    """Cross attention from a few texts to the patches, without scaling, residual or norm unless asked for.

    Post-VCP of VCP-CLIP and ViP-FGP of ViP2-CLIP. The projections of keys and values are applied on the side
    of the two queries: q.(W z + b) = (W' q).z + q.b, and the weighted mean of W z + b is W (weighted mean of
    z) + b. That is the same function of 2 x heads vectors in place of all patches, some forty times cheaper
    at the papers' size.
    """

    def __init__(self, embed_dim: int, width: int, heads: int, scale: float = 1.0) -> None:
        """heads: reduced to the next number that divides `width`. scale: factor of the attention logits."""
        super().__init__()
        self.heads = max(h for h in range(1, heads + 1) if width % h == 0)
        self.scale = scale
        self.query = nn.Linear(embed_dim, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, text: Tensor, patches: Tensor) -> Tensor:
        """text: (B, K, D), unit rows; patches: (B, N, W), unit rows. Returns (B, K, W), unit rows."""
        value = self.value.weight.unflatten(0, (self.heads, -1))
        context = torch.einsum("bkhn,bnw->bkhw", self._weights(text, patches), patches)
        mixed = torch.einsum("bkhw,hcw->bkhc", context, value).flatten(2) + self.value.bias
        return F.normalize(self.out(mixed), dim=-1)

    def maps(self, text: Tensor, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """How much each head of each text looks at each patch: (B, heads, K, *grid), adding up to 1 per map."""
        return self._weights(text, patches).float().transpose(1, 2).unflatten(-1, grid)

    def _weights(self, text: Tensor, patches: Tensor) -> Tensor:
        """The attention of K texts to N patches, (B, K, heads, N); arguments as for `forward`."""
        query = self.scale * self.query(text).unflatten(-1, (self.heads, -1))
        key = self.key.weight.unflatten(0, (self.heads, -1))
        constant = (query * self.key.bias.unflatten(0, (self.heads, -1))).sum(dim=-1, keepdim=True)
        logits = torch.einsum("bkhc,hcw->bkhw", query, key)
        logits = torch.einsum("bkhw,bnw->bkhn", logits, patches) + constant
        return logits.softmax(dim=-1)
