"""Pixel metrics of one class: update, merge, compute, exact or streaming."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from blemish.errors import BadImage, BadOption, UnknownName
from blemish.metrics.bounds import ProBound, RankingBounds, at_f1_max, iou_from_f1, sampled_area_bounded
from blemish.metrics.exact import ExactStore
from blemish.metrics.ranking import Curve, Ranking, Value, between, thinned_curve, undefined
from blemish.metrics.regions import (
    CONNECTIVITIES,
    OverlapAbove,
    ProArea,
    as_mask,
    find_regions,
    sampled_area,
    sampled_thresholds,
)
from blemish.metrics.streaming import BinStore

log = logging.getLogger(__name__)

MODES = ("exact", "streaming")
PROTOCOLS = ("exact", "anomalyclip")
NAMES = ("auroc", "ap", "f1max", "f1max_threshold", "iou", "aupro")


@dataclass(frozen=True)
class MetricOptions:
    """How pixel metrics are gathered (first three) and computed.

    mode: "exact" keeps every score (4 bytes a normal pixel); "streaming" counts in bins (under 50 MB)
        and returns with each value how far it can be off.
    connectivity: 8 or 4, neighbours that join pixels into a region.
    score_range: where scores normally lie, as `Method.map_range`; streaming bins are finest at its ends.
        Scores outside are allowed.
    protocol: "exact", or "anomalyclip" for the AUPRO of AnomalyCLIP's program (200 thresholds).
    fpr_limit: AUPRO is taken up to this false positive rate, in (0, 1].
    strict_iou: IoU of the pixels above the threshold instead of at or above it (VCP-CLIP's program).
    tolerance: a bound above this is logged as a warning; None accepts any.
    """

    mode: str = "exact"
    connectivity: int = 8
    score_range: tuple[float, float] = (0.0, 1.0)
    protocol: str = "exact"
    fpr_limit: float = 0.3
    strict_iou: bool = False
    tolerance: float | None = None

    def __post_init__(self) -> None:
        for kind, value, choices in (("mode", self.mode, MODES), ("protocol", self.protocol, PROTOCOLS)):
            if value not in choices:
                raise UnknownName(kind, value, choices)
        if self.connectivity not in CONNECTIVITIES:
            raise BadOption(f"connectivity is {self.connectivity!r}; expected 4 or 8")
        if not 0 < self.fpr_limit <= 1:
            raise BadOption(f"fpr_limit is {self.fpr_limit!r}; expected a rate above 0 and at most 1")
        low, high = self.score_range
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise BadOption(f"score_range is {self.score_range!r}; expected two finite numbers, least first")

    @property
    def gathering(self) -> tuple[str, int, tuple[float, float] | None]:
        """What states must share to be merged."""
        low, high = self.score_range
        return self.mode, self.connectivity, (low, high) if self.mode == "streaming" else None


class PixelMetrics:
    """Pixel-level state of one class.

    States pickle, so parts of a class can be gathered in several processes and merged; the order of images
    and of merging does not matter. `compute` may be called at any time, also between updates.
    """

    def __init__(self, options: MetricOptions | None = None) -> None:
        self.options = options or MetricOptions()
        self.images = 0
        self.regions = 0
        self._least, self._largest = math.inf, -math.inf
        self._dtype: np.dtype = np.dtype(np.float32)
        self._store: ExactStore | BinStore
        if self.options.mode == "exact":
            self._store = ExactStore()
        else:
            self._store = BinStore(self.options.score_range)

    @property
    def counts(self) -> tuple[int, int]:
        """Anomalous and normal pixels."""
        return self._store.positives, self._store.negatives

    def update(self, anomaly_map: np.ndarray, mask: np.ndarray, name: str | None = None) -> None:
        """Add one image with its mask; a normal image has an empty one.

        anomaly_map: (H, W), finite, higher = more anomalous; float16, bfloat16 and integers are widened.
        mask: (H, W), boolean, integer (non-zero = anomalous) or float (> 0.5 = anomalous).
        name: how errors call the image. Raises BadImage for anything else; nothing is added then.
        """
        name = name or f"map {self.images}"
        scores, least, largest = as_scores(anomaly_map, name)
        truth = as_mask(mask, name)
        if scores.shape != truth.shape:
            raise BadImage(
                f"map of {name} is {scores.shape} and its mask {truth.shape} (rows, columns); "
                "resize one of them first, metrics never do"
            )
        regions = find_regions(truth, self.options.connectivity)
        self._store.add(scores, least, truth, regions)
        self._dtype = np.promote_types(self._dtype, scores.dtype)
        self._least, self._largest = min(self._least, least), max(self._largest, largest)
        self.images += 1
        self.regions += regions.count

    def merge(self, other: PixelMetrics) -> None:
        """Add the images of another state. Raises BadOption for this state or one that was gathered otherwise."""
        if other is self:
            raise BadOption("a state cannot be merged into itself: its images would count twice")
        mine, theirs = self.options.gathering, other.options.gathering
        if mine != theirs:
            raise BadOption(f"states gathered with {mine} and {theirs} cannot be merged; use equal options")
        self._store.merge(other._store)  # type: ignore[arg-type]  # equal modes, so equal kinds
        self._dtype = np.promote_types(self._dtype, other._dtype)
        self._least = min(self._least, other._least)
        self._largest = max(self._largest, other._largest)
        self.images += other.images
        self.regions += other.regions

    def compute(self, options: MetricOptions | None = None) -> dict[str, Value]:
        """Every pixel metric by name; those without a value are NaN with the reason.

        options: another protocol, limit or kind of IoU than the state's own. Raises BadOption when the
        rest differs.
        """
        options = options or self.options
        if options.gathering != self.options.gathering:
            raise BadOption(
                f"the state was gathered with {self.options.gathering}, asked for {options.gathering}"
            )
        positives, _ = self.counts
        if not positives:
            reason = "no anomalous pixel" if self.images else "no masks"
            return {f"pixel_{name}": undefined(reason) for name in NAMES}
        if isinstance(self._store, ExactStore):
            values = self._exact(self._store, options)
        else:
            values = self._streaming(self._store, options)
        for name, value in values.items():
            if options.tolerance is not None and value.bound > options.tolerance:
                log.warning("%s is known to ±%.2g only; mode 'exact' has no such error", name, value.bound)
        return values

    def aupro(self, limits: Sequence[float]) -> dict[float, Value]:
        """AUPRO up to several false positive rates, otherwise as `options` say."""
        return {
            limit: self.compute(dataclasses.replace(self.options, fpr_limit=limit))["pixel_aupro"]
            for limit in limits
        }

    def curve(self, points: int = 200) -> Curve:
        """ROC, precision-recall and PRO curves. Raises ValueError when one kind of pixel is missing."""
        return thinned_curve(self._store.groups(), *self.counts, self.regions, points)

    def _thresholds(self) -> np.ndarray:
        return sampled_thresholds(self._least, self._largest, self._dtype)

    def _exact(self, store: ExactStore, options: MetricOptions) -> dict[str, Value]:
        positives, negatives = self.counts
        ranking = Ranking(positives, negatives)
        thresholds = self._thresholds()
        area = ProArea(negatives, self.regions, options.fpr_limit)
        above = OverlapAbove(thresholds)
        for groups in store.groups():
            ranking.add(groups)
            area.add(groups)
            above.add(groups)
        if not negatives:
            auroc = aupro = undefined("no normal pixel")
        else:
            auroc, aupro = Value(ranking.auroc()), Value(0.0)
            if options.protocol == "exact":
                aupro = Value(area.value())
            else:
                fpr = store.false_above(thresholds) / negatives
                aupro = sampled_area(fpr, above.overlap / self.regions, options.fpr_limit)
        values = (
            auroc,
            Value(ranking.average_precision()),
            Value(ranking.f1_max()),
            Value(ranking.threshold()),
            Value(ranking.iou(options.strict_iou)),
            aupro,
        )
        return {f"pixel_{name}": value for name, value in zip(NAMES, values, strict=True)}

    def _streaming(self, store: BinStore, options: MetricOptions) -> dict[str, Value]:
        positives, negatives = self.counts
        ranking, bounds = Ranking(positives, negatives), RankingBounds(positives, negatives)
        area = ProArea(negatives, self.regions, options.fpr_limit)
        area_bound = ProBound(negatives, self.regions, options.fpr_limit)
        for bins in store.groups():
            ranking.add(bins)
            bounds.add(bins)
            area.add(bins)
            area_bound.add(bins)
        if not negatives:
            auroc = aupro = undefined("no normal pixel")
        else:
            auroc = bounds.auroc(ranking.auroc())
            if options.protocol == "exact":
                aupro = Value(area.value(), bound=area_bound.value())
            else:
                false, overlap = store.above(self._thresholds())
                aupro = sampled_area_bounded(false / negatives, overlap / self.regions, options.fpr_limit)
        f1 = between(bounds.low_f1, bounds.high_f1)
        seen = self._least, self._largest
        threshold, strict = at_f1_max(store.groups(), store.scale, ranking, bounds, seen)
        iou = strict if options.strict_iou else iou_from_f1(f1)
        values = (auroc, bounds.average_precision(), f1, threshold, iou, aupro)
        return {f"pixel_{name}": value for name, value in zip(NAMES, values, strict=True)}


def as_scores(anomaly_map: np.ndarray, name: str) -> tuple[np.ndarray, float, float]:
    """(H, W) float32 or float64 without rounding, least and largest score.

    Raises BadImage for other shapes and types, NaN and infinity.
    """
    if str(getattr(anomaly_map, "dtype", "")) == "torch.bfloat16":  # a tensor that numpy cannot read
        anomaly_map = anomaly_map.float()  # type: ignore[attr-defined]
    scores = np.asarray(anomaly_map)
    if scores.ndim != 2 or not scores.size:
        raise BadImage(f"map of {name} has shape {scores.shape}; expected (H, W) with at least one pixel")
    kind, size = scores.dtype.kind, scores.dtype.itemsize
    if scores.dtype.name == "bfloat16" or (kind in "fiu" and size <= 2):
        scores = scores.astype(np.float32)
    elif kind in "iu":
        scores = scores.astype(np.float64)
    elif kind != "f" or size > 8:
        raise BadImage(
            f"map of {name} has type {scores.dtype}; expected float16, float32, float64 or integers"
        )
    else:
        scores = scores.astype(f"f{size}", copy=False)  # this machine's byte order
    low, high = float(scores.min()), float(scores.max())  # NaN goes through both
    if not math.isfinite(low) or not math.isfinite(high):
        bad = np.argwhere(~np.isfinite(scores))[0]
        raise BadImage(
            f"non-finite score in {name}: {scores[tuple(bad)]} at row {bad[0]}, column {bad[1]}; "
            "metrics need finite maps"
        )
    return scores, low, high
