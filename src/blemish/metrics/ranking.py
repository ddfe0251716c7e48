"""AUROC, AP, F1-max, IoU and rates from groups of tied scores in falling order.

Exact pixels, binned pixels and image scores all arrive here in the same form: blocks of `Groups`, highest
scores first. Nothing in this module needs all items at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from blemish.errors import BadImage

NAN = math.nan


@dataclass(frozen=True)
class Value:
    """A metric: a fraction in [0, 1] (or a threshold in score units), or NaN with the reason.

    bound: the true value lies within value ± bound; 0 for exact metrics.
    """

    value: float
    reason: str | None = None
    bound: float = 0.0

    def __float__(self) -> float:
        return self.value

    @property
    def defined(self) -> bool:
        """Whether there is a value; where not, `reason` says why."""
        return not math.isnan(self.value)


def undefined(reason: str) -> Value:
    """NaN and why."""
    return Value(NAN, reason)


def between(low: float, high: float) -> Value:
    """The middle of an interval known to hold the true value."""
    return Value((low + high) / 2, bound=(high - low) / 2)


def product_sum(one: np.ndarray, other: np.ndarray) -> float:
    """Sum of products, without BLAS: its threads would wait for each other longer than the sum takes."""
    return float(np.sum(one * other))


@dataclass(frozen=True)
class Groups:
    """G consecutive groups in falling order of score; the items of one group count as tied.

    score: (G,) the group's score; for bins the lower edge.
    positives: (G,) int64, anomalous items in the group.
    weights: (G,) float64, sum over them of 1 / area of their region (0 where there are no regions).
    true: (G,) int64, anomalous items in this and all higher groups.
    overlap: (G,) float64, running sum of `weights` in the same way.
    false_above, false: (G,) int64, normal items above the group, and above or in it. Normal items between
        two groups count in the lower group's `false_above`.
    """

    score: np.ndarray
    positives: np.ndarray
    weights: np.ndarray
    true: np.ndarray
    overlap: np.ndarray
    false_above: np.ndarray
    false: np.ndarray


@dataclass(frozen=True)
class Best:
    """The lowest threshold that reaches F1-max, and the counts at it (score >= threshold) and above it (>)."""

    threshold: float
    true: int
    false: int
    true_above: int
    false_above: int

    def not_below(self, true: int, false: int, positives: int) -> bool:
        """Whether the counts given reach at least this F1; compared as integers."""
        return true * (self.true + self.false + positives) >= self.true * (true + false + positives)


@dataclass
class Ranking:
    """Sums over all groups, from which every ranking metric follows.

    positives, negatives: how many anomalous and normal items there are in all.
    """

    positives: int
    negatives: int
    best: Best | None = None
    _areas: list[float] = field(default_factory=list)
    _precisions: list[float] = field(default_factory=list)

    def add(self, groups: Groups) -> None:
        """Take the next lower groups."""
        pairs = groups.positives * (2 * self.negatives - groups.false_above - groups.false)
        self._areas.append(float(pairs.sum(dtype=np.float64)))
        precision = groups.true / np.maximum(groups.true + groups.false, 1)
        self._precisions.append(product_sum(groups.positives, precision))
        self._improve(groups)

    def _improve(self, groups: Groups) -> None:
        f1 = groups.true / (groups.true + groups.false + self.positives)
        # Division rounds monotonically, so the exact maximum is among the largest quotients.
        for i in np.flatnonzero(f1 == f1.max()):
            true, false = int(groups.true[i]), int(groups.false[i])
            if self.best is None or self.best.not_below(true, false, self.positives):
                above = true - int(groups.positives[i]), int(groups.false_above[i])
                self.best = Best(float(groups.score[i]), true, false, *above)

    def auroc(self) -> float:
        """Share of (anomalous, normal) pairs in the right order, ties counting one half."""
        return math.fsum(self._areas) / (2 * self.positives * self.negatives)

    def average_precision(self) -> float:
        """Step sum of precision over recall."""
        return math.fsum(self._precisions) / self.positives

    def f1_max(self) -> float:
        """Largest F1 over all thresholds."""
        best = self._best()
        return 2 * best.true / (best.true + best.false + self.positives)

    def threshold(self) -> float:
        """Lowest threshold that reaches F1-max."""
        return self._best().threshold

    def iou(self, strict: bool) -> float:
        """Intersection over union at that threshold: score >= threshold, or > when `strict`."""
        best = self._best()
        if strict:
            return best.true_above / (best.false_above + self.positives)
        return best.true / (best.false + self.positives)

    def rates(self) -> tuple[float, float]:
        """True and false positive rate at that threshold; the second is NaN without normal items."""
        best = self._best()
        return best.true / self.positives, best.false / self.negatives if self.negatives else NAN

    def _best(self) -> Best:
        if self.best is None:
            raise ValueError("F1-max needs at least one anomalous item")
        return self.best


@dataclass(frozen=True)
class Curve:
    """Vertices of ROC, precision-recall and PRO curves, (V,) each: `fpr`, `tpr` and `pro` rise from 0 to 1.

    `precision` belongs to `tpr` as recall and is 1 where nothing is found. `pro` is NaN for images.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    precision: np.ndarray
    pro: np.ndarray


