"""Seconds an image of a whole method on ViT-L-14-336 (random weights) at 518 px, per precision.

    python benchmarks/encoder_speed.py [--method anomaly_clip] [--precision fp32 bf16] [--repeats 3] [--threads 2]

Prints medians. On processors without bf16 instructions bf16 is emulated and slow, which is why `--precision auto`
does not choose it there.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch

from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.methods import build

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main() -> None:
    """Print one line per precision."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="anomaly_clip")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=518)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig()).reset_parameters().freeze()
    clip.tokenizer = Tokenizer.clip()
    images = torch.randn(1, 3, given.size, given.size)
    for precision in given.precision:
        clip = clip.to(TYPES[precision])
        method = build(given.method, clip).to(TYPES[precision]).eval()
        times = []
        with torch.inference_mode():
            for _ in range(given.repeats + 1):
                started = time.perf_counter()
                method(clip.encode_image(images, method.needs))
                times.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{given.method} ViT-L-14-336 {given.size} px {precision}: {statistics.median(times[1:]):.2f} s an image "
            f"(median of {given.repeats}, first {times[0]:.2f} s), {given.threads} threads, "
            f"{torch.backends.cpu.get_cpu_capability()}, peak so far {peak:.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
