"""Score every picture of a folder, most anomalous first, and keep the masks.

python examples/score_a_folder.py [FOLDER] [OUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import blemish

HERE = Path(__file__).parent
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def main(folder: Path = HERE, out: Path = Path("masks")) -> None:
    """Print a line for each picture of `folder` and write its mask, white on black, into `out`."""
    pictures = sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS)
    detector = blemish.load()  # the embedded backbone and checkpoint: no network
    results = sorted(detector.predict_many(pictures), key=lambda r: r.score, reverse=True)
    out.mkdir(parents=True, exist_ok=True)
    for result in results:
        word = "anomalous" if result.is_anomalous else "normal"
        print(f"{result.score:.3f} {word:<9} {len(result.regions):3} regions  {result.path}")
        if result.mask is not None:
            name = Path(str(result.path)).stem + "_mask.png"
            Image.fromarray(result.mask.astype("uint8") * 255).save(out / name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
