"""One training epoch of each method on ViT-L-14-336 (random weights) over 16 images at 518 px, uncached and cached.

    python benchmarks/train_epoch.py [METHOD ...] [--images N] [--size S] [--threads T] [--repeats R] [--skip-uncached]

Every method runs in a process of its own, so that its peak memory is its own. Printed are the seconds of one whole
uncached epoch, of the filling of the cache, and of a cached epoch (median), their ratio, and the cached step's
seconds an image. Batch and optimiser are the method's recipe, without augmentation.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from blemish import synth
from blemish.clip.cache import FeatureCache
from blemish.clip.config import CLIPConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer
from blemish.data.augment import AUGMENTATIONS
from blemish.data.auxiliary import Auxiliary
from blemish.data.layouts import open_dataset
from blemish.methods import build, method_class
from blemish.run.batches import Batches
from blemish.run.processes import Processes
from blemish.run.train import loss_terms

PAPERS = ["anomaly_clip", "vcp_clip", "vcp_clip_plus", "vip2_clip", "gen_clip"]


def epoch(method: torch.nn.Module, batches: Batches, optimiser: torch.optim.Optimizer) -> float:
    """Seconds of one pass over the pictures, with losses, gradients and steps."""
    started = time.perf_counter()
    for batch in batches.epoch(0):
        assert batch is not None
        optimiser.zero_grad()
        torch.stack(list(loss_terms(method, batch).values())).sum().backward()
        optimiser.step()
    return time.perf_counter() - started


def generated(folder: Path, clip: CLIP, images: int, size: int) -> Auxiliary:
    """Generated pictures with masks as training data at `size` pixels, without augmentation."""
    root = synth.write_dataset(folder / "data", images, seed=1, size=700)
    return Auxiliary(
        samples=open_dataset(root).samples,
        size=size,
        map_size=size,
        mean=clip.config.mean,
        std=clip.config.std,
        augmentation=AUGMENTATIONS["none"],
    )


def measure(name: str, given: argparse.Namespace) -> None:
    """Print one method's line."""
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    clip = CLIP(CLIPConfig()).reset_parameters().freeze()
    clip.tokenizer = Tokenizer.clip()
    method = build(name, clip).train()
    with tempfile.TemporaryDirectory() as folder:
        data = generated(Path(folder), clip, given.images, given.size)
        size = min(method_class(name).recipe["batch_size"], given.images)
        optimiser = torch.optim.Adam(method.parameter_groups())
        uncached = np.nan
        if not given.skip_uncached:
            uncached = epoch(method, Batches(data, clip, method.needs, size, Processes()), optimiser)
        cache = FeatureCache(Path(folder) / "cache", clip, method.needs, given.size)
        batches = Batches(data, clip, method.needs, size, Processes(), cache=cache)
        started = time.perf_counter()
        batches.fill_cache()
        filling = time.perf_counter() - started
        times = [epoch(method, batches, optimiser) for _ in range(given.repeats)]
    cached = statistics.median(times)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}: uncached {uncached:.1f} s, filling {filling:.1f} s, cached {cached:.2f} s "
        f"(median of {given.repeats}), ratio {uncached / cached:.1f}, {cached / given.images:.2f} s an image; "
        f"batch {size}, peak {peak:.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=PAPERS)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-uncached", action="store_true")
    given = parser.parse_args()
    if len(given.methods) == 1:
        measure(given.methods[0], given)
        return
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"{given.images} images of {given.size} px, fp32, {given.threads} threads, {capability}", flush=True
    )
    options = [f"--{key}={getattr(given, key)}" for key in ("images", "size", "threads", "repeats")]
    options += ["--skip-uncached"] * given.skip_uncached
    for name in given.methods:
        subprocess.run([sys.executable, __file__, name, *options], check=True)


if __name__ == "__main__":
    main()
