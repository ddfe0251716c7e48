"""Speed and memory of the pixel metrics on generated 518x518 maps, against a plain reference.

    python benchmarks/metrics.py                 # 200 maps, the whole claim; the reference takes minutes
    python benchmarks/metrics.py --maps 20

The reference is scikit-learn on all pixels joined, for AUROC, AP, F1-max and IoU, and for AUPRO a loop over 200
thresholds that labels the mask again at each of them, as published evaluation code does. Every run is its own
process, in one thread. Ratios are given of CPU seconds, which other programs disturb little, and of wall time. The
library's passes are short, so several are made: the median counts, and the slowest is shown too. Memory is what is
added to the maps themselves at the worst moment: the larger of what is allocated (bins that are never touched
count) and what is resident.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy import ndimage

from blemish.metrics import MetricOptions, PixelMetrics

SIZE = 518
PASSES = 7
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
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


class Clock:
    """CPU and wall seconds of a block."""

    def __enter__(self) -> Clock:
        self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._start[0]
        self.wall = time.perf_counter() - self._start[1]


def peak() -> int:
    """Largest resident memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(count: int, mode: str, protocol: str) -> dict[str, float]:
    """All pixel metrics at once, several times over; maps are generated outside the clock."""
    options = MetricOptions(mode=mode, protocol=protocol)
    allocated_bytes = allocated(count, options)
    pairs = list(images(count))
    resident_bytes = resident(pairs, options)
    cpu, wall, update = [], [], []
    for _ in range(PASSES):
        metrics = PixelMetrics(options)
        with Clock() as updates:
            for one in pairs:
                metrics.update(*one)
        with Clock() as final:
            values = metrics.compute()
        cpu.append(updates.cpu + final.cpu)
        wall.append(updates.wall + final.wall)
        update.append(updates.cpu)
    return {name: values[name].value for name in METRICS} | {
        "cpu_seconds": statistics.median(cpu),
        "slowest_cpu_seconds": max(cpu),
        "update_cpu_seconds": statistics.median(update),
        "wall_seconds": statistics.median(wall),
        "allocated_bytes": allocated_bytes,
        "resident_bytes": resident_bytes,
        "added_bytes": max(allocated_bytes, resident_bytes),
        "largest_bound": max(values[name].bound for name in METRICS),
        "anomalous_share": metrics.counts[0] / sum(metrics.counts),
    }


def allocated(count: int, options: MetricOptions) -> int:
    """Most bytes that a state and its work arrays occupy by the count of the allocators."""
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
    largest = max(largest, tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    return largest


def resident(pairs: list[tuple[np.ndarray, np.ndarray]], options: MetricOptions) -> int:
    """Most bytes by which a state and its work arrays enlarge the process; Linux, elsewhere 0."""
    if not Path("/proc/self/clear_refs").exists():
        return 0
    before = memory("smaps_rollup", "Rss")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # starts VmHWM anew
    metrics = PixelMetrics(options)
    for one in pairs:
        metrics.update(*one)
    metrics.compute()
    return memory("status", "VmHWM") - before


def memory(file: str, field: str) -> int:
    """A figure that the system keeps about this process, bytes."""
    lines = Path("/proc/self", file).read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def reference_ranking(count: int) -> dict[str, float]:
    """scikit-learn on all pixels joined."""
    from sklearn.metrics import (  # type: ignore[import-untyped]
        average_precision_score,
        jaccard_score,
        precision_recall_curve,
        roc_auc_score,
    )

    pairs = list(images(count))
    before = peak()
    with Clock() as clock:
        scores = np.concatenate([anomaly_map.ravel() for anomaly_map, _ in pairs])
        labels = np.concatenate([mask.ravel() for _, mask in pairs])
        auroc, ap = roc_auc_score(labels, scores), average_precision_score(labels, scores)
        precision, recall, thresholds = precision_recall_curve(labels, scores)
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
        iou = jaccard_score(labels, scores >= thresholds[f1[:-1].argmax()])
    return {
        "pixel_auroc": float(auroc),
        "pixel_ap": float(ap),
        "pixel_f1max": float(f1.max()),
        "pixel_iou": float(iou),
        "cpu_seconds": clock.cpu,
        "wall_seconds": clock.wall,
        "added_bytes": peak() - before,
    }


def reference_regions(count: int) -> dict[str, float]:
    """AUPRO over evenly spaced thresholds, labelling every mask anew at each."""
    pairs = list(images(count))
    before = peak()
    with Clock() as clock:
        area = resampled_aupro(pairs)
    return {
        "pixel_aupro": area,
        "cpu_seconds": clock.cpu,
        "wall_seconds": clock.wall,
        "added_bytes": peak() - before,
    }


def resampled_aupro(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """AUPRO of the AnomalyCLIP protocol, straight from its definition."""
    low = min(float(anomaly_map.min()) for anomaly_map, _ in pairs)
    high = max(float(anomaly_map.max()) for anomaly_map, _ in pairs)
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
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (x[-1] - x[0]))


OURS: dict[str, Callable[[int], dict[str, float]]] = {
    "exact": lambda count: ours(count, "exact", "exact"),
    "exact, protocol anomalyclip": lambda count: ours(count, "exact", "anomalyclip"),
    "streaming": lambda count: ours(count, "streaming", "exact"),
}
REFERENCE = {"reference ranking": reference_ranking, "reference regions": reference_regions}
RUNS = OURS | REFERENCE


def report(count: int) -> None:
    """Run each in a process of its own and print the comparison."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    # A shared machine may change its speed within minutes: ours before, between and after the reference.
    for name in [*OURS, "reference ranking", *OURS, "reference regions", *OURS]:
        command = [sys.executable, __file__, "--maps", str(count), "--run", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=ONE_THREAD)
        results[name].append(json.loads(done.stdout))
        print(name, json.dumps({k: round(v, 9) for k, v in results[name][-1].items()}), flush=True)
    cpu, wall = (sum(results[name][0][f"{kind}_seconds"] for name in REFERENCE) for kind in ("cpu", "wall"))
    print(f"reference: {cpu:.1f} s CPU, {wall:.1f} s wall")
    for name in OURS:
        runs = results[name]
        middle, middle_wall = (
            statistics.median(one[f"{k}_seconds"] for one in runs) for k in ("cpu", "wall")
        )
        slowest = max(one["slowest_cpu_seconds"] for one in runs)
        added = max(one["added_bytes"] for one in runs)
        print(
            f"{name}: {middle:.2f} s CPU, {cpu / middle:.0f} times faster than the reference (slowest of "
            f"{PASSES * len(runs)} passes {cpu / slowest:.0f}, by wall time {wall / middle_wall:.0f}); "
            f"added {added / 1e6:.1f} MB, {added / (count * SIZE * SIZE):.2f} bytes a pixel"
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
