"""Share of upsampling, softmax and smoothing of maps in the time of one image, for each of the papers' methods.

    python benchmarks/maps.py [--methods M ...] [--backbones ViT-L-14-336 tiny] [--precision bf16] [--json FILE]

ViT-L-14-336 has random weights, at 518 px in `--precision`: bf16 by default, where everything else is fastest and the
share therefore largest; `tiny` is the embedded model in fp32 at its own size. The functions of `blemish.parts.maps` are
timed where methods call them, in the same pass as the whole. Every row is a process of its own, and its figures are
medians over the rounds, after one that does not count. With `--json`, what the file has is not measured again.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import blemish
from blemish.detector import Detector, Setup
from blemish.methods import build
from blemish.parts import maps
from inference import PAPERS
from timing import (
    TYPES,
    Results,
    alternating,
    conditions,
    did_job,
    heading,
    in_own_process,
    model_options,
    random_clip,
    spread,
)

BAR = 0.05
TIMED = (
    "upsample",
    "softmax_then_upsample",
    "upsample_then_softmax",
    "upsample_then_probability",
    "gaussian_blur",
)


class Stopwatch:
    """Seconds spent in functions of `blemish.parts.maps`; in those that call each other, once."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        @functools.wraps(function)
        def timed(*given: Any, **named: Any) -> Any:
            started = time.perf_counter()
            self._depth += 1
            try:
                return function(*given, **named)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - started

        return timed

    def install(self) -> int:
        """Put timed functions wherever a module of the library has one of `TIMED`; how many places."""
        places = 0
        own = {name: getattr(maps, name) for name in TIMED}
        modules = [module for name, module in sys.modules.items() if name.startswith("blemish.")]
        for name, function in own.items():
            timed = self.around(function)
            for module in modules:
                if getattr(module, name, None) is function:
                    setattr(module, name, timed)
                    places += 1
        return places


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One row: a method on a backbone."""
    torch.set_num_threads(job["threads"])
    if job["backbone"] == "tiny":
        detector = blemish.load(job["method"], device="cpu", precision="fp32")
    else:
        clip = random_clip(getattr(torch, TYPES[job["precision"]]), job["blocks"])
        method = build(job["method"], clip).eval().requires_grad_(False)
        detector = Detector(clip, method, Setup(job["method"], "random", 518))
    watch = Stopwatch()
    watch.install()
    side = detector.setup.image_size
    inputs = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    parts: list[float] = []

    def once() -> None:
        watch.seconds = 0.0
        detector._forward(inputs)
        parts.append(watch.seconds)

    whole = alternating({"all": once}, job["repeats"])["all"]
    shares = [part / total for part, total in zip(parts[1:], whole, strict=True)]
    if not min(parts) > 0:
        raise RuntimeError(f"{job['method']} called none of {', '.join(TIMED)}; their names have changed")
    return {
        "seconds": spread(whole),
        "maps_s": spread(parts[1:]),
        "share": statistics.median(shares),
        "bar": BAR,
        "conditions": conditions(job["threads"], detector.precision),
    }


def main() -> None:
    """Print one line per row."""
    parser = model_options(__doc__)
    parser.add_argument("--methods", nargs="+", choices=PAPERS, default=list(PAPERS))
    parser.add_argument(
        "--backbones", nargs="+", choices=("ViT-L-14-336", "tiny"), default=["ViT-L-14-336", "tiny"]
    )
    parser.add_argument("--precision", choices=list(TYPES), default="bf16", help="of ViT-L-14-336")
    given = parser.parse_args()
    if did_job(given, measure):
        return
    heading(given.threads)
    results = Results(given.json)
    common = {"threads": given.threads, "repeats": given.repeats, "blocks": given.blocks}
    for backbone in given.backbones:
        precision = "fp32" if backbone == "tiny" else given.precision
        for method in given.methods:
            job = common | {"method": method, "backbone": backbone, "precision": precision}
            key = f"{method}, {backbone}, {precision}, {given.threads} threads, {given.blocks} blocks"
            results.get(key, lambda job=job: in_own_process(__file__, job))


if __name__ == "__main__":
    main()
