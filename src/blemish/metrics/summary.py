"""Image and pixel metrics of a class together, and the mean over the classes of a dataset."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from blemish.errors import BadOption
from blemish.metrics.pixels import MetricOptions, PixelMetrics
from blemish.metrics.ranking import NAN, ImageMetrics, Value, thinned_line


class ClassMetrics:
    """All metrics of one class: update for every test image, merge parts, compute.

    Images without a mask count at image level only; a normal image of a class with masks has an empty mask.
    """

    def __init__(self, options: MetricOptions | None = None) -> None:
        self.images = ImageMetrics()
        self.pixels = PixelMetrics(options)

    def update(
        self,
        label: int | bool | None = None,
        score: float | None = None,
        anomaly_map: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        name: str | None = None,
    ) -> None:
        """Add one image; what is absent is left out of the metrics that need it.

        label: 1 = anomalous, also when the mask is empty. score: image score. anomaly_map, mask: (H, W).
        Raises BadImage, naming the image, for scores that are not finite and maps that do not fit their
        mask; nothing is added then. Raises BadOption for a score without a label.
        """
        if (score is None) != (label is None):
            raise BadOption(f"image score and label of {name or 'an image'} must be given together")
        added = ImageMetrics()
        if score is not None and label is not None:
            added.update(score, label, name or f"image {len(self.images)}")
        if anomaly_map is not None and mask is not None:
            self.pixels.update(anomaly_map, mask, name)
        self.images.merge(added)

    def merge(self, other: ClassMetrics) -> None:
        """Add the images of another state of the same class. Raises BadOption as `PixelMetrics.merge` does."""
        self.pixels.merge(other.pixels)
        self.images.merge(other.images)

    def compute(self, options: MetricOptions | None = None) -> dict[str, Value]:
        """Every image and pixel metric by name."""
        return self.images.compute() | self.pixels.compute(options)

    def curves(self, points: int = 200) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Lines for drawing: "image_roc", "pixel_roc" and "pixel_pro", those that are defined.

        Each is (fpr, tpr or pro): at most `points` vertices from (0, 0) to (1, 1), both rising. Raises
        BadOption for fewer than 2 points.
        """
        if points < 2:
            raise BadOption(f"points is {points!r}; a curve needs 2 at least")
        lines, steps = {}, max(1000, points)
        if all(self.images.counts):
            curve = self.images.curve(steps)
            lines["image_roc"] = thinned_line(curve.fpr, curve.tpr, points)
        if all(self.pixels.counts):
            curve = self.pixels.curve(steps)
            lines["pixel_roc"] = thinned_line(curve.fpr, curve.tpr, points)
            lines["pixel_pro"] = thinned_line(curve.fpr, curve.pro, points)
        return lines


@dataclass(frozen=True)
class Mean:
    """Unweighted mean over the classes where a metric is defined.

    used, classes: how many classes it took, of how many. bound: mean of theirs.
    """

    value: float
    used: int
    classes: int
    bound: float = 0.0


def mean_over_classes(classes: Mapping[str, Mapping[str, Value]]) -> dict[str, Mean]:
    """Mean of every metric over classes; NaN with used = 0 where no class has a value.

    classes: class name -> what `compute` returned. Metrics that some class lacks count as undefined there.
    """
    means = {}
    for name in dict.fromkeys(name for values in classes.values() for name in values):
        found = [values[name] for values in classes.values() if name in values and values[name].defined]
        used = len(found)
        value = math.fsum(v.value for v in found) / used if used else NAN
        bound = math.fsum(v.bound for v in found) / used if used else 0.0
        means[name] = Mean(value, used, len(classes), bound)
    return means
