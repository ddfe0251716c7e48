"""Generated pictures as a dataset in MVTec's folder layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from blemish.files import write_whole
from blemish.synth.draw import draw
from blemish.synth.families import SURFACE, Families


def write_dataset(
    out: Path, count: int, seed: int, size: int = 224, *, families: Families | None = None
) -> Path:
    """Write `count` pictures as `<class>/test/good`, `<class>/test/<defect>` and `<class>/ground_truth/<defect>`.

    Classes are the shapes of objects and, for full-frame surfaces, the materials. Masks are 8-bit PNG, 0 and 255,
    named `<stem>_mask.png`. Picture i depends on seed and i only, so a run can be repeated or extended.
    Returns `out`. Raises ValueError for a count below 1 or a size below 64.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one picture")
    out = Path(out)
    for index in range(count):
        picture = draw(np.random.default_rng([seed, index]), size, families=families)
        group = picture.material if picture.shape == SURFACE else picture.shape
        kind = picture.defect_type or "good"
        stem = f"{index:06d}"
        _save(picture.image, out / group / "test" / kind / f"{stem}.png")
        if picture.defect_type is not None:
            mask = picture.mask.astype(np.uint8) * 255
            _save(mask, out / group / "ground_truth" / kind / f"{stem}_mask.png")
    return out


def _save(pixels: np.ndarray, path: Path) -> None:
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, "PNG"))
