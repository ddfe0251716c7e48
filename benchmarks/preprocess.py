"""Pictures a second decoded, resized and normalised by the threads of `blemish predict`, without any network.

    python benchmarks/preprocess.py [--pictures 120] [--side 1024] [--sizes 518 320] [--cores 2] [--json FILE]

Writes drawn JPEGs (quality 90), then reads them through `Predictor.prepare` in the reader threads of `predict`, as
often as --repeats says; the first pass does not count. A GPU is kept fed from about 60 pictures a second on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.data.images import pixel_count
from blemish.pipeline import DECODERS, decoded_batches
from blemish.predictor import Outputs, Predictor, Setup
from timing import Results, alternating, conditions, heading, options, spread

BAR = 60.0
DRAWN = 12


class NoNetwork(Predictor):
    """A predictor that only prepares pictures."""

    map_range, precision, device_name, needs_class_name = (0.0, 1.0), "fp32", "cpu", False

    def machine(self) -> dict[str, Any]:
        """Nothing runs."""
        return {}

    def _forward(self, inputs: np.ndarray, attention: bool = False) -> Outputs:
        raise NotImplementedError("there is no network here")


def write_pictures(folder: Path, count: int, side: int) -> list[Path]:
    """Drawn pictures, DRAWN different ones."""
    from blemish.synth import draw

    paths = []
    for i in range(count):
        path = folder / f"{i:04}.jpg"
        if i < DRAWN:
            picture = draw(np.random.default_rng(i), side, defect=i % 2 == 1).image
            Image.fromarray(picture).save(path, quality=90)
        else:
            path.write_bytes(paths[i % DRAWN].read_bytes())
        paths.append(path)
    return paths


def read_all(predictor: Predictor, paths: Sequence[Path]) -> None:
    """Prepare every picture as `predict` does."""
    batches = decoded_batches(
        predictor.prepare, paths, 8, cost=pixel_count, is_full=lambda batch: predictor.is_full(batch, 8)
    )
    for _ in batches:
        pass


def main() -> None:
    """Print one line per network size."""
    parser = options(__doc__, threads=None)
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--side", type=int, default=1024, help="of the JPEGs, pixels")
    parser.add_argument("--sizes", type=int, nargs="+", default=[518, 320], help="of the network input")
    parser.add_argument("--cores", type=int, default=2, help="as many as the threads may use (Linux)")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    heading(None)
    results = Results(given.json)
    with tempfile.TemporaryDirectory(prefix="blemish-") as place:
        paths = write_pictures(Path(place), given.pictures, given.side)

        def measure(size: int) -> dict[str, Any]:
            predictor = NoNetwork(Setup("none", "none", size), (0.5,) * 3, (0.25,) * 3)
            times = alternating({"all": lambda: read_all(predictor, paths)}, given.repeats)["all"]
            return {
                "images_per_second": spread([len(paths) / s for s in times]),
                "bar": BAR,
                "cores": given.cores,
                "reader_threads": DECODERS,
                "conditions": conditions(None),
            }

        for size in given.sizes:
            results.get(f"{given.side} px JPEG to {size} px", lambda size=size: measure(size))


if __name__ == "__main__":
    main()
