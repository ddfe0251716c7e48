"""Images a second of `blemish predict --engine ray` on this machine, and what the engine adds to each image.

    python benchmarks/scale.py [--images 192] [--workers 1 2] [--runs 5] [--side 640] [--blind 20000] [--json FILE]

Drawn PNG pictures, the embedded model in fp32, one CPU thread a worker, no pictures saved. The rate is taken from the
first unit that is reported to the last, so it has neither the start of Ray nor the loading of models, which are given
apart. The engine alone is measured with workers that look at no picture but write their parts all the same. Medians of
the runs, with the slowest and the fastest in brackets. The last lines are the inputs of the plan in docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import blemish
from blemish.data.images import find_images
from blemish.machine import REPORTED_FLAGS, cpu_flags, cpu_name, package_versions, system_name
from blemish.run import scale
from blemish.run.predict import predict_folder
from blemish.run.scale import Crew, predict_at_scale
from blemish.run.scale_ray import cluster
from blemish.run.scale_worker import PredictWorker, Unit

LOADING = {"threads": 1, "device": "cpu", "precision": "fp32"}


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


@dataclass(frozen=True)
class Figure:
    """A quantity that was measured in several runs."""

    what: str
    unit: str
    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of the runs."""
        return statistics.median(self.runs)

    def __str__(self) -> str:
        spread = f" ({min(self.runs):.4g} to {max(self.runs):.4g})" if len(self.runs) > 1 else ""
        return f"{self.what:<60}{self.median:>9.4g}{spread} {self.unit}"


def figures(folder: Path, given: argparse.Namespace) -> Iterator[Figure]:
    """Everything that is measured, as it is done."""
    draw(folder / "in", given.images, given.side)
    local, busy = zip(*(measure_local(folder, run) for run in range(given.runs)), strict=True)
    yield Figure("local engine, 1 thread: rate", "images/s", tuple(1 / each for each in local))
    yield Figure("local engine: time of a core (c of the plan)", "ms an image", tuple(1000 * b for b in busy))
    rate = 1 / statistics.median(local)
    for workers in given.workers:
        start, first, each = measure_ray(folder, workers, given.runs)
        name = f"ray, {workers} worker{'s' if workers > 1 else ''} of 1 thread"
        yield Figure(f"{name}: Ray starts", "s", (start,))
        yield Figure(f"{name}: from then to the first unit", "s", first)
        yield Figure(f"{name}: rate", "images/s", tuple(1 / value for value in each))
        yield Figure(f"{name}: rate by the local one", "times", tuple(1 / value / rate for value in each))
    each, whole, size = measure_blind(folder, given.blind, given.runs)
    yield Figure("engine alone, in units (o of the plan)", "ms an image", each)
    yield Figure("engine alone, with listing and start of a worker", "ms an image", whole)
    yield Figure("a row of the results (r of the plan)", "bytes", size)


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--side", type=int, default=640, help="of the pictures, in pixels")
    parser.add_argument("--blind", type=int, default=20_000, help="images of a run without a network")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args(given)
    for name in ("images", "blind"):
        # Units are cut for eight turns of every worker: fewer pictures would be one unit, and no rate.
        if getattr(chosen, name) < 32 * max(chosen.workers):
            parser.error(f"--{name} is {getattr(chosen, name)}; expected at least {32 * max(chosen.workers)}")
    return chosen


def main() -> None:
    """Print a line per quantity."""
    given = arguments(sys.argv[1:])
    flags = sorted(cpu_flags().intersection(REPORTED_FLAGS))
    machine = {"system": system_name(), "cpu": cpu_name(), "cores": os.cpu_count(), "flags": flags}
    print(
        f"{machine['cpu'] or machine['system']}, {machine['cores']} cores, {' '.join(flags)}; embedded model, fp32, "
        f"{given.images} PNG of {given.side} pixels a side, {given.runs} runs"
    )
    rows = []
    with tempfile.TemporaryDirectory(prefix="blemish-") as name:
        for figure in figures(Path(name), given):
            print(figure, flush=True)
            rows.append(asdict(figure) | {"median": figure.median})
    if given.json is not None:
        asked = {key: value for key, value in vars(given).items() if key != "json"}
        values = {"benchmark": "scale", "asked": asked, "precision": "fp32", "threads": 1, "machine": machine}
        values |= {"versions": package_versions(), "figures": rows}
        given.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def draw(folder: Path, count: int, side: int) -> None:
    """Smooth noise: as large as photographs once packed."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:06}.png")


def measure_local(folder: Path, run: int) -> tuple[float, float]:
    """Seconds an image of the local engine, without loading: that pass, and of a core's time.

    The second does not depend on what else runs on the machine, but has decoding, the network and writing in it.
    """
    detector = blemish.load(**LOADING)  # type: ignore[call-overload]
    detector.predict(next((folder / "in").iterdir()))
    refs, clock, busy = find_images([str(folder / "in")]), Clock(), time.process_time()
    predict_folder(detector, refs, folder / f"local{run}", save=(), on_progress=clock)
    return clock.seconds_an_image, (time.process_time() - busy) / len(refs)


def measure_ray(folder: Path, workers: int, runs: int) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Seconds until Ray has started; until the first unit of each run; and an image of each run."""
    begun, first, each = time.perf_counter(), [], []
    with cluster(None, workers, 1):
        started = time.perf_counter() - begun
        for run in range(runs):
            clock, out = Clock(), folder / f"ray{workers}-{run}"
            predict_at_scale([str(folder / "in")], str(out), LOADING, Crew(workers), on_progress=clock)
            first.append(clock.marks[0][0])
            each.append(clock.seconds_an_image)
    return started, tuple(first), tuple(each)


def measure_blind(
    folder: Path, count: int, runs: int
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    """What the engine takes without any network: ms an image in units, and in all; and bytes of a row."""
    picture = next((folder / "in").iterdir())
    (folder / "links").mkdir()
    for number in range(count):
        (folder / "links" / f"{number:07}.png").symlink_to(picture)
    seeing, scale.PredictWorker = scale.PredictWorker, Blind  # type: ignore[misc]
    each, whole, size = [], [], []
    try:
        with cluster(None, 1, 1):
            for run in range(runs):
                clock, out = Clock(), folder / f"blind{run}"
                predict_at_scale([str(folder / "links")], str(out), LOADING, Crew(1), on_progress=clock)
                each.append(1000 * clock.seconds_an_image)
                whole.append(1000 * clock.marks[-1][0] / count)
                size.append(sum(part.stat().st_size for part in (out / "results").iterdir()) / count)
    finally:
        scale.PredictWorker = seeing  # type: ignore[misc]
    return tuple(each), tuple(whole), tuple(size)


if __name__ == "__main__":
    main()
