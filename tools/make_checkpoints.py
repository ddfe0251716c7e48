"""Make the checkpoints that travel with `tiny`, with the commands that every user has.

    python tools/make_checkpoints.py -o runs/embedded [METHOD ...]

For each method with a recipe `recipes/embedded_METHOD.toml`: `blemish train` on generated pictures, `blemish calibrate`
on further ones of families that it has not seen, then the result, in half precision, into `src/blemish/clip/tiny`.
Started again, it goes on: what is finished is kept, a run that was cut off is resumed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save

from blemish.files import write_whole

ROOT = Path(__file__).parents[1]
TINY = ROOT / "src/blemish/clip/tiny"
RECIPES = ROOT / "recipes"
# Methods that learn nothing: their options with `tiny` (`choose_default.py`) and thresholds are all that is kept.
PLAIN = {
    "clip_ac": [
        "--set",
        "temperature=0.07",
        "--set",
        "noun=object",
        "--score-rule",
        f"topk:{320 * 320 // 100}",
    ]
}
PICTURES, HELD, SIZE = 800, 400, 320
FALSE_ALARMS = 0.1


def blemish(*words: object) -> None:
    """Run the command line, or stop with its message."""
    subprocess.run([sys.executable, "-m", "blemish", *map(str, words)], check=True)


def pictures(out: Path) -> tuple[Path, Path]:
    """The auxiliary pictures and those for the thresholds, drawn once."""
    found = out / "generated", out / "held_out"
    drawn = ((found[0], PICTURES, 111, "training"), (found[1], HELD, 222, "held_out"))
    for folder, count, seed, families in drawn:
        if not (folder / "synth.json").exists():
            blemish(
                "synth",
                "-n",
                count,
                "-o",
                folder,
                "--size",
                SIZE,
                "--seed",
                seed,
                "--families",
                families,
                "-q",
            )
    return found


def train(recipe: str, data: Path, run: Path, *more: object) -> Path:
    """The checkpoint of one recipe; a run that was cut off goes on."""
    found = run / "checkpoint.safetensors"
    if not found.exists():
        resume = ["--resume"] if (run / "state.safetensors").exists() else ["--overwrite"]
        config = RECIPES / f"embedded_{recipe}.toml"
        cache = data.parent / "cache"
        blemish(
            "train", "--config", config, "--data", data, "-o", run, "--cache-dir", cache, "-q", *resume, *more
        )
    return found


def install(source: Path, target: Path) -> None:
    """Copy a checkpoint in half precision."""
    with safe_open(source, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        header = file.metadata()
    halves = {k: t.half() if t.is_floating_point() else t for k, t in tensors.items()}
    write_whole(target, save(halves, metadata=header))


def make(method: str, out: Path) -> None:
    """Train, calibrate and install one method."""
    started = time.time()
    data, held = pictures(out)
    run, more = out / method, []
    ready = run / "calibrated.safetensors"
    thresholds = [
        "calibrate",
        "--data",
        held,
        "-o",
        ready,
        "--overwrite",
        "-q",
        "--false-alarm-rate",
        FALSE_ALARMS,
    ]
    if method in PLAIN:
        blemish(*thresholds, "--method", method, *PLAIN[method])
        install(ready, TINY / f"{method}.safetensors")
        return
    if (RECIPES / f"embedded_{method}_text.toml").exists():
        more = ["--init", train(f"{method}_text", data, run / "text")]
    learned = train(method, data, run, *more)
    blemish(*thresholds, "--checkpoint", learned)
    install(ready, TINY / f"{method}.safetensors")
    print(f"{method}: {time.time() - started:.0f} s", flush=True)


def main() -> None:
    """Command line."""
    named = sorted(p.stem.removeprefix("embedded_") for p in RECIPES.glob("embedded_*.toml"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "methods", nargs="*", default=[*PLAIN, *(n for n in named if not n.endswith("_text"))]
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    for method in given.methods:
        make(method, given.out)


if __name__ == "__main__":
    main()
