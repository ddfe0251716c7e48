"""Learn a method on own pictures with outlined defects, on the embedded backbone, and use the result.

python examples/train_on_own_defects.py [DATASET] [RUN] [EPOCHS]

DATASET has MVTec AD's layout: <class>/test/good, <class>/test/<defect>, <class>/ground_truth/<defect>. Without it
a few pictures are drawn: enough to see how it goes, too few to learn anything useful.
"""

from __future__ import annotations

import sys
from pathlib import Path

import blemish
from blemish.cli import main as command
from blemish.synth import write_dataset


def main(dataset: Path | None = None, run: Path = Path("run"), *, epochs: int = 2) -> None:
    """Train, then score the first pictures with what was learned."""
    options = [f"--epochs={epochs}", "--cache=off"]
    if dataset is None:
        dataset = write_dataset(run.with_name(run.name + "-pictures"), 8, seed=3, size=96)
        options += ["--image-size=160", "--batch-size=4"]
    status = command(["train", "anomaly_clip", f"--data={dataset}", f"--out={run}", "--overwrite", *options])
    if status:
        sys.exit(status)
    detector = blemish.load(checkpoint=run / "checkpoint.safetensors")
    pictures = sorted(dataset.glob("*/test/*/*.png"))[:4]
    for result in detector.predict_many(pictures):
        print(f"{result.score:.3f} {'anomalous' if result.is_anomalous else 'normal':<9} {result.path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), epochs=int((sys.argv[3:] or ["2"])[0]))
