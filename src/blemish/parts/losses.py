"""Losses on probability maps, and the names of their terms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def focal(probabilities: Tensor, mask: Tensor, gamma: float = 2.0, epsilon: float = 1e-5) -> Tensor:
    """Focal loss of two-class probabilities (not logits), as AnomalyCLIP's and VCP-CLIP's codes compute it.

    With y the mask, q = (1 - epsilon) p_y + epsilon p_{1-y} + epsilon; the loss is the mean over all pixels
    of -(1 - q)^gamma ln q, without class weights.

    probabilities: (B, 2, H, W) in [0, 1], channel 0 normal, 1 abnormal. mask: (B, H, W) in {0, 1}.
    Returns a scalar.
    """
    normal, abnormal = probabilities.unbind(dim=1)
    of_target = torch.where(mask > 0.5, abnormal, normal)
    of_other = torch.where(mask > 0.5, normal, abnormal)
    q = (1 - epsilon) * of_target + epsilon * of_other + epsilon
    return -((1 - q) ** gamma * q.log()).mean()


def dice(probability: Tensor, mask: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss per image, averaged: 1 - (2 sum(p y) + smooth) / (sum(p) + sum(y) + smooth).

    probability, mask: (B, H, W) in [0, 1]. Returns a scalar in [0, 1). The authors' codes treat the rows of a
    batch of one as images; here an image is always an image.
    """
    probability, mask = probability.flatten(1), mask.flatten(1).to(probability.dtype)
    overlap = (probability * mask).sum(dim=1)
    total = probability.sum(dim=1) + mask.sum(dim=1)
    return (1 - (2 * overlap + smooth) / (total + smooth)).mean()


def layer_names(blocks: Sequence[int]) -> tuple[str, ...]:
    """Names of a loss's layers, all different: the block's number, and a count where a block comes again.

    Quarters of a tower of two blocks are 1, 1, 2, 2: layer_names((1, 1, 2, 2)) == ("1", "1_2", "2", "2_2").
    Terms of the same name would take each other's place and be missing in the sum.
    """
    counts = [blocks[: i + 1].count(block) for i, block in enumerate(blocks)]
    return tuple(f"{block}_{n}" if n > 1 else str(block) for block, n in zip(blocks, counts, strict=True))
