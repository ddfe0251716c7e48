"""The golden metric cases, and small helpers to run them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from blemish.metrics import ClassMetrics, MetricOptions, Value
from golden_data import folder
from packed import unpack

EXPECTED: dict[str, Any] = json.loads((folder("metrics") / "expected.json").read_text(encoding="utf-8"))
CASES: dict[str, Any] = EXPECTED["cases"]
REFUSED = [name for name, case in CASES.items() if "error" in case]
COMPARED = [name for name in CASES if name not in REFUSED]


def tolerance(metric: str) -> float:
    return float(EXPECTED["tolerance"].get(metric, EXPECTED["tolerance"]["default"]))


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    packed = folder("metrics") / f"{name}.packed"
    if packed.is_file():
        return unpack(packed.read_bytes())
    with np.load(packed.with_suffix(".npz")) as file:
        return {key: file[key] for key in file.files}


def images(name: str) -> list[dict[str, Any]]:
    """Arguments of `ClassMetrics.update`, one dictionary per image."""
    found = arrays(name)
    maps = found.get("maps", [v for k, v in sorted(found.items()) if k.startswith("map_")])
    masks = found.get("masks", [v for k, v in sorted(found.items()) if k.startswith("mask_")])
    scores, labels = found.get("image_scores", []), found.get("image_labels", [])
    count = max(len(maps), len(scores))
    return [
        {
            "anomaly_map": maps[i] if len(maps) else None,
            "mask": masks[i] if len(maps) else None,
            "score": scores[i] if len(scores) else None,
            "label": int(labels[i]) if len(scores) else None,
        }
        for i in range(count)
    ]


def gather(name: str, options: MetricOptions, order: Iterator[int] | None = None) -> ClassMetrics:
    """A state of the whole case."""
    metrics, all_images = ClassMetrics(options), images(name)
    for i in order if order is not None else range(len(all_images)):
        metrics.update(**all_images[i])
    return metrics


def all_values(name: str, mode: str) -> dict[str, Value]:
    """Every compared metric of a case under its golden name."""
    options = MetricOptions(mode=mode)
    metrics = gather(name, options)
    four = gather(name, replace(options, connectivity=4))
    values = metrics.compute()
    limits = metrics.pixels.aupro([0.05, 1.0])
    return values | {
        "pixel_iou_strict": metrics.compute(replace(options, strict_iou=True))["pixel_iou"],
        "pixel_aupro_fpr005": limits[0.05],
        "pixel_aupro_fpr1": limits[1.0],
        "pixel_aupro_conn4": four.compute()["pixel_aupro"],
        "pixel_aupro_official_float32": values["pixel_aupro"],
        "pixel_aupro_anomalyclip": metrics.compute(replace(options, protocol="anomalyclip"))["pixel_aupro"],
    }


def counts(name: str) -> dict[str, int]:
    """What the library read, under the golden names."""
    metrics = gather(name, MetricOptions())
    anomalous, normal = metrics.images.counts
    pixels_anomalous, pixels_normal = metrics.pixels.counts
    return {
        "n_images_anomalous": anomalous,
        "n_images_normal": normal,
        "n_pixels_anomalous": pixels_anomalous,
        "n_pixels_normal": pixels_normal,
        "n_regions": metrics.pixels.regions,
        "n_regions_conn4": gather(name, MetricOptions(connectivity=4)).pixels.regions,
    }