def thinned_curve(
    blocks: Iterable[Groups], positives: int, negatives: int, regions: int, points: int
) -> Curve:
    """A curve for drawing: vertices no further apart than 1/points in FPR or TPR, where the data allow.

    Raises ValueError when there are no anomalous or no normal items.
    """
    if not positives or not negatives:
        raise ValueError("a curve needs anomalous and normal items")
    kept: list[np.ndarray] = [np.zeros((3, 1))]
    cell = np.zeros(2, dtype=np.int64)
    for groups in blocks:
        after = np.stack([groups.false, groups.true, groups.overlap])
        before = np.stack(
            [groups.false_above, groups.true - groups.positives, groups.overlap - groups.weights]
        )
        cells = np.stack([groups.false * points // negatives, groups.true * points // positives])
        moved = np.diff(cells, axis=1, prepend=cell[:, None]).any(axis=0)
        kept.append(np.stack([before[:, moved], after[:, moved]], axis=2).reshape(3, -1))
        cell = cells[:, -1]
    end = np.array([[negatives], [positives], [regions]])
    false, true, overlap = np.concatenate([*kept, end], axis=1)
    counted = true + false
    precision = np.divide(true, counted, out=np.ones_like(true), where=counted > 0)
    # Sums of 1 / area end an ulp beside the number of regions.
    pro = np.maximum.accumulate(np.minimum(overlap / regions, 1)) if regions else np.full_like(true, NAN)
    return Curve(false / negatives, true / positives, precision, pro)


def thinned_line(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `points` (2 or more) vertices of a rising line, its ends among them, evenly along steps in x plus y."""
    along = np.append(0.0, np.cumsum(np.diff(x) + np.diff(y)))
    inner = np.searchsorted(along, along[-1] * np.arange(1, points - 1) / (points - 1))
    chosen = np.unique(np.concatenate([[0], np.minimum(inner, len(x) - 1), [len(x) - 1]]))
    return x[chosen], y[chosen]


class ImageMetrics:
    """Image-level state of one class: update, merge, compute."""

    def __init__(self) -> None:
        self._scores: list[float] = []
        self._labels: list[bool] = []

    def __len__(self) -> int:
        return len(self._scores)

    def update(self, score: float, label: int | bool, name: str | None = None) -> None:
        """Add one image. score: finite, higher = more anomalous. label: 1 = anomalous.

        Raises BadImage for a score that is not finite or a label other than 0 and 1; nothing is added then.
        """
        name = name or f"image {len(self)}"
        number = float(score)
        if not math.isfinite(number):
            raise BadImage(f"image score of {name} is {number}; metrics need finite scores")
        if label not in (0, 1):
            raise BadImage(f"label of {name} is {label!r}; expected 0 (normal) or 1 (anomalous)")
        self._scores.append(number)
        self._labels.append(bool(label))

    def merge(self, other: ImageMetrics) -> None:
        """Take over the images of another state; the result does not depend on the order."""
        self._scores += other._scores
        self._labels += other._labels

    @property
    def counts(self) -> tuple[int, int]:
        """Anomalous and normal images."""
        anomalous = sum(self._labels)
        return anomalous, len(self) - anomalous

    def compute(self) -> dict[str, Value]:
        """Every image metric by name; those without a value are NaN with the reason."""
        names = ("auroc", "ap", "f1max", "f1max_threshold", "tpr", "fnr", "tnr", "fpr")
        positives, negatives = self.counts
        if not positives:
            reason = "no anomalous image" if negatives else "no images"
            return {f"image_{name}": undefined(reason) for name in names}
        ranking = Ranking(positives, negatives)
        ranking.add(self._groups())
        tpr, fpr = ranking.rates()
        no_normal = undefined("no normal image")
        values = (
            Value(ranking.auroc()) if negatives else no_normal,
            Value(ranking.average_precision()),
            Value(ranking.f1_max()),
            Value(ranking.threshold()),
            Value(tpr),
            Value(1 - tpr),
            Value(1 - fpr) if negatives else no_normal,
            Value(fpr) if negatives else no_normal,
        )
        return {f"image_{name}": value for name, value in zip(names, values, strict=True)}

    def curve(self, points: int = 200) -> Curve:
        """ROC and precision-recall curve. Raises ValueError when one kind of image is missing."""
        return thinned_curve([self._groups()], *self.counts, 0, points)

    def _groups(self) -> Groups:
        scores, group = np.unique(np.asarray(self._scores, dtype=np.float64), return_inverse=True)
        labels = np.asarray(self._labels, dtype=bool)
        size = np.bincount(group, minlength=len(scores))[::-1]
        positives = np.bincount(group[labels], minlength=len(scores))[::-1]
        false = np.cumsum(size - positives)
        zeros = np.zeros(len(scores))
        return Groups(
            scores[::-1],
            positives,
            zeros,
            np.cumsum(positives),
            zeros,
            false - (size - positives),
            false,
        )
