"""A grid of photos with their overlays, for the README: made by the program itself.

python tools/picture_grid.py examples/*.jpg -o docs/images/examples.jpg
python tools/picture_grid.py SET/good/1.jpg ... --columns 6 --masks -o docs/images/tiny_grid.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

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


def ground_truth(path: Path) -> np.ndarray | None:
    """The mask of a picture SET/test/DEFECT/x.jpg of an MVTec layout, bool (H, W), where it has one."""
    mask = path.parents[2] / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
    return np.asarray(Image.open(mask).convert("L")) > 127 if mask.exists() else None


def outline(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A copy of the picture, uint8 (H, W, 3), with a magenta line around the mask."""
    edge = ndimage.binary_dilation(mask, iterations=max(2, max(mask.shape) // 150)) & ~mask
    out = image.copy()
    out[edge] = (255, 0, 255)
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--method")
    parser.add_argument("--columns", type=int, help="photos in a row; default: all")
    parser.add_argument("--masks", action="store_true", help="outline the ground truth in the photos")
    given = parser.parse_args()
    detector = blemish.load(given.method)
    columns = given.columns or len(given.images)
    height = 2 * CELL[1] + LINE
    sheet = Image.new("RGB", (CELL[0] * columns, height * -(-len(given.images) // columns)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, path in enumerate(given.images):
        left, top = i % columns * CELL[0], i // columns * height
        image = read_image(path)
        result = detector.predict(path)
        truth = ground_truth(path) if given.masks else None
        sheet.paste(cell(image if truth is None else outline(image, truth)), (left, top))
        heat = overlay(image, result.map, result.map_range, result.mask)
        sheet.paste(cell(heat), (left, top + CELL[1]))
        verdict = {True: "anomalous", False: "normal", None: ""}[result.is_anomalous]
        name = f"{path.parent.name} {path.stem}"[:26] if given.masks else path.stem
        draw.text((left + 8, top + 2 * CELL[1] + 3), f"{name}: {result.score:.2f} {verdict}", fill="black")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(given.out, quality=88)


if __name__ == "__main__":
    main()
