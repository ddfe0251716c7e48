"""What a TIFF unfolds to, found before it is decoded: tifffile unpacks each of its parts whole, whatever its size."""

from __future__ import annotations

import lzma
import math
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from blemish.errors import BadImage

DEFLATE, LZMA = (8, 32946), (34925,)  # values of the compression tag
CHANNELS = 4
SLACK = 4096  # bytes by which packing may make a part longer


class UnfoldsTooFar(BadImage):
    """A TIFF that would take more memory than its size says."""


def check_tiff(page: Any, file: BinaryIO, max_pixels: int) -> None:
    """Raise UnfoldsTooFar for a page that would take more memory than its size says.

    page: a tifffile.TiffPage of at most `max_pixels`. file: what it was opened from; its position is moved.
    """
    part = math.prod(page.chunks)
    if part > CHANNELS * max_pixels:
        raise UnfoldsTooFar(f"TIFF in tiles of {part / 1e6:.4g} million values; save it with smaller ones")
    size = part * page.dtype.itemsize
    for start, length in zip(page.dataoffsets, page.databytecounts, strict=False):
        if length > 2 * size + SLACK:
            raise UnfoldsTooFar("damaged (a part of it is longer than its pixels)")
        file.seek(start)
        if page.compression != 1 and _unfolds(page.compression, file.read(length), size):
            raise UnfoldsTooFar("damaged (it unfolds to more than its size says)")


def _unfolds(compression: int, data: bytes, size: int) -> bool:
    """Whether packed data become more than `size` bytes; damaged data do not, the decoder will tell."""
    unpack: Callable[[bytes, int], bytes]
    if compression in DEFLATE:
        unpack = zlib.decompressobj().decompress
    elif compression in LZMA:
        unpack = lzma.LZMADecompressor().decompress
    else:
        return False
    try:
        return len(unpack(data, size + SLACK)) >= size + SLACK
    except (zlib.error, lzma.LZMAError):
        return False
