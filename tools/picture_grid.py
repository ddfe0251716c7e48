"""A grid of photos with their overlays, for the README: made by the program itself.

python tools/picture_grid.py examples/*.jpg -o docs/images/examples.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import blemish
from blemish.data.images import read_image
from blemish.output.pictures import overlay

CELL = (256, 192)
LINE = 18


def cell(image: np.ndarray) -> Image.Image:
    """The picture shrunk into a cell, centred on white."""
    small = Image.fromarray(image)
    small.thumbnail(CELL)
    sheet = Image.new("RGB", CELL, "white")
    sheet.paste(small, ((CELL[0] - small.width) // 2, (CELL[1] - small.height) // 2))
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--method")
    given = parser.parse_args()
    detector = blemish.load(given.method)
    height = 2 * CELL[1] + LINE
    sheet = Image.new("RGB", (CELL[0] * len(given.images), height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, path in enumerate(given.images):
        image = read_image(path)
        result = detector.predict(path)
        sheet.paste(cell(image), (i * CELL[0], 0))
        heat = overlay(image, result.map, result.map_range, result.mask)
        sheet.paste(cell(heat), (i * CELL[0], CELL[1]))
        verdict = {True: "anomalous", False: "normal", None: ""}[result.is_anomalous]
        draw.text(
            (i * CELL[0] + 8, 2 * CELL[1] + 3), f"{path.stem}: {result.score:.2f} {verdict}", fill="black"
        )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.out, quality=88)


if __name__ == "__main__":
    main()
