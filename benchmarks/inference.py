"""Seconds an image of the papers' methods on ViT-L-14-336 (random weights), beside the image tower alone.

    python benchmarks/inference.py [--methods M ...] [--batches 1 8] [--precisions fp32 bf16] [--json FILE]

Every method, batch size and precision runs in a process of its own. In it the method and the plain tower (the same
activation and position resizing, last tokens and class feature) take turns, after a pass of one image each that does
not count. Printed are medians over the rounds: seconds an image of both, their ratio, the share of the machine's
matrix-multiply peak (products of the model's own shapes in the same precision, timed in the same run) that tower and
method reach, and the peak memory of the process. A method's own arithmetic beyond the towers' blocks is not counted,
so its share is a lower bound. Then, for each method, how far bf16 is from fp32 on the same weights and drawn pictures:
largest difference of scores and smallest correlation of maps; with the random weights and fresh learned parts, whose
maps are nearly constant, with the same after `--epochs` of learning from 16 generated pictures, and with the trained
weights of `tiny`. With `--json`, what the file has is not measured again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import blemish
from blemish.clip.cache import FeatureCache
from blemish.clip.config import VisionConfig
from blemish.clip.layers import resolve_layers
from blemish.clip.model import CLIP
from blemish.clip.packed import Linear, pack
from blemish.data.transforms import preprocess
from blemish.deploy.parity import drawn_samples
from blemish.detector import Detector, Setup
from blemish.device import peak_memory_mib
from blemish.methods import build
from blemish.run.batches import Batches
from blemish.run.processes import Processes
from blemish.types import FeatureSpec
from timing import (
    BLOCKS,
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
from train_epoch import PAPERS, epoch, generated

LEARNED_FROM, LEARNED_AT_ONCE = 16, 4  # pictures, and those of a step
# Largest ratio of a method to the plain tower.
BARS = {"anomaly_clip": 1.40}
BAR = 1.15


def tower_flops(vision: VisionConfig, spec: FeatureSpec, size: int) -> float:
    """Multiplications and additions of one image's pass through the tower, each counted; products alone."""
    width, patches = vision.width, (size // vision.patch_size) ** 2
    tokens = patches + 1
    square = 2.0 * tokens * width * width
    attention = 4.0 * tokens * tokens * width
    feed_forward = 4.0 * tokens * width * vision.mlp_width
    total = 2.0 * patches * 3 * vision.patch_size**2 * width
    total += vision.layers * (4 * square + attention + feed_forward)
    if "qk" not in spec.streams:  # of the last block only the class row
        total -= square + attention + feed_forward
    parallel = [name for name in spec.streams if name != "qk"]
    start = resolve_layers([spec.stream_start], vision.layers)[0]
    return total + len(parallel) * (vision.layers - start + 1) * (square + attention)


def gemm_peak(vision: VisionConfig, tokens: int, dtype: torch.dtype, repeats: int) -> float:
    """Floating-point operations a second of the block's four products, together: medians, the faster of two kinds.

    Plain weights, and packed ones as detectors have them.
    """
    width, hidden = vision.width, vision.mlp_width
    shapes = [(width, 3 * width), (width, width), (width, hidden), (hidden, width)]
    layers = [Linear(*shape).to(dtype).requires_grad_(False) for shape in shapes]
    inputs = [torch.randn(tokens, rows).to(dtype) for rows, _ in shapes]

    def block() -> None:
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    found = alternating({"plain": block}, max(5, repeats))
    for layer in layers:
        pack(layer)
    found |= alternating({"packed": block}, max(5, repeats))
    flops = sum(2.0 * tokens * rows * columns for rows, columns in shapes)
    return flops / min(statistics.median(times) for times in found.values())


def detector_of(clip: CLIP, name: str, size: int) -> Detector:
    """A detector as `blemish.load` makes it, with fresh learned parts."""
    torch.manual_seed(1)
    method = build(name, clip).eval().requires_grad_(False)
    return Detector(clip, method, Setup(name, "ViT-L-14-336 (random)", size))


@torch.inference_mode()
def measure(job: dict[str, Any]) -> dict[str, Any]:
    """One row: a method, a batch size, a precision."""
    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, TYPES[job["precision"]])
    clip = random_clip(dtype, job["blocks"])
    detector = detector_of(clip, job["method"], job["size"])
    vision, needs = clip.config.vision, detector.method.needs
    plain = FeatureSpec(activation=needs.activation, position_resize=needs.position_resize)
    inputs = np.random.default_rng(0).standard_normal((job["batch"], 3, job["size"], job["size"]))
    inputs = inputs.astype(np.float32)
    images = torch.from_numpy(inputs)
    runs = {
        "method": lambda: detector._forward(inputs),
        "tower": lambda: clip.encode_image(images, plain),
    }
    detector._forward(inputs[:1])
    clip.encode_image(images[:1], plain)
    taken = alternating(runs, job["repeats"], warm=True)
    found = {name: [s / job["batch"] for s in times] for name, times in taken.items()}
    # Before the products below, which need memory of their own.
    memory = peak_memory_mib(clip.device)
    tokens = job["batch"] * ((job["size"] // vision.patch_size) ** 2 + 1)
    peak = gemm_peak(vision, tokens, dtype, job["repeats"])
    middle = {name: statistics.median(times) for name, times in found.items()}
    return {
        "method_s": spread(found["method"]),
        "tower_s": spread(found["tower"]),
        "ratio": statistics.median(m / t for m, t in zip(found["method"], found["tower"], strict=True)),
        "bar": BARS.get(job["method"], BAR),
        "gemm_gflops": peak / 1e9,
        "tower_share": tower_flops(vision, plain, job["size"]) / middle["tower"] / peak,
        "method_share": tower_flops(vision, needs, job["size"]) / middle["method"] / peak,
        "peak_mib": memory,
        "conditions": conditions(job["threads"], job["precision"]),
    }


def learn(detector: Detector, epochs: int) -> None:
    """Train the learned parts on cached features of generated pictures, so that its maps tell places apart."""
    method, clip, size = detector.method, detector.clip, detector.setup.image_size
    assert isinstance(method, torch.nn.Module)
    method.requires_grad_(True).train()
    with tempfile.TemporaryDirectory() as folder:
        data = generated(Path(folder), clip, LEARNED_FROM, size)
        cache = FeatureCache(Path(folder) / "cache", clip, method.needs, size)
        batches = Batches(data, clip, method.needs, LEARNED_AT_ONCE, Processes(), cache=cache)
        batches.fill_cache()
        optimiser = torch.optim.Adam(method.parameter_groups())
        for _ in range(epochs):
            epoch(method, batches, optimiser)
    method.eval().requires_grad_(False)


def compare(job: dict[str, Any]) -> dict[str, Any]:
    """How far a method in bf16 is from itself in fp32."""
    torch.set_num_threads(job["threads"])
    if job["backbone"] == "tiny":
        exact = blemish.load(job["method"], device="cpu", precision="fp32")
    else:
        exact = detector_of(random_clip(torch.float32, job["blocks"]), job["method"], job["size"])
        if job["epochs"]:
            learn(exact, job["epochs"])
    clip, side = exact.clip, exact.setup.image_size
    drawn = drawn_samples(job["images"]).images
    pictures = [preprocess(p, side, clip.config.mean, clip.config.std) for p in drawn]
    before = [exact._forward(p[None]) for p in pictures]
    if job["backbone"] == "tiny":
        rough = blemish.load(job["method"], device="cpu", precision="bf16")
    else:
        rough = Detector(clip.to(torch.bfloat16), exact.method, exact.setup)
        # Kept text features are those of the other precision.
        rough.method.eval()  # type: ignore[attr-defined]
    after = [rough._forward(p[None]) for p in pictures]
    pairs = list(zip(before, after, strict=True))
    correlations = [np.corrcoef(a[0].ravel(), b[0].ravel())[0, 1] for a, b in pairs]
    return {
        "images": len(pictures),
        "score_difference": float(max(abs(a[1][0] - b[1][0]) for a, b in pairs)),
        "map_difference": float(max(np.abs(a[0] - b[0]).max() for a, b in pairs)),
        "map_correlation": float(min(correlations)),
        "conditions": conditions(job["threads"], "bf16"),
    }


def arguments() -> argparse.Namespace:
    """The options."""
    parser = model_options(__doc__)
    parser.add_argument("--methods", nargs="+", choices=PAPERS, default=list(PAPERS))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--precisions", nargs="+", choices=list(TYPES), default=list(TYPES))
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--images", type=int, default=4, help="pictures of the comparison; 0 leaves it out")
    parser.add_argument(
        "--epochs", type=int, default=25, help="of learning before another comparison; 0: none"
    )
    return parser.parse_args()


def main() -> None:
    """Print one line per row."""
    given = arguments()
    if did_job(given, lambda job: compare(job) if "images" in job else measure(job)):
        return
    heading(given.threads)
    results = Results(given.json)
    common = {"size": given.size, "threads": given.threads, "blocks": given.blocks}
    where = f"{given.size} px, {given.threads} threads"
    if given.blocks != BLOCKS:
        where += f", {given.blocks} blocks only"
    for method in given.methods:
        for batch in given.batches:
            medians = {}
            for precision in given.precisions:
                own = {"method": method, "batch": batch, "precision": precision, "repeats": given.repeats}
                row = results.get(
                    f"{method}, batch {batch}, {precision}, {where}",
                    lambda own=own: in_own_process(__file__, common | own),
                )
                medians[precision] = row["method_s"]["median"]
            if len(medians) == len(TYPES):
                ratio = medians["fp32"] / medians["bf16"]
                print(f"{method}, batch {batch}: bf16 is {ratio:.2f} times as fast as fp32", flush=True)
        if given.images and "bf16" in given.precisions:
            vit = "ViT-L-14-336"
            compared = {where: (vit, 0), f"tiny, {given.threads} threads": ("tiny", 0)}
            if given.epochs:
                compared[f"{given.epochs} epochs learned, {where}"] = (vit, given.epochs)
            for at, (backbone, epochs) in compared.items():
                own = {"method": method, "images": given.images, "backbone": backbone, "epochs": epochs}
                results.get(
                    f"{method}, bf16 against fp32, {at}",
                    lambda own=own: in_own_process(__file__, common | own),
                )


if __name__ == "__main__":
    main()
