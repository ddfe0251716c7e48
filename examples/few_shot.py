"""Show a method a normal picture of the product and see what that changes.

python examples/few_shot.py [NORMAL] [PICTURE] [WHAT THEY SHOW]
"""

from __future__ import annotations

import sys
from pathlib import Path

import blemish

HERE = Path(__file__).parent


def main(
    normal: Path = HERE / "spindle_good.jpg",
    picture: Path = HERE / "spindle_pitting_1.jpg",
    *,
    class_name: str = "spindle",
    image_size: int | None = None,
) -> None:
    """Score `picture` with and without a memory of the picture or folder `normal`."""
    detector = blemish.load("win_clip", class_name=class_name, image_size=image_size)
    zero_shot = detector.predict(picture)
    detector.remember([normal] if normal.is_file() else sorted(normal.iterdir()))
    few_shot = detector.predict(picture)
    for name, result in (("zero-shot", zero_shot), ("few-shot", few_shot)):
        row, column = divmod(int(result.map.argmax()), result.map.shape[1])
        print(f"{name:<10} score {result.score:.3f}, largest map value at x {column}, y {row}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]), class_name=(sys.argv[3:] or ["spindle"])[0])
