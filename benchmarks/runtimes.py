"""Seconds an image of torch, ONNX Runtime and OpenVINO, in one run on one machine.

    python benchmarks/runtimes.py [--backbone tiny ViT-L-14-336] [--images 4] [--runs 5] [--threads 2] [--json FILE]

`ViT-L-14-336` has random weights of that shape at 518 pixels, for time alone. A run is one pass over generated
pictures, one at a time; one pass before the runs does not count. Prints the median of the runs with the fastest and the
slowest, the ratio to torch fp32, the size of each file and the largest difference of its maps from torch's. int8 is of
weights and activations, measured on the same pictures; "int8 weights" of weights alone. bf16 is left out where the
processor has no instructions for it, as it would be very slow. `--only` names the rows wanted beside torch fp32.
Exit status 1 when a row failed; the others are there all the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import blemish
from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.data.transforms import preprocess
from blemish.deploy.engines import model_files, open_engine
from blemish.deploy.export import export
from blemish.deploy.parity import drawn_samples
from blemish.detector import Detector, Setup
from blemish.errors import BlemishError
from blemish.machine import REPORTED_FLAGS, cpu_flags, cpu_name, has_fast_bf16, package_versions, system_name
from blemish.methods import build

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
TORCH, TORCH_BF16 = "torch fp32", "torch bf16"


@dataclasses.dataclass(frozen=True)
class Model:
    """A file to measure. int8: its weights. activations: these in eight bits too. precision: of OpenVINO's products."""

    label: str
    file: str
    int8: bool = False
    activations: bool = False
    precision: str = "fp32"


MODELS = (
    Model("onnxruntime fp32", "exact.onnx"),
    Model("onnxruntime int8 weights", "small.onnx", int8=True),
    Model("onnxruntime int8", "smallest.onnx", int8=True, activations=True),
    Model("openvino fp32", "exact.xml"),
    Model("openvino bf16", "exact.xml", precision="bf16"),
    Model("openvino int8 weights", "small.xml", int8=True),
    Model("openvino int8", "smallest.xml", int8=True, activations=True),
)
LABELS = (*(model.label for model in MODELS), TORCH_BF16)


@dataclasses.dataclass(frozen=True)
class Row:
    """A runtime's figures. seconds: an image, of each run. ratio: torch fp32's median by this one's.

    megabytes: of the file, None for torch. map_difference: largest from torch fp32's.
    """

    label: str
    seconds: tuple[float, ...]
    median: float
    ratio: float
    megabytes: float | None
    map_difference: float


def detector_of(backbone: str, method: str, image_size: int | None, threads: int) -> Detector:
    """The embedded detector, or random weights of the papers' backbone."""
    if backbone == "tiny":
        return blemish.load(method, device="cpu", precision="fp32", image_size=image_size, threads=threads)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig()).reset_parameters().freeze()
    clip.tokenizer = Tokenizer.clip()
    built = build(method, clip).eval().requires_grad_(False)
    return Detector(clip, built, Setup(method, "ViT-L-14-336 (random)", image_size or 518))


