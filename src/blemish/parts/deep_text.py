"""The text tower with inserted deep prompts, as VCP-CLIP tunes it and VCP-CLIP+ keeps it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.model import CLIP, DeepPrompts
from .prompts import Template, fill


class PromptNorm(nn.LayerNorm):
    """The trainable norm before `ln_final`; computes in its own precision whatever the tower's is."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        return super().forward(input.to(self.weight.dtype))


def deep_text_features(
    clip: CLIP,
    templates: Sequence[Template],
    vectors: Tensor,
    deep: Tensor,
    final_norm: nn.Module,
    dropout: float = 0.0,
    activation: str = "native",
    trace: dict[str, Tensor] | None = None,
) -> Tensor:
    """Unit text features of every template with every row of vectors in its place.

    templates: K prompts. vectors: (B, count, W), the word vectors that fill them. deep: (blocks, n, W), given
    to the text blocks after the start-of-text token. final_norm: applied before `ln_final`. dropout: share of
    the deep prompts' values that is dropped, drawn separately for every image, template and block.
    trace: see `CLIP.encode_embeddings`. Returns (B, K, D), float32.
    """
    length = max(len(t.ids) for t in templates)
    prompts = torch.stack([fill(clip, t, vectors, length) for t in templates], dim=1).flatten(0, 1)
    eot = torch.tensor([t.eot for t in templates], device=prompts.device).repeat(vectors.shape[0])
    if dropout:
        deep = F.dropout(deep[:, None].expand(-1, len(prompts), -1, -1), dropout)
    features = clip.encode_embeddings(
        prompts,
        eot,
        deep=DeepPrompts(list(deep), insert=True),
        final_norm=final_norm,
        activation=activation,
        trace=trace,
    )
    return F.normalize(features.float(), dim=-1).unflatten(0, (-1, len(templates)))
