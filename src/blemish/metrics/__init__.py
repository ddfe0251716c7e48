"""Numbers: image and pixel metrics per class, exact or streaming, mergeable."""

from blemish.metrics.pixels import MetricOptions, PixelMetrics
from blemish.metrics.ranking import Curve, ImageMetrics, Value
from blemish.metrics.summary import ClassMetrics, Mean, mean_over_classes

__all__ = [
    "ClassMetrics",
    "Curve",
    "ImageMetrics",
    "Mean",
    "MetricOptions",
    "PixelMetrics",
    "Value",
    "mean_over_classes",
]
