"""Images a second of `blemish predict --engine ray` on this machine, and what the engine adds to each image.

    python benchmarks/scale.py [--images 192] [--workers 1 2] [--side 640]

Drawn PNG pictures, the embedded model, one CPU thread a worker, no pictures saved. The rate is taken from the first
unit that is reported to the last, so it has neither the start of Ray nor the loading of models, which are given apart.
The engine alone is measured with workers that look at no picture but write their parts all the same.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blemish
from blemish.data.images import find_images
from blemish.run import scale
from blemish.run.predict import predict_folder
from blemish.run.scale import Crew, predict_at_scale
from blemish.run.scale_ray import cluster
from blemish.run.scale_worker import PredictWorker, Unit


class Blind(PredictWorker):
    """Writes parts without looking at pictures."""

    def _records(self, unit: Unit, folder: Path) -> Iterator[dict[str, Any]]:
        for item in unit.items:
            yield {
                **{"path": item.name, "score": 0.5, "threshold": 0.5, "is_anomalous": True, "width": 640},
                **{"height": 640, "map_max": 0.5, "regions": [], "files": {}, "seconds": 0.01},
            }


class Clock:
    """When how many images were done."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.marks: list[tuple[float, int]] = []

    def __call__(self, done: int, total: int, error: str | None) -> None:
        if done and (not self.marks or done > self.marks[-1][1]):
            self.marks.append((time.perf_counter() - self.started, done))

    @property
    def seconds_an_image(self) -> float:
        """From the first report to the last."""
        (first, few), (last, all_) = self.marks[0], self.marks[-1]
        return (last - first) / (all_ - few)


def main() -> None:
    """Print a line per engine and number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--side", type=int, default=640, help="of the pictures, in pixels")
    parser.add_argument("--blind", type=int, default=20_000, help="images of the run without a network")
    given = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, embedded model, PNG of {given.side} pixels a side")
    with tempfile.TemporaryDirectory(prefix="blemish-") as name:
        folder = Path(name)
        draw(folder / "in", given.images, given.side)
        local, busy = measure_local(folder)
        print(
            f"local engine, 1 thread: {1 / local:.1f} images/s, {1 / busy:.1f} images a second of a core's time "
            f"({busy * 1000:.1f} ms an image)"
        )
        for workers in given.workers:
            measure_ray(folder, workers, local)
        measure_blind(folder, given.blind)


def draw(folder: Path, count: int, side: int) -> None:
    """Smooth noise: as large as photographs once packed."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:06}.png")


def measure_local(folder: Path) -> tuple[float, float]:
    """Seconds an image of the local engine, without loading: that pass, and of a core's time.

    The second does not depend on what else runs on the machine, but has decoding, the network and writing in it.
    """
    clock, detector = Clock(), blemish.load(threads=1)
    refs, busy = find_images([str(folder / "in")]), time.process_time()
    predict_folder(detector, refs, folder / "local", save=(), on_progress=clock)
    return clock.seconds_an_image, (time.process_time() - busy) / len(refs)


def measure_ray(folder: Path, workers: int, local: float) -> None:
    """Start, rate and cost beyond the local engine's of a run with so many workers."""
    begun = time.perf_counter()
    with cluster(None, workers, 1):
        started, clock = time.perf_counter() - begun, Clock()
        out = folder / f"ray{workers}"
        predict_at_scale([str(folder / "in")], str(out), {"threads": 1}, Crew(workers), on_progress=clock)
    each = clock.seconds_an_image
    print(
        f"ray, {workers} worker{'s' if workers > 1 else ''} of 1 thread: {1 / each:.1f} images/s, "
        f"{1 / each * local:.2f} times the local rate; Ray starts in {started:.1f} s, "
        f"the first unit is there after {clock.marks[0][0]:.1f} s more"
    )


def measure_blind(folder: Path, count: int) -> None:
    """What the engine takes for each image without any network."""
    picture = next((folder / "in").iterdir())
    (folder / "links").mkdir()
    for number in range(count):
        (folder / "links" / f"{number:07}.png").symlink_to(picture)
    seeing, scale.PredictWorker = scale.PredictWorker, Blind  # type: ignore[misc]
    clock = Clock()
    try:
        with cluster(None, 1, 1):
            predict_at_scale([str(folder / "links")], str(folder / "blind"), {}, Crew(1), on_progress=clock)
    finally:
        scale.PredictWorker = seeing  # type: ignore[misc]
    parts = list((folder / "blind/results").iterdir())
    size = sum(path.stat().st_size for path in parts)
    print(
        f"engine alone, {count} images in {len(parts)} parts of {size / count:.0f} bytes an image: "
        f"{clock.seconds_an_image * 1000:.3f} ms an image in units, {clock.marks[-1][0] / count * 1000:.3f} with "
        f"all that is done once (listing, starting a worker)"
    )


if __name__ == "__main__":
    main()
