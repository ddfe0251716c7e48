"""Seconds an image of torch, ONNX Runtime and OpenVINO, in one run on one machine.

    python benchmarks/runtimes.py [--backbone tiny] [--images 4] [--repeats 3] [--threads 2] [--method anomaly_clip]

`--backbone ViT-L-14-336` takes random weights of that shape at 518 pixels, for time alone. Prints medians over the
images of all repeats, one image at a time, with the size of each file and its largest difference from torch fp32.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import blemish
from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.data.transforms import preprocess
from blemish.deploy.engines import model_files, open_engine
from blemish.deploy.export import export
from blemish.deploy.parity import drawn_samples
from blemish.detector import Detector, Setup
from blemish.methods import build

Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
# label, file, int8, precision
MODELS = (
    ("onnxruntime fp32", "exact.onnx", False, "fp32"),
    ("onnxruntime int8 weights", "small.onnx", True, "fp32"),
    ("openvino fp32", "exact.xml", False, "fp32"),
    ("openvino bf16", "exact.xml", False, "bf16"),
    ("openvino int8 weights", "small.xml", True, "fp32"),
)


def detector_of(backbone: str, method: str) -> Detector:
    """The embedded detector, or random weights of the papers' backbone."""
    if backbone == "tiny":
        return blemish.load(method, device="cpu", precision="fp32")
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig()).reset_parameters().freeze()
    clip.tokenizer = Tokenizer.clip()
    built = build(method, clip).eval().requires_grad_(False)
    return Detector(clip, built, Setup(method, "ViT-L-14-336 (random)", 518))


def measure(label: str, run: Run, inputs: Sequence[np.ndarray], repeats: int, size: str = "") -> np.ndarray:
    """Print the median seconds of `run`; returns the maps."""
    maps = [run(pixels[None])[0][0] for pixels in inputs]
    seconds = []
    for _ in range(repeats):
        for pixels in inputs:
            started = time.perf_counter()
            run(pixels[None])
            seconds.append(time.perf_counter() - started)
    print(f"{label:<26}{statistics.median(seconds):>9.4f} s an image  {size}", flush=True)
    return np.stack(maps)


def main() -> None:
    """Print one line per runtime."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", choices=("tiny", "ViT-L-14-336"), default="tiny")
    parser.add_argument("--method", default="anomaly_clip")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-bf16", action="store_true", help="torch's bf16 is very slow on some CPUs")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    detector = detector_of(given.backbone, given.method)
    config, side = detector.clip.config, detector.setup.image_size
    inputs = [
        preprocess(image, side, config.mean, config.std) for image in drawn_samples(given.images).images
    ]
    print(f"{given.method} on {detector.setup.backbone}, {side} px, {given.threads} threads")
    exact = measure("torch fp32", lambda x: detector._forward(x)[:2], inputs, given.repeats)
    with tempfile.TemporaryDirectory() as place:
        for label, name, int8, precision in MODELS:
            path = Path(place) / name
            if not path.exists():
                export(detector, path, int8=int8)
            engine = open_engine(path, precision=precision, threads=given.threads)
            size = f"{sum(file.stat().st_size for file in model_files(path)) / 1e6:.1f} MB"
            maps = measure(label, engine.run, inputs, given.repeats, size)
            print(f"{'':<26}maps differ by at most {np.abs(maps - exact).max():.2g}", flush=True)
            del engine
            gc.collect()
    if not given.without_bf16:
        clip = detector.clip.to(torch.bfloat16)
        method = build(given.method, clip, **dataclasses.asdict(detector.method.config))
        method.load_state_dict(detector.method.state_dict())  # type: ignore[attr-defined]
        halved = Detector(clip, method.to(torch.bfloat16).eval(), detector.setup)
        measure("torch bf16", lambda x: halved._forward(x)[:2], inputs, given.repeats)


if __name__ == "__main__":
    main()
