"""Transformed copies of network inputs, over which AnoVL averages an image's score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# In sixteenths of a half turn, and in halves of the picture's sides, to the right and down.
ROTATIONS = (-4, -3, -2, -1, 1, 2, 3, 4)
SHIFTS = tuple((x * s, y * s) for s in (0.2, 0.1) for x, y in ((1, 1), (-1, 1), (-1, -1), (1, -1)))
LUMINANCE = (0.299, 0.587, 0.114)
COUNT = len(ROTATIONS) + len(SHIFTS) + 5


def copies(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Iterator[Tensor]:
    """The COUNT copies of B network inputs, one kind after the other.

    Eight small rotations, eight diagonal shifts, a horizontal flip, grey, and three right-angle rotations. What
    comes in from outside is mirrored. images: (B, 3, H, W), normalised by `mean` and `std`. Each copy is float32
    (B, 3, H, W); (B, 3, W, H) for the quarter turns.
    """
    images = images.float()
    height, width = images.shape[-2:]
    for sixteenths in ROTATIONS:
        sine, cosine = (f(sixteenths * math.pi / 16) for f in (math.sin, math.cos))
        # The grid counts in half sides: a turn of a picture that is no square takes their ratio.
        yield _moved(images, ((cosine, -sine * height / width, 0.0), (sine * width / height, cosine, 0.0)))
    for right, down in SHIFTS:
        yield _moved(images, ((1.0, 0.0, -right), (0.0, 1.0, -down)))
    yield images.flip(-1)
    yield _grey(images, mean, std)
    for quarters in (1, 2, 3):
        yield images.rot90(quarters, (-2, -1))


def class_features(
    images: Tensor, mean: Sequence[float], std: Sequence[float], encode: Callable[[Tensor], Tensor]
) -> Tensor:
    """Features of all copies of B images, (B, COUNT, D); `encode` makes (B, D) of one kind of copy.

    One kind at a time, so that memory stays that of B images.
    """
    return torch.stack([encode(copy) for copy in copies(images, mean, std)], dim=1)


def _moved(images: Tensor, matrix: tuple[tuple[float, ...], ...]) -> Tensor:
    """Bilinear copies in which each place (x, y, 1) shows what was at `matrix` times it, in half sides."""
    theta = images.new_tensor(matrix).expand(images.shape[0], -1, -1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _grey(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """The luminance of each pixel in all three channels, normalised as the others are."""
    centre, scale, weights = (images.new_tensor(tuple(v)).view(3, 1, 1) for v in (mean, std, LUMINANCE))
    luminance = ((images * scale + centre) * weights).sum(dim=1, keepdim=True)
    return (luminance - centre) / scale
