"""Regions of masks and AUPRO, the area under their mean overlap against the false positive rate.

PRO is a true positive rate in which each anomalous pixel weighs 1 / area of its region. So a mask is
labelled once, when it arrives, and afterwards only the weights matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from blemish.errors import BadImage
from blemish.metrics.ranking import Groups, Value, product_sum, undefined

CONNECTIVITIES = (4, 8)
STEPS = 200  # thresholds of the AnomalyCLIP protocol
TOO_FEW = "fewer than two false positive rates below the limit"


def as_mask(mask: np.ndarray, name: str) -> np.ndarray:
    """bool (H, W) from a mask of booleans, integers (non-zero = anomalous) or floats (> 0.5 = anomalous).

    Raises BadImage for other types, other shapes and floats that are not finite.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise BadImage(f"mask of {name} has shape {mask.shape}; expected (H, W)")
    if mask.dtype == bool:
        return mask
    if mask.dtype.kind in "iu":
        return mask.astype(bool)
    if mask.dtype.kind != "f":
        raise BadImage(f"mask of {name} has type {mask.dtype}; expected booleans, integers or floats")
    if not np.isfinite(mask).all():
        raise BadImage(f"mask of {name} holds NaN or infinity; expected 0 and 1")
    return mask > 0.5


@dataclass(frozen=True)
class Regions:
    """The connected regions of one mask.

    rows: the rows that hold them. areas: (anomalous pixels,) int64, area of each pixel's region in the order of
    `map[mask]`. count: how many regions.
    """

    rows: slice
    areas: np.ndarray
    count: int


def find_regions(mask: np.ndarray, connectivity: int) -> Regions:
    """Regions of a bool mask (H, W), joined by 4 or 8 neighbours.

    Works on runs, the stretches of anomalous pixels in a row: there are few, and pixels need no label.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return Regions(slice(0, 0), np.empty(0, dtype=np.int64), 0)
    held = slice(int(rows[0]), int(rows[-1]) + 1)
    columns = np.flatnonzero(mask[held].any(axis=0))
    box = mask[held, columns[0] : columns[-1] + 1]
    starts, ends, stride = _runs(box)
    reach = stride + (1 if connectivity == 8 else 0)
    # Runs of the next row that end after this one's start and start before its end.
    first = np.searchsorted(ends, starts + (2 * stride - reach), side="right")
    touched = np.searchsorted(starts, ends + reach, side="left") - first
    upper = np.repeat(np.arange(len(starts)), touched)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(touched) + touched, touched)
    region = _joined(len(starts), upper, lower)
    lengths = ends - starts
    areas = np.bincount(region, weights=lengths).astype(np.int64)  # float64 holds every area exactly
    return Regions(held, np.repeat(areas[region], lengths), int(np.count_nonzero(areas)))


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """First and after-last position of every run, and the distance between rows, with one normal pixel between."""
    height, width = mask.shape
    stride = width + 1
    flat = np.zeros(height * stride + 1, dtype=bool)
    flat[1:].reshape(height, stride)[:, :width] = mask
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return changes[::2], changes[1::2], stride


def _joined(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(count,) a representative of each item, equal for items that the pairs (one, other) connect."""
    root = np.arange(count)
    while True:
        first, second = root[one], root[other]
        if np.array_equal(first, second):
            return root
        # Every root with a smaller neighbour joins it, so at most half of the joinable ones remain.
        np.minimum.at(root, np.maximum(first, second), np.minimum(first, second))
        while not np.array_equal(above := root[root], root):
            root = above


@dataclass
class ProArea:
    """Area under the PRO curve up to a false positive rate: one vertex per distinct score, straight between.

    negatives: normal pixels in all. regions: number of regions. limit: false positive rate in (0, 1].
    """

    negatives: int
    regions: int
    limit: float
    _parts: list[float] = field(default_factory=list)
    _false: float = 0.0
    _overlap: float = 0.0

    def add(self, groups: Groups) -> None:
        """Take the next lower groups."""
        stop = self.limit * self.negatives
        start, end = np.minimum(groups.false_above, stop), np.minimum(groups.false, stop)
        before = groups.overlap - groups.weights
        flat = start - np.concatenate([[min(self._false, stop)], end[:-1]])
        # Inside a tie the curve is straight; a tie across the limit is cut there.
        share = (end - start) / np.maximum(groups.false - groups.false_above, 1)
        self._parts.append(product_sum(flat, before))
        self._parts.append(product_sum(end - start, before + share * groups.weights / 2))
        self._false, self._overlap = float(groups.false[-1]), float(groups.overlap[-1])

    def value(self) -> float:
        """The area divided by the limit."""
        stop = self.limit * self.negatives
        rest = (stop - min(self._false, stop)) * self._overlap
        return math.fsum([*self._parts, rest]) / (stop * self.regions)


def sampled_thresholds(low: float, high: float, dtype: np.dtype) -> np.ndarray:
    """Thresholds of the AnomalyCLIP protocol, falling, from below `high` down to `low`; of type `dtype`.

    The published program steps in the scores' own type, where rounding can add a 201st threshold; done in
    the same way here, because at steps in the curve the last bit of a threshold shows in the fifth decimal.
    """
    first, last = dtype.type(low), dtype.type(high)
    step = (last - first) / dtype.type(STEPS)
    return np.arange(first, last, step, dtype=dtype)[::-1] if step > 0 else np.full(1, first)


@dataclass
class OverlapAbove:
    """Running region overlap above given thresholds. thresholds: (K,) falling, of the scores' own type."""

    thresholds: np.ndarray
    overlap: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.overlap = np.zeros(len(self.thresholds))

    def add(self, groups: Groups) -> None:
        """Take the next lower groups."""
        above = np.searchsorted(-groups.score, -self.thresholds, side="left")
        reached = above > 0
        self.overlap[reached] = groups.overlap[above[reached] - 1]


def sampled_area(fpr: np.ndarray, pro: np.ndarray, limit: float) -> Value:
    """AUPRO of the AnomalyCLIP protocol from its sampled curve; rising `fpr`, (K,) both.

    Points with fpr < limit are kept and their rates stretched to [0, 1]; no corner is added.
    """
    kept = fpr < limit
    x, y = fpr[kept], pro[kept]
    if x.size < 2 or x[-1] == x[0]:
        return undefined(TOO_FEW)
    return Value(float(np.dot(np.diff(x), y[1:] + y[:-1]) / 2 / (x[-1] - x[0])))
