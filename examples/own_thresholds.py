"""Set the thresholds from normal pictures of one's own product, then decide with them.

python examples/own_thresholds.py [NORMAL] [PICTURE] [OUT]

NORMAL holds normal pictures of the product and nothing else, a few dozen at least. Without it a dozen are drawn, which
shows the commands and sets no useful threshold.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import blemish
from blemish.cli import main as command
from blemish.synth import draw

HERE = Path(__file__).parent


def draw_normal(folder: Path, count: int = 12) -> Path:
    """Write generated pictures without defects into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(2)
    for i in range(count):
        Image.fromarray(draw(rng, 128, defect=False).image).save(folder / f"{i:02}.png")
    return folder


def main(
    normal: Path | None = None,
    picture: Path = HERE / "spindle_pitting_1.jpg",
    out: Path = Path("mine.safetensors"),
) -> None:
    """Write a checkpoint with thresholds for the pictures in `normal`, and judge `picture` before and after."""
    normal = normal or draw_normal(out.with_name("normal"))
    before = blemish.load().predict(picture)
    # The same as on the command line.
    rate = "--false-alarm-rate=0.1"
    status = command(["calibrate", f"--data={normal}", rate, f"--out={out}", "--overwrite"])
    if status:
        sys.exit(status)
    after = blemish.load(checkpoint=out).predict(picture)
    for name, result in (("before", before), ("after", after)):
        print(f"{name:<7} score {result.score:.3f} threshold {result.threshold:.3f}: {result.is_anomalous}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
