"""From a map or a class feature to one image score."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

# The input size that the authors' numbers of pixels belong to.
REFERENCE_PIXELS = 518 * 518


def scaled_count(count: int, maps: Tensor) -> int:
    """A number of pixels meant for maps of 518 x 518, for maps (..., H, W): by area, from 1 to all of them."""
    pixels = maps.shape[-2] * maps.shape[-1]
    return min(pixels, max(1, round(count * pixels / REFERENCE_PIXELS)))


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
    anomaly_map: (B, H, W), any range. n1 <= n2: numbers of pixels, 1 or more; all of them in smaller maps.
    Returns (B,), float32.
    """
    pixels = anomaly_map.shape[-2] * anomaly_map.shape[-1]
    values = anomaly_map.flatten(1).float().topk(min(n2, pixels), dim=1).values
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
