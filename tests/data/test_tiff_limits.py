"""TIFFs whose parts unfold to more than the picture's size are refused before they are unpacked."""

from __future__ import annotations

import io
import lzma
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile

from blemish.data.images import decode_image
from blemish.errors import BadImage

UNFOLDED = 30_000_000
DEFLATE, LZMA, PACKBITS = 8, 34925, 32773


def tiff(compression: int, part: bytes, side: int = 10, tile: int | None = None) -> bytes:
    """A grey 16-bit TIFF of side x side pixels in one part."""
    tags = {256: side, 257: side, 258: 16, 259: compression, 262: 1, 277: 1}
    kind = (322, 323, 324, 325) if tile else (278, None, 273, 279)
    tags |= {kind[0]: tile or side, kind[2]: 0, kind[3]: len(part)}
    if kind[1]:
        tags[kind[1]] = tile or side
    tags[kind[2]] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + part


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tiff(DEFLATE, zlib.compress(bytes(UNFOLDED)), side=200), "unfolds to more"),
        (tiff(LZMA, lzma.compress(bytes(UNFOLDED))), "unfolds to more"),
        (tiff(PACKBITS, b"\x81\0" * (UNFOLDED // 128)), "longer than its pixels"),
        (tiff(DEFLATE, zlib.compress(bytes(200)) + bytes(100_000)), "longer than its pixels"),
        (tiff(DEFLATE, zlib.compress(bytes(UNFOLDED)), tile=30_000), "30000×30000 are 900 megapixels"),
    ],
)
def test_bombs(data: bytes, words: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match=words):
            decode_image(data, "a.tiff", max_pixels=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < UNFOLDED / 3  # of which LZMA itself takes 8 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "layout", [{}, {"rowsperstrip": 7}, {"tile": (64, 64)}, {"tile": (256, 256), "predictor": True}]
)
@pytest.mark.parametrize("compression", [None, "zlib", "lzma"])
@pytest.mark.parametrize("size", [(1, 1), (75, 50)])
def test_good_ones_are_read(layout: dict, compression: str | None, size: tuple[int, int]) -> None:
    if layout.get("predictor") and compression is None:
        layout = {"tile": layout["tile"]}
    values = np.random.default_rng(0).integers(0, 65536, size, dtype=np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, compression=compression, **layout)
    found = decode_image(file.getvalue(), "a.tiff")
    np.testing.assert_array_equal(found[:, :, 0], (values.astype(int) + 128) // 257)
