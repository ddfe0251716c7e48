"""From patch values to anomaly maps: upsampling, smoothing."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def to_grid(values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch values (B, N, C), row by row, as a small picture (B, C, rows, columns); N = rows * columns."""
    return values.transpose(1, 2).unflatten(2, grid)


def upsample(values: Tensor, grid: tuple[int, int], size: tuple[int, int], align_corners: bool) -> Tensor:
    """Patch values (B, N, C) enlarged bilinearly to (B, C, H, W), `size` = (H, W).

    align_corners: True puts the corner patches at the corner pixels; False puts every patch value at the
    middle of its patch.
    """
    return F.interpolate(to_grid(values, grid), size=size, mode="bilinear", align_corners=align_corners)


def softmax_then_upsample(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Class probabilities per patch, then enlarged without aligned corners (AnomalyCLIP's order).

    logits: (B, N, K), any range. Returns (B, K, H, W) in [0, 1]; the K channels add up to 1.
    """
    return upsample(logits.softmax(dim=-1), grid, size, align_corners=False)


def upsample_then_softmax(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits enlarged with aligned corners, then class probabilities per pixel (VCP-CLIP's order).

    logits: (B, N, K), any range. Returns (B, K, H, W) in [0, 1]; the K channels add up to 1.
    """
    return upsample(logits, grid, size, align_corners=True).softmax(dim=1)


def upsample_then_probability(logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Channel 1 of `upsample_then_softmax` for two classes, at less than half its cost.

    Enlarging is linear, so the difference of the two logits is enlarged alone; its sigmoid is the softmax.
    logits: (B, N, 2), normal and abnormal. Returns (B, H, W) in [0, 1].
    """
    difference = logits[..., 1:] - logits[..., :1]
    return upsample(difference, grid, size, align_corners=True)[:, 0].sigmoid()


def gaussian_blur(maps: Tensor, sigma: float, truncate: float = 4.0) -> Tensor:
    """Gaussian smoothing of each map, with the conventions of `scipy.ndimage.gaussian_filter`.

    maps: (..., H, W), any range and device. sigma: standard deviation in pixels; 0 returns the maps as they
    are. truncate: the kernel ends at `int(truncate * sigma + 0.5)` pixels. The border is mirrored with the
    edge pixel repeated, as often as a small map needs. Returns float32 maps of the same shape and, up to
    rounding, of the same range. Raises ValueError when sigma is negative or not finite.
    """
    if not (sigma >= 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma is {sigma}; expected a number of pixels, 0 or more")
    if sigma == 0:
        return maps
    height, width = maps.shape[-2:]
    # Autocast would run the two products in half precision.
    with torch.autocast(device_type=maps.device.type, enabled=False):
        rows = torch.from_numpy(_blur_matrix(height, sigma, truncate)).to(maps.device)
        columns = torch.from_numpy(_blur_matrix(width, sigma, truncate)).to(maps.device)
        return rows @ maps.float() @ columns.T


@lru_cache(maxsize=32)
def _blur_matrix(length: int, sigma: float, truncate: float) -> np.ndarray:
    """The smoothing of a line of `length` pixels as a float32 matrix (length, length), border included.

    A matrix says in one product what a padded convolution says in several steps, and holds for any border
    reflection; at map sizes (up to a thousand or two) it is as fast.
    """
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    sources = (np.arange(length)[:, None] + offsets) % (2 * length)
    sources = np.minimum(sources, 2 * length - 1 - sources)
    matrix = np.zeros((length, length))
    np.add.at(matrix, (np.arange(length)[:, None], sources), kernel)
    return matrix.astype(np.float32)
