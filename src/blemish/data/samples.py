"""A `Sample` of a dataset -> its pixels and its mask, whatever kind of file the mask is stored in."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from blemish.data.images import read_image
from blemish.data.transforms import resize_mask
from blemish.errors import BadImage
from blemish.files import printable_name
from blemish.types import Sample

T = TypeVar("T")
DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


class MaskDoesNotFit(BadImage):
    """A mask whose size is not its picture's."""


_RULE = re.compile(r"(>|==)(\d+)")


def spread(samples: Sequence[T], limit: int | None) -> Sequence[T]:
    """At most `limit` of the samples, evenly from the list, so that the kinds of images in it stay mixed; None: all."""
    if limit is None or len(samples) <= limit:
        return samples
    middles = (np.arange(limit) + 0.5) * (len(samples) / limit)
    return [samples[int(i)] for i in middles]


def load_pixels(sample: Sample) -> np.ndarray:
    """The picture of a sample, cut to `sample.box`.

    Returns uint8 (H, W, 3), RGB. Raises BadImage, one line `name: cause`, also when the box leaves the picture.
    """
    pixels = read_image(sample.image)
    if sample.box is None:
        return pixels
    return np.ascontiguousarray(_cut(pixels, sample.box, sample.image))


def load_mask(sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """The outline of a sample's anomaly.

    size: (H, W) of the picture as `load_pixels` returns it, that is, after cutting.

    Returns uint8 (H, W) of 0 and 255: zeros for normal samples, and None where nobody knows (no mask file and
    not normal). `sample.mask` may be a picture of any kind, CrackForest's `.mat`, a labelme `.json` or a Pascal
    VOC `.xml` (its boxes); `sample.mask_rule` says which stored values count. A mask of another size is resized
    when its aspect ratio is the picture's. Raises BadImage for a file that cannot be read, and for a mask that
    does not fit, with both sizes.
    """
    if sample.label == 0:
        return np.zeros(size, dtype=np.uint8)
    if sample.mask is None:
        return None
    return fit_mask(read_mask_values(sample.mask), sample, size)


def fit_mask(values: np.ndarray, sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """The stored values (H, W) of `sample.mask` -> uint8 0 and 255 of the given (H, W); see `load_mask`."""
    assert sample.mask is not None
    mask = apply_rule(values, sample.mask_rule)
    if sample.box is not None:
        mask = _cut(mask, sample.box, sample.mask)
    if mask.shape == tuple(size):
        return np.ascontiguousarray(mask)
    if not _same_shape(mask.shape, size):
        raise MaskDoesNotFit(
            f"{printable_name(sample.mask)}: the mask is {mask.shape[1]}×{mask.shape[0]}, its picture "
            f"{printable_name(sample.image.name)} {size[1]}×{size[0]}; they must agree"
        )
    return resize_mask(np.ascontiguousarray(mask), size).astype(np.uint8) * np.uint8(255)


def read_mask_values(path: Path) -> np.ndarray:
    """The values stored in a mask file of any kind, before a rule is applied.

    Returns (H, W): uint8, or a wider type for files with more than 8 bits. Of colours the largest channel counts,
    transparency is dropped; drawn files (.json, .xml) are 0 and 255. Raises BadImage.
    """
    reader = {".mat": _read_mat, ".json": _read_labelme, ".xml": _read_voc}.get(path.suffix.lower())
    if reader is None:
        return _read_picture(path)
    try:
        return reader(path)
    except BadImage as error:
        raise BadImage(f"{printable_name(path)}: {error}") from error
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise BadImage(f"{printable_name(path)}: cannot be read ({cause})") from error
    # Damaged files make the parsers raise nearly anything; each means that the file is not what its name says.
    except Exception as error:
        words = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadImage(f"{printable_name(path)}: damaged or of another kind ({words})") from error


def apply_rule(values: np.ndarray, rule: str) -> np.ndarray:
    """uint8 (H, W), 255 where stored mask values (H, W) are anomalous.

    rule: ">N" or "==N", N on the scale of 8 bits; deeper values that exceed 255 are scaled for ">N" with N > 0.
    Raises ValueError for another rule.
    """
    match = _RULE.fullmatch(rule)
    if match is None:
        raise ValueError(f"mask rule {rule!r}; expected '>N' or '==N', such as '>0' or '>127'")
    level: float = int(match[2])
    if match[1] == "==":
        chosen = values == level
    else:
        if level and values.dtype != np.uint8 and values.size and values.max() > 255:
            level *= 257
        chosen = values > level
    mask: np.ndarray = chosen.astype(np.uint8) * np.uint8(255)
    return mask


def _cut(pixels: np.ndarray, box: tuple[int, int, int, int], path: Path) -> np.ndarray:
    x0, y0, x1, y1 = box
    height, width = pixels.shape[:2]
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise BadImage(f"{printable_name(path)}: is {width}×{height}, the part {box} lies outside of it")
    return pixels[y0:y1, x0:x1]


def _same_shape(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two (H, W) are one shape at two scales, to a pixel of rounding on the smaller one."""
    small, large = sorted((tuple(a), tuple(b)))
    scale = large[1] / small[1]
    return bool(abs(large[0] / scale - small[0]) <= 1 and min(*small) > 1)


def _read_picture(path: Path) -> np.ndarray:
    # What Pillow cannot open here, `read_image` reads in another way or names the cause of.
    with contextlib.suppress(Exception), Image.open(path) as image:
        if image.mode in ("1", "L", *DEEP_MODES):
            turned = ImageOps.exif_transpose(image)
            return np.array(turned.convert("L") if image.mode == "1" else turned)
    largest: np.ndarray = read_image(path).max(axis=2)
    return largest


def _read_mat(path: Path) -> np.ndarray:
    """CrackForest's label map: 1 road, 2 crack, 3 and 4 road enclosed by cracks."""
    from scipy.io import loadmat

    contents = loadmat(path, squeeze_me=True)
    if "groundTruth" not in contents:
        raise BadImage("holds no variable groundTruth")
    values = np.asarray(contents["groundTruth"]["Segmentation"].item())
    if values.ndim != 2:
        raise BadImage(f"groundTruth.Segmentation has {values.ndim} dimensions, expected 2")
    return values


def _read_labelme(path: Path) -> np.ndarray:
    """Outlines drawn with labelme. The picture that such a file repeats in base64 is let go at once."""
    contents = json.loads(path.read_bytes())
    height, width = int(contents["imageHeight"]), int(contents["imageWidth"])
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    for shape in contents["shapes"]:
        points = [(float(x), float(y)) for x, y in shape["points"]]
        _draw_shape(pen, shape.get("shape_type") or "polygon", points)
    return np.array(mask)


def _draw_shape(pen: ImageDraw.ImageDraw, kind: str, points: list[tuple[float, float]]) -> None:
    if kind == "polygon" and len(points) >= 3:
        pen.polygon(points, fill=255, outline=255)
    elif kind == "rectangle" and len(points) == 2:
        (xa, ya), (xb, yb) = points
        pen.rectangle((min(xa, xb), min(ya, yb), max(xa, xb), max(ya, yb)), fill=255)
    elif kind == "circle" and len(points) == 2:
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        raise BadImage(f"a {kind} of {len(points)} points encloses no area; draw polygons")


def _read_voc(path: Path) -> np.ndarray:
    """The boxes of a Pascal VOC file, filled."""
    root = ElementTree.fromstring(path.read_bytes())
    width, height = (_number(root, f"size/{side}") for side in ("width", "height"))
    mask = np.zeros((height, width), dtype=np.uint8)
    for found in root.iter("bndbox"):
        x0, y0, x1, y1 = (_number(found, corner) for corner in ("xmin", "ymin", "xmax", "ymax"))
        # VOC counts pixels from 1 and includes the last
        mask[max(y0 - 1, 0) : y1, max(x0 - 1, 0) : x1] = 255
    return mask


def _number(element: Any, name: str) -> int:
    text = element.findtext(name)
    if text is None:
        raise BadImage(f"lacks <{name}>")
    return round(float(text))
