"""What bins leave open: an interval for every pixel metric computed from a streaming state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from blemish.metrics.ranking import Ranking, Value, between, product_sum
from blemish.metrics.regions import sampled_area
from blemish.metrics.streaming import Bins, Scale


@dataclass
class RankingBounds:
    """What bins leave open about AUROC, AP and F1-max, whatever the order inside them."""

    positives: int
    negatives: int
    low_f1: float = 0.0
    high_f1: float = 0.0
    _auroc: list[float] = field(default_factory=list)
    _low_ap: list[float] = field(default_factory=list)
    _high_ap: list[float] = field(default_factory=list)

    def add(self, bins: Bins) -> None:
        """Take the next lower bins."""
        true, false, above = bins.true, bins.false, bins.false_above
        open_pairs = np.where(bins.tied, 0, false - above)
        self._auroc.append(product_sum(bins.positives.astype(np.float64), open_pairs))
        # Worst order: all normal pixels of the bin first. Precision is then concave in the rank, so the
        # mean of its first and last value is not above its mean.
        first, last = true - bins.positives + 1, true / np.maximum(true + false, 1)
        worst = np.where(bins.tied, last, (first / (first + false) + last) / 2)
        best = np.where(bins.tied, last, true / np.maximum(true + above, 1))
        self._low_ap.append(product_sum(bins.positives, worst))
        self._high_ap.append(product_sum(bins.positives, best))
        low, high = self.f1(bins)
        self.low_f1 = max(self.low_f1, float(low.max()))
        self.high_f1 = max(self.high_f1, float(high.max()))

    def f1(self, bins: Bins) -> tuple[np.ndarray, np.ndarray]:
        """Least F1 at the bin's lowest anomalous score, and largest F1 at any threshold in the bin."""
        low = 2 * bins.true / (bins.true + bins.false + self.positives)
        high = 2 * bins.true / (bins.true + bins.false_above + self.positives)
        return low, np.where(bins.tied, low, np.where(bins.positives > 0, high, 0.0))

    def auroc(self, value: float) -> Value:
        """AUROC with ties at one half: off by at most half of what is tied."""
        return Value(value, bound=math.fsum(self._auroc) / 2 / self.positives / self.negatives)

    def average_precision(self) -> Value:
        """Middle of the possible values."""
        return between(
            math.fsum(self._low_ap) / self.positives, min(1.0, math.fsum(self._high_ap) / self.positives)
        )


def at_f1_max(
    blocks: Iterable[Bins], scale: Scale, ranking: Ranking, bounds: RankingBounds, seen: tuple[float, float]
) -> tuple[Value, Value]:
    """Threshold of F1-max, and IoU strictly above it: ranges over every bin where the maximum may lie.

    seen: least and largest score.
    """
    edges, ious, exact = [math.inf, -math.inf], [math.inf, -math.inf], True
    for bins in blocks:
        may = np.flatnonzero((bounds.f1(bins)[1] >= bounds.low_f1) & (bins.positives > 0))
        if not may.size:
            continue
        exact = exact and bool(bins.tied[may].all())
        low_edge, high_edge = scale.edges(bins.index[may])
        edges = [min(edges[0], float(low_edge.min())), max(edges[1], float(high_edge.max()))]
        before = bins.true[may] - bins.positives[may]
        least = before / (bins.false[may] + bounds.positives)
        most = (bins.true[may] - 1) / (bins.false_above[may] + bounds.positives)
        ious = [min(ious[0], float(least.min())), max(ious[1], float(most.max()))]
    if exact:
        return Value(ranking.threshold()), Value(ranking.iou(strict=True))
    low, high = max(edges[0], seen[0]), min(edges[1], seen[1])
    value = min(max(ranking.threshold(), low), high)
    return Value(value, bound=max(value - low, high - value)), between(ious[0], ious[1])


def iou_from_f1(f1: Value) -> Value:
    """IoU at F1-max, which is F1 / (2 - F1) and rises with it."""
    low, high = f1.value - f1.bound, f1.value + f1.bound
    return between(low / (2 - low), high / (2 - high))


@dataclass
class ProBound:
    """What bins leave open about AUPRO up to a false positive rate."""

    negatives: int
    regions: int
    limit: float
    _parts: list[float] = field(default_factory=list)

    def add(self, bins: Bins) -> None:
        """Take the next lower bins."""
        stop = self.limit * self.negatives
        width = np.minimum(bins.false, stop) - np.minimum(bins.false_above, stop)
        share = np.where(bins.false <= stop, 0.5, 1.0)  # the bin across the limit may be all on one side
        self._parts.append(product_sum(np.where(bins.tied, 0.0, width * share), bins.weights))

    def value(self) -> float:
        """Largest possible error of AUPRO."""
        return min(1.0, math.fsum(self._parts) / (self.limit * self.negatives * self.regions))


def sampled_area_bounded(fprs: np.ndarray, pros: np.ndarray, limit: float) -> Value:
    """AUPRO of the AnomalyCLIP protocol and its bound. fprs, pros: (2, K), least and largest possible."""
    fpr, d_fpr = fprs.mean(axis=0), np.ptp(fprs, axis=0) / 2
    pro, d_pro = pros.mean(axis=0), np.ptp(pros, axis=0) / 2
    value = sampled_area(fpr, pro, limit)
    if not value.defined:
        return value
    # Where a rate may lie on either side of the limit, every possible last point is tried.
    surely, maybe = int((fprs[1] < limit).sum()), int((fprs[0] < limit).sum())
    bound = 0.0
    for count in range(surely, maybe + 1):
        part = slice(0, count)
        other = sampled_area(fpr[part], pro[part], math.inf)
        if not other.defined:
            return Value(value.value, bound=1.0)
        spread = _area_bound(fpr[part], pro[part], d_fpr[part], d_pro[part], other.value)
        bound = max(bound, abs(other.value - value.value) + spread)
    return Value(value.value, bound=min(bound, 1.0))


def _area_bound(x: np.ndarray, y: np.ndarray, dx: np.ndarray, dy: np.ndarray, area: float) -> float:
    """Change of the stretched area when each x moves by up to dx and each y by up to dy."""
    width, d_width = x[-1] - x[0], dx[0] + dx[-1]
    if d_width >= width:
        return 1.0
    reach = np.diff(x) + dx[1:] + dx[:-1]
    by_y = np.dot(reach, dy[1:] + dy[:-1]) / 2
    steps = np.abs(np.diff(y))
    by_x = (np.dot(dx[1:-1], steps[1:] + steps[:-1]) + dx[0] * (y[0] + y[1]) + dx[-1] * (y[-2] + y[-1])) / 2
    return float((by_y + by_x + area * d_width) / (width - d_width))
