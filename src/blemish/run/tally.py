"""What one method collects over the images of one class, and the numbers that come of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from blemish.errors import BadImage
from blemish.metrics import ClassMetrics, Curve, Value, mean_over_classes
from blemish.run.results import (
    METRICS,
    ClassResult,
    Counts,
    FailedImage,
    Histogram,
    ImageRow,
    Line,
    MeanScore,
    Score,
)

CURVE_POINTS = 200
FINE = 1000  # steps of the curve that the points are chosen from
BINS = 30
NO_PIXEL = "no pixel metrics: "  # begins the note that says why


@dataclass
class Tally:
    """Running state of one method on one class; pickles.

    emptied: outlined images whose mask is empty at the resolution of the metrics. encoder, method: seconds.
    texts: text features of the images in `rows`, where they are collected.
    """

    metrics: ClassMetrics
    rows: list[ImageRow] = field(default_factory=list)
    failed: list[FailedImage] = field(default_factory=list)
    emptied: int = 0
    encoder: float = 0.0
    method: float = 0.0
    texts: list[np.ndarray] = field(default_factory=list)

    def add(
        self,
        row: ImageRow,
        anomaly_map: np.ndarray | None,
        truth: np.ndarray | None,
        texts: np.ndarray | None = None,
    ) -> None:
        """One image. anomaly_map, truth: (H, W), both or none; without them it counts at image level only."""
        try:
            self.metrics.update(row.label, row.score, anomaly_map, truth, row.path)
        except BadImage as error:
            self.fail(row.path, str(error))
            return
        self.rows.append(row)
        if texts is not None:
            self.texts.append(texts)
        self.emptied += row.label == 1 and truth is not None and not truth.any()

    def fail(self, path: str, cause: str) -> None:
        """One image that cannot be used."""
        self.failed.append(FailedImage(path, cause))

    def merge(self, other: Tally) -> None:
        """Add the images of another state of the same class, gathered elsewhere, after its own."""
        self.metrics.merge(other.metrics)
        self.rows += other.rows
        self.failed += other.failed
        self.texts += other.texts
        self.emptied += other.emptied
        self.encoder += other.encoder
        self.method += other.method

    def result(self, counts: Counts, no_pixel: str | None, resolution: int | str) -> ClassResult:
        """The class's numbers. no_pixel: why there are no pixel metrics, None when there are."""
        values = self.metrics.compute()
        if no_pixel is not None:
            values |= {name: Value(math.nan, no_pixel) for name in values if name.startswith("pixel_")}
        return ClassResult(
            counts=counts,
            metrics={name: as_score(values[name]) for name in METRICS},
            image_threshold=as_score(values["image_f1max_threshold"]).value,
            pixel_threshold=as_score(values["pixel_f1max_threshold"]).value,
            curves=self._curves(),
            histogram=histogram(self.rows),
            images=tuple(self.rows),
            failed=tuple(self.failed),
            notes=self._notes(counts, no_pixel, resolution),
        )

    def _curves(self) -> dict[str, Line]:
        curves = {}
        for kind, state in (("image", self.metrics.images), ("pixel", self.metrics.pixels)):
            if not all(state.counts):
                continue
            curve: Curve = state.curve(FINE)
            curves[f"{kind}_roc"] = thin(curve.fpr, curve.tpr)
            if not np.isnan(curve.pro).any():
                curves[f"{kind}_pro"] = thin(curve.fpr, curve.pro)
        return curves

    def _notes(self, counts: Counts, no_pixel: str | None, resolution: int | str) -> tuple[str, ...]:
        notes = []
        bare = counts.anomalous - counts.with_mask
        if no_pixel is not None:
            notes.append(f"{NO_PIXEL}{no_pixel}")
        elif bare:
            notes.append(f"{bare} of {counts.anomalous} anomalous images have no mask: at image level only")
        if self.emptied:
            size = "native size" if isinstance(resolution, str) else f"{resolution}×{resolution}"
            notes.append(
                f"{self.emptied} masks are empty at {size}: their images add normal pixels only at pixel level"
            )
        if self.failed:
            notes.append(f"{len(self.failed)} images failed and are in no number")
        return tuple(notes)


def why_no_pixel(counts: Counts, switched_off: bool) -> str | None:
    """The reason why a class has no pixel metrics; None when it can have them."""
    if switched_off:
        return "left out by no_pixel"
    if not counts.anomalous:
        return "no anomalous image"
    return None if counts.with_mask else f"no masks for its {counts.anomalous} anomalous images"


def as_score(value: Value) -> Score:
    """A metric as plain data."""
    if not value.defined:
        return Score(None, value.reason)
    return Score(float(value.value), None, float(value.bound))


def means(classes: Mapping[str, ClassResult]) -> dict[str, MeanScore]:
    """Mean of every metric over the classes that have it; the thresholds are left out, they have no mean."""
    values = {
        name: {
            key: Value(math.nan if s.value is None else s.value, s.reason, s.error_bound)
            for key, s in found.metrics.items()
            if not key.endswith("_threshold")
        }
        for name, found in classes.items()
    }
    return {
        name: MeanScore(mean.value if mean.used else None, mean.used, mean.classes, mean.bound)
        for name, mean in mean_over_classes(values).items()
    }


def thin(x: np.ndarray, y: np.ndarray) -> Line:
    """At most `CURVE_POINTS` vertices of a rising curve, evenly along its length (steps in x plus in y)."""
    along = np.append(0.0, np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y))))
    chosen = np.searchsorted(along, np.linspace(0, along[-1], CURVE_POINTS))
    chosen = np.unique(np.append(np.minimum(chosen, len(x) - 1)[:-1], len(x) - 1))
    return Line(*(tuple(float(f"{v:.6g}") for v in values[chosen]) for values in (x, y)))


def histogram(rows: list[ImageRow]) -> Histogram | None:
    """Image scores in `BINS` equal bins from the least to the largest; None without images."""
    if not rows:
        return None
    scores = np.array([row.score for row in rows], dtype=np.float64)
    labels = np.array([row.label for row in rows])
    edges = np.histogram_bin_edges(scores, BINS)
    normal, anomalous = (np.histogram(scores[labels == label], edges)[0] for label in (0, 1))
    return Histogram(tuple(edges.tolist()), tuple(normal.tolist()), tuple(anomalous.tolist()))
