"""Image and pixel AUROC of the embedded model on folders in MVTec layout: the table of the model card.

    python benchmarks/tiny_quality.py DATA [--method anomaly_clip ...] [--image-size 320]

Every folder below DATA with test/good counts as one set; all its other test folders are anomalous. Maps are
compared at the pictures' own sizes. Ranking uses float32 keys cut to 20 bits (relative steps of 0.02 %), so that a
set needs a few megabytes whatever its size.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

import blemish

BITS = 20


def keys(values: np.ndarray) -> np.ndarray:
    """Non-negative float32 -> integers below 2**BITS in the same order."""
    return np.maximum(values, 0).astype(np.float32).view(np.uint32) >> np.uint32(32 - BITS)


def auroc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Area under the ROC curve from two histograms over the same keys; ties count half. NaN when one is empty."""
    if not positive.sum() or not negative.sum():
        return float("nan")
    below = np.cumsum(negative) - negative
    return float((positive * (below + 0.5 * negative)).sum() / positive.sum() / negative.sum())


def mask_of(path: Path, root: Path) -> np.ndarray | None:
    """bool (H, W) ground truth of an anomalous picture, or None when the set has no masks."""
    found = root / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return np.asarray(Image.open(found).convert("L")) > 127 if found.exists() else None


def evaluate(
    detector: blemish.Detector, root: Path, skip: tuple[str, ...] = ()
) -> tuple[float, float, int, float]:
    """Image AUROC, pixel AUROC (NaN without masks), number of pictures, seconds."""
    paths = sorted(p for p in (root / "test").rglob("*.*") if p.suffix.lower() in {".jpg", ".jpeg", ".png"})
    paths = [p for p in paths if p.parent.name not in skip]
    scores: dict[bool, list[float]] = {False: [], True: []}
    pixels = np.zeros((2, 1 << BITS), dtype=np.int64)
    masked = (root / "ground_truth").exists()
    started = time.perf_counter()
    for path, result in zip(paths, detector.predict_many(paths), strict=True):
        anomalous = path.parent.name != "good"
        scores[anomalous].append(result.score)
        if masked:
            mask = mask_of(path, root) if anomalous else np.zeros(result.map.shape, dtype=bool)
            if mask is None:
                continue
            cut = keys(result.map)
            pixels[1] += np.bincount(cut[mask], minlength=1 << BITS)
            pixels[0] += np.bincount(cut[~mask], minlength=1 << BITS)
    seconds = time.perf_counter() - started
    image = [np.bincount(keys(np.array(scores[s])), minlength=1 << BITS) for s in (True, False)]
    return auroc(image[0], image[1]), auroc(pixels[1], pixels[0]), len(paths), seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--method", nargs="+", default=list(blemish.methods()))
    parser.add_argument("--image-size", type=int)
    given = parser.parse_args()
    print("| method | set | pictures | image AUROC | pixel AUROC | s/picture |\n|---|---|---|---|---|---|")
    for method in given.method:
        detector = blemish.load(method, image_size=given.image_size)
        for root in sorted(p.parent.parent for p in given.data.glob("*/test/good")):
            # the source of this part of bsdata has no normal picture of its own kind
            skip = ("pitting_type1",) if root.name == "bsdata" else ()
            image, pixel, count, seconds = evaluate(detector, root, skip)
            print(
                f"| {method} | {root.name} | {count} | {image:.3f} | {pixel:.3f} | {seconds / count:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
