"""Linear heads that carry raw patch tokens into the space of the texts, one per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import reset_layer


class PatchHeads(nn.Module):
    """One `nn.Linear` per layer, learned independently of each other (APRIL-GAN and those that follow it).

    layers: how many. width: of the image tower. joint: width of the text features. bias: with or without.
    Learned tensors are `fc.<layer>.weight` (joint, width) and `fc.<layer>.bias` (joint,), as in the authors' files.
    """

    def __init__(self, layers: int, width: int, joint: int, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.ModuleList(nn.Linear(width, joint, bias=bias) for _ in range(layers))

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise as `nn.Linear` does: uniform within 1 / sqrt(width), weights and biases."""
        for head in self.fc:
            assert isinstance(head, nn.Linear)
            reset_layer(head, generator)

    @property
    def width(self) -> int:
        """Channels of the tokens that go in."""
        first = self.fc[0]
        assert isinstance(first, nn.Linear)
        return first.in_features

    def forward(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """Patches as unit vectors beside the texts.

        tokens: per layer (B, 1+N, W), the class token first, which is left out. Returns per layer (B, N, D), unit
        rows in the heads' type. Raises ValueError for another number of layers.
        """
        if len(tokens) != len(self.fc):
            raise ValueError(f"{len(tokens)} layers of tokens for {len(self.fc)} heads; expected one each")
        dtype = next(self.parameters()).dtype
        return [
            F.normalize(head(layer[:, 1:].to(dtype)), dim=-1)
            for head, layer in zip(self.fc, tokens, strict=True)
        ]
