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


def confidence_weighted(anomaly_map: Tensor, n1: int, n2: int) -> Tensor:
    """Mean of the n1 largest values, times how far they rise above the n2 largest (GenCLIP's image score).

    The factor is the mean of exp(value) over the n1 largest, divided by that over the n2 largest: 1 for a
    constant map, at most n2 / n1. It is no function of scale, so sums and means of layers rank differently.
    anomaly_map: (B, H, W), any range. n1 <= n2: numbers of pixels, from 1 to H*W. Returns (B,), float32.
    """
    values = anomaly_map.flatten(1).float().topk(n2, dim=1).values
    # The largest value is taken out of the exponent, which leaves the ratio as it is and cannot overflow.
    rise = (values - values[:, :1]).exp()
    weight = rise[:, :n1].mean(dim=1) / rise.mean(dim=1)
    return weight * values[:, :n1].mean(dim=1)


def cosine_logits(features: Tensor, text_features: Tensor) -> Tensor:
    """Cosine similarities of features with each class text, computed in float32.

    features: (..., N, D); text_features: (K, D), or (B, K, D) for one set of texts per image; neither need be
    of unit length. Returns (..., N, K) in [-1, 1].
    """
    features, text_features = features.float(), text_features.float()
    texts = F.normalize(text_features, dim=-1).transpose(-1, -2)
    # The few products are divided instead of the many features.
    return features @ texts / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
