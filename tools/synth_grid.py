"""A grid of generated pictures, the masks outlined: for docs/synth.md, and for looking at one kind of them.

python tools/synth_grid.py -o docs/images/synth.jpg --seed 4 --size 112 --rows 6 --columns 10
python tools/synth_grid.py -o cracks.png --defects crack --materials concrete,road --names
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from blemish import synth

COLOUR = (255, 0, 255)


def cell(picture: synth.Picture, names: bool) -> Image.Image:
    """The picture with its mask outlined one pixel outside, and a line of text below when `names`."""
    pixels = picture.image.copy()
    grown = ndimage.binary_dilation(picture.mask, iterations=2)
    pixels[grown & ~ndimage.binary_dilation(picture.mask)] = COLOUR
    height, width = picture.mask.shape
    sheet = Image.new("RGB", (width + 2, height + (14 if names else 2)), "white")
    sheet.paste(Image.fromarray(pixels), (0, 0))
    if names:
        text = f"{picture.material} {picture.shape} {picture.defect_type or ''}"
        ImageDraw.Draw(sheet).text((1, height), text, fill="black")
    return sheet


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--columns", type=int, default=8)
    parser.add_argument("--names", action="store_true", help="name material, shape and defect")
    known = {"materials": synth.MATERIALS, "shapes": synth.SHAPES, "defects": synth.DEFECTS}
    for kind in known:
        parser.add_argument(f"--{kind}", help=f"only these {kind}, separated by commas")
    given = parser.parse_args()
    chosen = {kind: getattr(given, kind) for kind in known}
    families = synth.Families(
        **{kind: tuple(text.split(",")) if text else known[kind] for kind, text in chosen.items()}
    )
    wanted = True if given.defects else None
    cells = [
        cell(
            synth.draw(np.random.default_rng([given.seed, i]), given.size, defect=wanted, families=families),
            given.names,
        )
        for i in range(given.rows * given.columns)
    ]
    width, height = cells[0].size
    sheet = Image.new("RGB", (width * given.columns, height * given.rows), "white")
    for i, one in enumerate(cells):
        sheet.paste(one, (i % given.columns * width, i // given.columns * height))
    sheet.save(given.out, quality=80)


if __name__ == "__main__":
    main()
