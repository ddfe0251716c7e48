"""Measure several methods on one labelled dataset, in one pass over its pictures.

python examples/compare_methods.py [DATASET] [OUT]

Without DATASET a small one is drawn: enough to see the table, far too small to tell which method is better.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from blemish.cli import main as command
from blemish.synth import HELD_OUT, write_dataset

METHODS = ("anomaly_clip", "vcp_clip", "clip")
COLUMNS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_aupro")


def main(dataset: Path | None = None, out: Path = Path("comparison"), *, count: int = 24) -> None:
    """Print the means over classes of each method, from the file that `blemish evaluate` writes."""
    if dataset is None:
        dataset = write_dataset(out / "drawn", count, seed=7, size=160, families=HELD_OUT)
    results, methods = out / "results", ",".join(METHODS)
    status = command(
        ["evaluate", f"--data={dataset}", f"--method={methods}", f"--out={results}", "--overwrite", "--quiet"]
    )
    if status:
        sys.exit(status)
    found = json.loads((results / "results.json").read_text(encoding="utf-8"))
    print(f"{'':<16}" + "".join(f"{name:>14}" for name in COLUMNS))
    for method in found["methods"]:
        values = [method["mean"][name]["value"] for name in COLUMNS]
        print(f"{method['label']:<16}" + "".join(f"{'n/a' if v is None else f'{v:.3f}':>14}" for v in values))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
