"""Metrics of maps that another program made: nothing here needs a network, or torch.

python examples/metrics_on_own_maps.py
"""

from __future__ import annotations

import numpy as np

from blemish.metrics import ClassMetrics, MetricOptions, mean_over_classes


def picture(rng: np.random.Generator, anomalous: bool) -> tuple[np.ndarray, np.ndarray]:
    """A map (64, 64), higher = more anomalous, and its mask; replace this by reading your own files."""
    mask = np.zeros((64, 64), dtype=bool)
    if anomalous:
        y, x = rng.integers(0, 48, 2)
        mask[y : y + 12, x : x + 12] = True
    return (rng.random((64, 64)) + 0.7 * mask).astype(np.float32), mask


def main() -> None:
    """Print every metric of two classes and their mean."""
    rng = np.random.default_rng(0)
    values = {}
    for name in ("bolt", "cloth"):
        # "streaming" instead of "exact" bounds the memory; each value then comes with a bound of its error.
        metrics = ClassMetrics(MetricOptions(mode="exact"))
        for i in range(8):
            anomaly_map, mask = picture(rng, anomalous=i % 2 == 1)
            metrics.update(label=i % 2, score=float(anomaly_map.max()), anomaly_map=anomaly_map, mask=mask)
        values[name] = metrics.compute()
    for metric, mean in mean_over_classes(values).items():
        each = "  ".join(f"{name} {values[name][metric].value:.3f}" for name in values)
        print(f"{metric:<24} {mean.value:.3f}   {each}")


if __name__ == "__main__":
    main()
