"""A sanity check without any learning: local contrast as anomaly map, on labelled folders.

    python benchmarks/local_contrast.py DATA [--size 320] [--defects bsdata=pitting textile=local]

The map is the absolute difference of two Gaussians of the grey picture (sigma and 1.6 sigma), at three scales, smoothed
by the scale; the image score is the mean of the largest hundredth of the map. "Best of three" is chosen on the very
labels that are reported, for each figure by itself, so it flatters the baseline. A model that does not beat it has
learned nothing. Each folder below DATA is one dataset; maps meet masks at SIZE x SIZE.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from blemish.data.layouts import open_dataset
from blemish.data.samples import load_mask, load_pixels
from blemish.data.transforms import preprocess
from blemish.metrics import ClassMetrics

SCALES = (1.0, 2.0, 4.0)
FIGURES = ("image_auroc", "pixel_auroc", "pixel_aupro")


def contrast(grey: np.ndarray, sigma: float) -> np.ndarray:
    """float32 (S, S) -> float32 (S, S): smoothed absolute difference of Gaussians."""
    difference = ndimage.gaussian_filter(grey, sigma) - ndimage.gaussian_filter(grey, 1.6 * sigma)
    return np.asarray(ndimage.gaussian_filter(np.abs(difference), 2 * sigma), dtype=np.float32)


def measure(root: Path, size: int, defect: str | None) -> tuple[int, dict[str, float]]:
    """Number of pictures, and the best figure of the three scales. defect: of the anomalous pictures only this kind."""
    dataset = open_dataset(root)
    if defect is not None:
        dataset = dataset.of_defects([defect])
    metrics = [ClassMetrics() for _ in SCALES]
    for sample in dataset.samples:
        pixels = load_pixels(sample)
        grey = preprocess(pixels, size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).mean(axis=0)
        mask = load_mask(sample, pixels.shape[:2])
        if mask is not None:
            rows, columns = (np.arange(size) * side // size for side in mask.shape)
            mask = mask[rows[:, None], columns[None]] > 0
        for one, sigma in zip(metrics, SCALES, strict=True):
            found = contrast(grey, sigma)
            score = float(np.sort(found.ravel())[-size * size // 100 :].mean())
            one.update(int(sample.label or 0), score, found if mask is not None else None, mask)
    computed = [one.compute() for one in metrics]
    best = {name: max(float(values[name]) for values in computed if name in values) for name in FIGURES
            if any(name in values for values in computed)}  # fmt: skip
    return len(dataset.samples), best


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument(
        "--defects", nargs="*", default=[], help="SET=KIND: of a set only this kind of defect"
    )
    given = parser.parse_args()
    defects = dict(text.split("=", 1) for text in given.defects)
    print("| set | pictures | image AUROC | pixel AUROC | AUPRO |\n|---|---|---|---|---|")
    for root in sorted(p for p in given.data.iterdir() if p.is_dir()):
        count, best = measure(root, given.size, defects.get(root.name))
        row = " | ".join(f"{best.get(name, float('nan')):.3f}" for name in FIGURES)
        print(f"| {root.name} | {count} | {row} |", flush=True)


if __name__ == "__main__":
    main()
