"""What methods do alike with plain layers: their first values, and the activation of the tower they look into."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ..clip.model import CLIP


def reset_layer(layer: nn.Linear | nn.Conv1d, generator: torch.Generator | None = None) -> None:
    """Initialise as PyTorch does: weights, then biases, uniform within 1 / sqrt(inputs of one output)."""
    bound = 1 / math.sqrt(layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    if layer.bias is not None:
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def resolve_activation(activation: str, clip: CLIP) -> str:
    """The activation of both towers that a method runs with; see `FeatureSpec.activation`.

    "auto": exact GELU on OpenAI's weights, as the authors of such methods trained, else the backbone's own.
    """
    if activation != "auto":
        return activation
    return "gelu" if clip.config.source == "openai" else "native"
