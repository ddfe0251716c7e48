"""From a map or a class feature to one image score."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def top_k_mean(anomaly_map: Tensor, k: int) -> Tensor:
    """Mean of the k largest values of each map: the image score of VCP-CLIP (its code uses k = 2000).

    anomaly_map: (B, H, W), any range. k: number of pixels, at least 1; a map with fewer is averaged whole.
    Returns (B,). Raises ValueError when k < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}; expected the number of pixels to average, 1 or more")
    values = anomaly_map.flatten(1)
    return values.topk(min(k, values.shape[1]), dim=1, sorted=False).values.mean(dim=1)


def maximum(anomaly_map: Tensor) -> Tensor:
    """Largest value of each map: (B, H, W) -> (B,)."""
    return anomaly_map.flatten(1).amax(dim=1)


def cosine_logits(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine similarities of features with each class text, computed in float32.

    features: (..., N, D); text_features: (K, D), or (B, K, D) for one set of texts per image; neither need be
    of unit length. Returns (..., N, K) in [-1, 1].
    """
    features, text_features = features.float(), text_features.float()
    texts = F.normalize(text_features, dim=-1).transpose(-1, -2)
    # The few products are divided instead of the many features.
    return features @ texts / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
