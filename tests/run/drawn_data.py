"""A small auxiliary dataset in MVTec's layout: noise, and noise with a bright square that is outlined."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_dataset(
    root: Path, classes: tuple[str, ...] = ("plate",), normal: int = 5, anomalous: int = 5, side: int = 48
) -> Path:
    """`classes` with so many normal and anomalous pictures each; returns `root`."""
    rng = np.random.default_rng(7)
    for name in classes:
        for i in range(normal):
            save(rng.integers(60, 120, (side, side, 3)), root / name / "test/good" / f"{i:03d}.png")
        for i in range(anomalous):
            pixels = rng.integers(60, 120, (side, side, 3))
            x, y = rng.integers(4, side - 20, 2)
            mask = np.zeros((side, side))
            mask[y : y + 14, x : x + 14] = 255
            pixels[mask > 0] = 240
            save(pixels, root / name / "test/spot" / f"{i:03d}.png")
            save(mask, root / name / "ground_truth/spot" / f"{i:03d}_mask.png")
    return root


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