class Bench:
    """Measures runtimes of one detector. folder: for files."""

    def __init__(self, detector: Detector, given: argparse.Namespace, folder: Path) -> None:
        self.detector, self.given, self.folder = detector, given, folder
        config, side = detector.clip.config, detector.setup.image_size
        pictures = drawn_samples(given.images).images
        self.inputs = [preprocess(image, side, config.mean, config.std) for image in pictures]
        self.pictures = folder / "pictures"
        self.pictures.mkdir()
        for number, image in enumerate(pictures):
            Image.fromarray(image).save(self.pictures / f"{number}.png")
        self.exact: np.ndarray | None = None
        self.failed: list[str] = []
        self.base = 0.0

    def rows(self) -> Iterator[Row]:
        """torch fp32 first, torch bf16 last, since that changes the weights."""
        yield self.measure(TORCH, lambda x: self.detector._forward(x)[:2])
        for model in MODELS:
            if self.wanted(model.label):
                try:
                    yield self.of_file(model)
                except (BlemishError, RuntimeError) as error:  # the other rows are not lost
                    self.failed.append(model.label)
                    print(f"{model.label:<26}failed: {error}", flush=True)
        if self.wanted(TORCH_BF16):
            yield self.measure(TORCH_BF16, self.in_bf16())

    def wanted(self, label: str) -> bool:
        """Whether a row was asked for, and can be had."""
        chosen = self.given.only is None or label in self.given.only
        return chosen and (has_fast_bf16() or "bf16" not in label)

    def measure(self, label: str, run: Run, megabytes: float | None = None) -> Row:
        """Time `run`; the first pass, which also sets up memory, gives the maps."""
        maps = np.stack([run(pixels[None])[0][0] for pixels in self.inputs])
        seconds = []
        for _ in range(self.given.runs):
            started = time.perf_counter()
            for pixels in self.inputs:
                run(pixels[None])
            seconds.append((time.perf_counter() - started) / len(self.inputs))
        median = statistics.median(seconds)
        if self.exact is None:
            self.exact, self.base = maps, median
        difference = float(np.abs(maps - self.exact).max())
        return Row(label, tuple(seconds), median, self.base / median, megabytes, difference)

    def of_file(self, model: Model) -> Row:
        """Export where that is not done yet, and measure."""
        path = self.folder / model.file
        if not path.exists():
            export(self.detector, path, int8=model.int8, data=self.pictures if model.activations else None)
        engine = open_engine(path, precision=model.precision, threads=self.given.threads)
        size = sum(file.stat().st_size for file in model_files(path)) / 1e6
        row = self.measure(model.label, engine.run, size)
        del engine
        gc.collect()
        return row

    def in_bf16(self) -> Run:
        """The detector in bf16; its weights are changed in place."""
        own, name = self.detector.method, self.detector.setup.method
        clip = self.detector.clip.to(torch.bfloat16)
        method = build(name, clip, **dataclasses.asdict(own.config))
        method.load_state_dict(own.state_dict())  # type: ignore[attr-defined]
        halved = Detector(clip, method.to(torch.bfloat16).eval(), self.detector.setup)
        return lambda x: halved._forward(x)[:2]


def machine(threads: int) -> dict[str, Any]:
    """What was measured on."""
    flags = sorted(cpu_flags().intersection(REPORTED_FLAGS))
    known = {"system": system_name(), "cpu": cpu_name(), "cores": os.cpu_count(), "flags": flags}
    return known | {"threads": threads}


def line(row: Row) -> str:
    """A row as text."""
    size = "" if row.megabytes is None else f"{row.megabytes:.1f} MB"
    return (
        f"{row.label:<26}{row.median:>9.4f} ({min(row.seconds):.4f} to {max(row.seconds):.4f}){row.ratio:>7.2f}  "
        f"{size:>10}  {row.map_difference:.2g}"
    )


def arguments(given: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", choices=("tiny", "ViT-L-14-336"), nargs="+", default=["tiny"])
    parser.add_argument("--method", default="anomaly_clip")
    parser.add_argument("--images", type=int, default=4, help="pictures of a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--image-size", type=int, help="other than the method's, to try the script quickly")
    parser.add_argument("--only", choices=LABELS, nargs="+", metavar="ROW", help=f"of: {', '.join(LABELS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    return parser.parse_args(given)


def main() -> None:
    """Print one line per runtime."""
    given = arguments(sys.argv[1:])
    about, tables, failed = machine(given.threads), [], False
    print(f"{about['cpu'] or about['system']}, {' '.join(about['flags'])}, {given.threads} threads")
    for backbone in given.backbone:
        detector = detector_of(backbone, given.method, given.image_size, given.threads)
        size = detector.setup.image_size
        print(
            f"\n{given.method} on {detector.setup.backbone}, {size} px, {given.images} images, {given.runs} runs"
        )
        print(f"{'':<26}s an image (fastest to slowest)  ratio  file  maps differ by at most", flush=True)
        rows = []
        with tempfile.TemporaryDirectory(prefix="blemish-") as place:
            bench = Bench(detector, given, Path(place))
            for row in bench.rows():
                print(line(row), flush=True)
                rows.append(dataclasses.asdict(row))
        failed |= bool(bench.failed)
        tables.append({"backbone": detector.setup.backbone, "image_size": size, "rows": rows})
        del detector, bench
        gc.collect()
    if given.json is not None:
        known = {"benchmark": "runtimes", "method": given.method, "images": given.images, "runs": given.runs}
        values = known | {"machine": about, "versions": package_versions(), "tables": tables}
        given.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    sys.exit(failed)


if __name__ == "__main__":
    main()
