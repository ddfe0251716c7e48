"""Cold start and peak memory of `blemish predict one.png`, each run a program of its own.

    python benchmarks/startup.py [--only tiny ViT-L-14-336] [--repeats 5] [--stored fp16] [--json FILE]

`tiny`: from the command to its end, gallery included, and what Python, torch and the library take of it. ViT-L-14-336:
random weights in a safetensors file of OpenAI's names, a random checkpoint of `--method`, 518 px, batch 1, in bf16 and
fp32: seconds to the first score (the first line of `--json`), to the end, and the peak memory of the process (the
file's mapped pages count). The file was just written, so it comes from the system's cache, not from the disk.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from timing import (
    BLOCKS,
    TYPES,
    Results,
    conditions,
    did_job,
    heading,
    in_own_process,
    model_options,
    random_clip,
    run_and_watch,
    spread,
)

PYTHON = [sys.executable]
STAGES = {
    "python": ["-c", "pass"],
    "import blemish": ["-c", "import blemish"],
    "import torch": ["-c", "import torch"],
    "blemish --help": ["-m", "blemish", "--help"],
}


def write_picture(path: Path) -> None:
    """One drawn picture."""
    from PIL import Image

    from blemish.deploy.parity import drawn_samples

    Image.fromarray(drawn_samples(1).images[0]).save(path)


def write_model(folder: str, method: str, stored: str, blocks: int) -> dict[str, Any]:
    """clip.safetensors in the precision `stored`, and checkpoint.safetensors of fresh learned parts; nothing to report.

    In a process of its own: Linux counts the memory of a program's parent, before it starts, as its own.
    """
    import torch
    from safetensors.torch import save_file

    from blemish.clip.weights import load_clip
    from blemish.detector import Detector, Setup
    from blemish.methods import build

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[stored]
    tensors = {n: t.to(dtype) for n, t in random_clip(torch.float32, blocks).state_dict().items()}
    place = Path(folder)
    save_file(tensors, place / "clip.safetensors")
    clip = load_clip(place / "clip.safetensors")
    setup = Setup(method, "ViT-L-14-336", 518, backbone_fingerprint=clip.fingerprint)
    Detector(clip, build(method, clip).eval(), setup).save(place / "checkpoint.safetensors")
    return {}


def watch(command: list[str], repeats: int, until_line: bool = False) -> dict[str, Any]:
    """Spreads of seconds and the largest peak over `repeats` runs, after one that does not count."""
    runs = [run_and_watch(PYTHON + command, until_line) for _ in range(repeats + 1)][1:]
    names = ("first_line", "seconds") if until_line else ("seconds",)
    found: dict[str, Any] = {name: spread([run[name] for run in runs]) for name in names}
    return found | {"peak_mib": max(run["peak_mib"] for run in runs), "conditions": conditions(None)}


def main() -> None:
    """Print one line per program."""
    parser = model_options(__doc__, threads=None)
    parser.add_argument("--only", nargs="+", choices=("tiny", "ViT-L-14-336"), metavar="BACKBONE")
    parser.add_argument("--precisions", nargs="+", choices=list(TYPES), default=["bf16", "fp32"])
    parser.add_argument("--stored", choices=("fp16", "fp32", "bf16"), default="fp16", help="the file's own")
    parser.add_argument("--method", default="anomaly_clip")
    given = parser.parse_args()
    if did_job(given, lambda job: write_model(**job)):
        return
    heading(None)
    results = Results(given.json)
    backbones = given.only or ["tiny", "ViT-L-14-336"]
    with tempfile.TemporaryDirectory(prefix="blemish-") as place:
        folder = Path(place)
        write_picture(folder / "one.png")
        predict = [
            "-m",
            "blemish",
            "predict",
            str(folder / "one.png"),
            "-o",
            str(folder / "out"),
            "--overwrite",
        ]
        if "tiny" in backbones:
            for name, command in STAGES.items():
                results.get(name, lambda command=command: watch(command, given.repeats))
            results.get("predict one.png, tiny", lambda: watch([*predict, "--quiet"], given.repeats))
        if "ViT-L-14-336" in backbones:
            job = {"method": given.method, "stored": given.stored, "blocks": given.blocks}
            in_own_process(__file__, {"folder": place, **job})
            model = [str(folder / name) for name in ("clip.safetensors", "checkpoint.safetensors")]
            predict += ["--backbone", model[0], "--checkpoint", model[1], "--batch-size", "1", "--json"]
            shape = "ViT-L-14-336" if given.blocks == BLOCKS else f"{given.blocks} blocks of ViT-L-14-336"
            for precision in given.precisions:
                results.get(
                    f"predict one.png, {shape}, {given.method}, {given.stored} file in {precision}",
                    lambda precision=precision: watch(
                        [*predict, "--precision", precision], given.repeats, until_line=True
                    ),
                )


if __name__ == "__main__":
    main()
