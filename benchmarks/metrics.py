"""Speed and memory of the pixel metrics on generated 518x518 maps, against a plain reference.

    python benchmarks/metrics.py                 # 200 maps, the whole claim; the reference takes minutes
    python benchmarks/metrics.py --maps 20

The reference is scikit-learn on all pixels joined, for AUROC, AP, F1-max and IoU, and for AUPRO a loop over 200
thresholds that labels the mask again at each of them, as published evaluation code does. Every run is its own
process. Times are CPU seconds, which other programs disturb little. Memory is the most that is allocated at any
moment beyond the maps themselves; it also counts bins that are never touched.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from blemish.metrics import MetricOptions, PixelMetrics

SIZE = 518
THRESHOLDS = 200
METRICS = ("pixel_auroc", "pixel_ap", "pixel_f1max", "pixel_iou", "pixel_aupro")


def images(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Smooth score maps float32 in (0, 1) with elliptic defects in three of four masks, about 3 % of the area."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for i in range(count):
        rng = np.random.default_rng(i)
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        for _ in range(int(rng.integers(1, 4)) if i % 4 else 0):
            y, x = rng.uniform(40, SIZE - 40, 2)
            a, b = rng.uniform(15, 70, 2)
            mask |= ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 < 1
        coarse = rng.normal(size=(37, 37)) + 1.5 * mask[::14, ::14]
        fine = ndimage.zoom(coarse, SIZE / 37, order=1) + 0.02 * rng.normal(size=(SIZE, SIZE))
        yield (1 / (1 + np.exp(1.5 - 1.5 * fine))).astype(np.float32), mask


def peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(count: int, mode: str, protocol: str) -> dict[str, float]:
    """All pixel metrics at once; maps are generated outside the clock, one at a time."""
    metrics = PixelMetrics(MetricOptions(mode=mode, protocol=protocol))
    warm = PixelMetrics(replace(metrics.options, mode="exact"))
    for one in images(2):
        warm.update(*one)
    warm.compute()
    del warm
    seconds = 0.0
    for one in images(count):
        start = time.process_time()
        metrics.update(*one)
        seconds += time.process_time() - start
    start = time.process_time()
    values = metrics.compute()
    seconds += time.process_time() - start
    share = metrics.counts[0] / sum(metrics.counts)
    return {name: values[name].value for name in METRICS} | {
        "seconds": seconds,
        "added_bytes": allocated(count, metrics.options),
        "largest_bound": max(values[name].bound for name in METRICS),
        "anomalous_share": share,
    }


def allocated(count: int, options: MetricOptions) -> int:
    """Most bytes that a state and its work arrays occupy during updates and the final computation."""
    tracemalloc.start()
    source = images(count)
    one: tuple[np.ndarray, np.ndarray] | None = next(source)
    held = tracemalloc.get_traced_memory()[0]
    metrics, largest = PixelMetrics(options), 0
    while one is not None:
        tracemalloc.reset_peak()
        metrics.update(*one)
        largest = max(largest, tracemalloc.get_traced_memory()[1] - held)
        one = next(source, None)
    tracemalloc.reset_peak()
    metrics.compute()
    return max(largest, tracemalloc.get_traced_memory()[1])


def reference_ranking(count: int) -> dict[str, float]:
    """scikit-learn on all pixels joined."""
    from sklearn.metrics import (  # type: ignore[import-untyped]
        average_precision_score,
        jaccard_score,
        precision_recall_curve,
        roc_auc_score,
    )

    pairs = list(images(count))
    before, start = peak(), time.process_time()
    scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in pairs])
    labels = np.concatenate([mask.ravel() for _, mask in pairs])
    auroc, ap = roc_auc_score(labels, scores), average_precision_score(labels, scores)
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    iou = jaccard_score(labels, scores >= thresholds[f1[:-1].argmax()])
    seconds = time.process_time() - start
    return {
        "pixel_auroc": float(auroc),
        "pixel_ap": float(ap),
        "pixel_f1max": float(f1.max()),
        "pixel_iou": float(iou),
        "seconds": seconds,
        "added_bytes": peak() - before,
    }


def reference_regions(count: int) -> dict[str, float]:
    """AUPRO over evenly spaced thresholds, labelling every mask anew at each."""
    pairs = list(images(count))
    low = min(float(anomaly_map.min()) for anomaly_map, _ in pairs)
    high = max(float(anomaly_map.max()) for anomaly_map, _ in pairs)
    before, start = peak(), time.process_time()
    normal = sum(int((~mask).sum()) for _, mask in pairs)
    fprs, pros = [], []
    for threshold in np.linspace(low, high, THRESHOLDS, endpoint=False):
        false, overlaps = 0, []
        for anomaly_map, mask in pairs:
            above = anomaly_map > threshold
            labels, regions = ndimage.label(mask, structure=np.ones((3, 3)))
            overlaps += [above[labels == region].mean() for region in range(1, regions + 1)]
            false += int((above & ~mask).sum())
        fprs.append(false / normal)
        pros.append(float(np.mean(overlaps)))
    x, y = np.array(fprs[::-1]), np.array(pros[::-1])
    x, y = x[x < 0.3], y[x < 0.3]
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (x[-1] - x[0]))
    return {
        "pixel_aupro": area,
        "seconds": time.process_time() - start,
        "added_bytes": peak() - before,
    }


RUNS: dict[str, Callable[[int], dict[str, float]]] = {
    "exact": lambda count: ours(count, "exact", "exact"),
    "exact, protocol anomalyclip": lambda count: ours(count, "exact", "anomalyclip"),
    "streaming": lambda count: ours(count, "streaming", "exact"),
    "reference ranking": reference_ranking,
    "reference regions": reference_regions,
}


def report(count: int) -> None:
    """Run each in a process of its own and print the comparison."""
    results = {}
    for name in RUNS:
        command = [sys.executable, __file__, "--maps", str(count), "--run", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[name] = json.loads(done.stdout)
        print(name, json.dumps({k: round(v, 9) for k, v in results[name].items()}), flush=True)
    reference = results["reference ranking"]["seconds"] + results["reference regions"]["seconds"]
    pixels = count * SIZE * SIZE
    for name in list(RUNS)[:3]:
        found = results[name]
        print(
            f"{name}: {found['seconds']:.2f} s, {reference / found['seconds']:.0f} times faster than the reference "
            f"({reference:.1f} s); added {found['added_bytes'] / 1e6:.0f} MB, "
            f"{found['added_bytes'] / pixels:.2f} bytes a pixel"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--maps", type=int, default=200)
    parser.add_argument("--run", choices=list(RUNS))
    given = parser.parse_args()
    if given.run:
        print(json.dumps(RUNS[given.run](given.maps)))
    else:
        report(given.maps)


if __name__ == "__main__":
    main()
