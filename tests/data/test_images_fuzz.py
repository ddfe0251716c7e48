"""Files that nobody meant to be pictures: random bytes, and pictures with bytes changed, lost, added or moved."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blemish.data.images import MAX_PIXELS, decode_image, pixel_count, read_image
from blemish.errors import BadImage

HEADS = (
    b"",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"BM",
    b"RIFF\x20\0\0\0WEBP",
    b"II*\0",
    b"MM\0+",
    b"GIF89a",
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@functools.cache
def whole_files() -> dict[str, bytes]:
    """A small picture in many forms: format, mode, compression, depth."""
    y, x = np.mgrid[:12, :17]
    colour = np.stack([x * 14, y * 20, 255 - x * 9], axis=2).astype(np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    found = {}
    for kind, mode, options in (
        ("PNG", "RGB", {"exif": turned}),
        ("PNG", "P", {}),
        ("PNG", "LA", {}),
        ("JPEG", "RGB", {"exif": turned}),
        ("JPEG", "CMYK", {}),
        ("BMP", "RGB", {}),
        ("WEBP", "RGBA", {}),
        ("GIF", "P", {}),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}),
        ("TIFF", "1", {}),
    ):
        file = io.BytesIO()
        Image.fromarray(colour).convert(mode).save(file, format=kind, **options)
        found[f"{kind} {mode}"] = file.getvalue()
    deep = colour.astype(np.uint16) * 257
    for name, values, written in (
        ("deep", deep, {"photometric": "rgb", "compression": "zlib"}),
        ("apart", deep.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}),
        ("big", deep, {"photometric": "rgb", "bigtiff": True}),
        ("float", colour[:, :, 0].astype(np.float32) / 255, {}),
    ):
        file = io.BytesIO()
        tifffile.imwrite(file, values, **written)
        found[f"TIFF {name}"] = file.getvalue()
    return found


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A whole file after one to four changes, of which most are where headers stand."""
    data = bytearray(whole_files()[draw(st.sampled_from(sorted(whole_files())))])
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.one_of(st.integers(0, min(len(data), 160)), st.integers(0, len(data))))
        change = draw(st.sampled_from(["set", "cut", "insert", "remove", "move"]))
        if change == "set":
            data[place : place + 4] = draw(
                st.one_of(
                    st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f"]), st.binary(max_size=4)
                )
            )
        elif change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif change == "remove":
            del data[place : place + draw(st.integers(1, 8))]
        else:
            data[place : place + 8] = data[len(data) // 2 : len(data) // 2 + 8]
    return bytes(data)


def check(data: bytes) -> None:
    """The bytes are an RGB picture or one short line says why not; the header alone is never trusted with more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pixel_count(data) >= 0
        try:
            image = decode_image(data, "a.png", max_pixels=1_000_000)
        except BadImage as error:
            text = str(error)
            assert text.startswith("a.png: ") and len(text.splitlines()) == 1 and len(text) < 300
            return
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= 1_000_000


def test_the_files_are_pictures_before_they_are_spoiled() -> None:
    for name, data in whole_files().items():
        shape = decode_image(data).shape
        assert shape in ((12, 17, 3), (17, 12, 3)), name
        assert pixel_count(data) == 12 * 17, name


@few
@given(spoiled())
def test_spoiled_files(data: bytes) -> None:
    check(data)


@few
@given(st.sampled_from(HEADS), st.binary(max_size=200))
def test_random_bytes(head: bytes, rest: bytes) -> None:
    check(head + rest)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(spoiled())
def test_a_file_reads_as_its_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = decode_image(data, str(path), max_pixels=1_000_000)
        except BadImage as error:
            with pytest.raises(BadImage) as caught:
                read_image(path, max_pixels=1_000_000)
            assert str(caught.value) == str(error)
        else:
            np.testing.assert_array_equal(read_image(path, max_pixels=1_000_000), expected)


@pytest.mark.parametrize("samples", [5, 40_000])
def test_a_tiff_that_claims_many_samples_is_refused_before_decoding(samples: int) -> None:
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((6, 6, 5), np.uint16), photometric="minisblack", planarconfig="contig")
    data = file.getvalue()
    tag = b"\x15\x01\x03\x00\x01\x00\x00\x00"  # samples per pixel: number 277, one 16-bit value
    assert data.count(tag + b"\x05\0") == 1
    changed = data.replace(tag + b"\x05\0", tag + samples.to_bytes(2, "little"))
    with pytest.raises(BadImage, match=f"{samples} samples a pixel"):
        decode_image(changed)


def test_a_huge_claim_is_refused_before_decoding() -> None:
    data = bytearray(whole_files()["BMP RGB"])
    data[18:26] = (200_000).to_bytes(4, "little") + (200_000).to_bytes(4, "little")
    assert MAX_PIXELS < 200_000**2
    with pytest.raises(BadImage, match="megapixels"):
        decode_image(bytes(data))
