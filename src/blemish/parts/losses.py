"""Losses on probability maps."""

from __future__ import annotations

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
