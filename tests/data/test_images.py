"""Reading pictures: formats, depths, orientation, and everything that can be wrong with a file."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from blemish.data.images import pixel_count, read_image
from blemish.errors import BadImage


def gradient(height: int = 24, width: int = 36) -> np.ndarray:
    """Smooth RGB picture in which every corner differs."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 250 // width, y * 250 // height, 255 - x * 200 // width], axis=2).astype(np.uint8)


@pytest.mark.parametrize("ending", ["png", "bmp", "tiff", "TIF", "PNG"])
def test_lossless_formats_are_exact(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"Größe und Maß.{ending}"
    Image.fromarray(gradient()).save(path)
    np.testing.assert_array_equal(read_image(path), gradient())


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "webp"])
def test_lossy_formats_are_close(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(gradient()).save(path, quality=95)
    image = read_image(str(path))
    assert image.shape == (24, 36, 3) and image.dtype == np.uint8 and image.flags.writeable
    assert np.abs(image.astype(int) - gradient()).mean() < 6


def test_gif_and_multipage_tiff_give_the_first_frame(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 6), (255, 0, 0)), Image.new("RGB", (8, 6), (0, 0, 255))
    for name in ("a.gif", "a.tiff"):
        first.save(tmp_path / name, save_all=True, append_images=[second])
        assert read_image(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_sixteen_bit_grey_is_scaled_linearly(tmp_path: Path, ending: str) -> None:
    values = np.array([[0, 257, 128, 129], [32896, 65535, 65407, 1000]], dtype=np.uint16)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(values).save(path)
    image = read_image(path)
    np.testing.assert_array_equal(image[:, :, 0], np.rint(values / 257).astype(np.uint8))
    assert (image == image[:, :, :1]).all()


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bit_colour_tiff(tmp_path: Path, planar: str, compression: str | None) -> None:
    values = gradient().astype(np.uint16) * 257
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    path = tmp_path / "a.tiff"
    tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, compression=compression)
    np.testing.assert_array_equal(read_image(path), gradient())


def test_deep_tiff_with_orientation_white_is_zero_or_cmyk(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    deep = gradient().astype(np.uint16) * 257
    tifffile.imwrite(path, deep, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(read_image(path), np.rot90(gradient(), -1))
    tifffile.imwrite(path, deep[:, :, 0], photometric="miniswhite", compression="zlib")
    np.testing.assert_array_equal(read_image(path)[:, :, 1], 255 - gradient()[:, :, 0])
    tifffile.imwrite(path, np.dstack([deep, deep[:, :, 0]]), photometric="separated")
    assert read_image(path).shape == (24, 36, 3)


def test_float_tiff_in_unit_range_and_beyond(tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    for shape in ((5, 7), (5, 7, 3)):
        tifffile.imwrite(
            path, np.full(shape, 0.5, np.float32), photometric="rgb" if len(shape) == 3 else None
        )
        assert (read_image(path) == 128).all()
        tifffile.imwrite(
            path, np.full(shape, 300.0, np.float32), photometric="rgb" if len(shape) == 3 else None
        )
        with pytest.raises(BadImage, match="expected 0 to 1"):
            read_image(path)
    tifffile.imwrite(path, np.full((3, 3), np.nan, np.float32))
    with pytest.raises(BadImage, match="nan"):
        read_image(path)


def test_modes_become_rgb(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient())
    grey = np.asarray(picture.convert("L"))
    path = tmp_path / "a.png"
    for mode in ("L", "LA"):
        picture.convert(mode).save(path)
        np.testing.assert_array_equal(read_image(path), np.repeat(grey[:, :, None], 3, axis=2))
    picture.convert("1").save(path)
    assert set(np.unique(read_image(path))) == {0, 255}
    rgba = np.dstack([gradient(), np.zeros((24, 36), np.uint8)])
    Image.fromarray(rgba).save(path)
    np.testing.assert_array_equal(read_image(path), gradient())  # dropped, not composited
    picture.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - gradient()).mean() < 8


def test_palette_with_transparency_keeps_colours_and_is_silent(tmp_path: Path) -> None:
    picture = Image.fromarray(gradient()).quantize(16)
    picture.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_exif_orientation(tmp_path: Path, orientation: int, ending: str) -> None:
    turns = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.transpose(1, 0, 2),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        np.rot90,
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(gradient()).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path), turns[orientation - 1](gradient()))


def test_malformed_exif_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fnonsense")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), gradient())


def test_arrays_and_pil_images() -> None:
    grey = gradient()[:, :, 0]
    for array in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(read_image(array), np.repeat(grey[:, :, None], 3, axis=2))
    np.testing.assert_array_equal(read_image(np.dstack([gradient(), grey])), gradient())
    picture = Image.fromarray(gradient())
    np.testing.assert_array_equal(read_image(picture), gradient())
    np.testing.assert_array_equal(np.asarray(picture), gradient())
    for bad in (gradient().astype(np.float32), np.zeros((3, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(BadImage, match="expected uint8"):
            read_image(bad)


def test_smallest_picture_and_a_large_one_in_strips(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]
    large = gradient(2100, 2100)
    np.testing.assert_array_equal(read_image(Image.fromarray(large)), large)


def broken(folder: Path, name: str) -> Path:
    """One kind of file that is no good picture."""
    path = folder / name
    whole = folder / "whole"
    kind = path.suffix.lstrip(".").replace("jpg", "jpeg")
    if name.startswith("folder"):
        path.mkdir()
    elif name.startswith("empty"):
        path.touch()
    elif name.startswith("text"):
        path.write_text("this is a shopping list\n")
    elif name.startswith("pipe"):
        os.mkfifo(path)
    elif name.startswith(("half", "head")):
        noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
        Image.fromarray(noise).save(whole, format=kind)
        data = whole.read_bytes()
        path.write_bytes(data[: len(data) // 2] if name.startswith("half") else data[:12])
    return path


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("missing.png", "no such file"),
        ("folder.png", "is a folder"),
        ("empty.png", "0 bytes"),
        ("text.png", "not an image"),
        ("pipe.png", "not a regular file"),
        ("nul\0.png", "null"),
        ("x" * 300 + ".png", "too long"),
        *((f"half.{kind}", "damaged or cut short") for kind in ("png", "jpg", "webp", "tiff", "bmp", "gif")),
        *((f"head.{kind}", "damaged or cut short") for kind in ("png", "jpg", "webp", "tiff", "bmp")),
    ],
)
def test_bad_files_name_file_and_cause_in_one_line(tmp_path: Path, name: str, cause: str) -> None:
    path = broken(tmp_path, name)
    with pytest.raises(BadImage, match=cause) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_cause_is_words(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"  # its offset of the first page is beyond its end, which tifffile calls "0"
    path.write_bytes(b"II*\0" + (999).to_bytes(4, "little"))
    with pytest.raises(BadImage, match="its structure cannot be read"):
        read_image(path)


@pytest.mark.parametrize(
    "name", ["missing.png", "folder.png", "empty.png", "text.png", "pipe.png", "head.png"]
)
def test_pixels_of_a_bad_file_cannot_be_told(tmp_path: Path, name: str) -> None:
    assert pixel_count(broken(tmp_path, name)) == 0  # without waiting for a writer of the pipe


def test_pixels_are_told_without_a_warning(tmp_path: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pixel_count(tmp_path / "a.png") == 100_000_000
    assert pixel_count(Image.new("L", (3, 2))) == pixel_count(np.zeros((2, 3), dtype=np.uint8)) == 6


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the tests may run as a user who may read everything
    with pytest.raises(BadImage, match="permission denied"):
        read_image(path)


def test_circular_link(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(BadImage, match="symbolic links"):
        read_image(tmp_path / "a.png")


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 10_000)).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match="20000×10000 are 200 megapixels, more than the 150 allowed"):
            read_image(path)
        with pytest.raises(BadImage, match="megapixels"):
            read_image(Image.fromarray(gradient()), max_pixels=100)


def test_pillows_own_limit_stays_and_does_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    path = tmp_path / "a.png"
    Image.fromarray(gradient()).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=read_image, args=(path,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read_image(path).shape == (24, 36, 3)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_undecodable_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(BadImage) as caught:
        read_image(path)
    assert "caf%E9.png" in str(caught.value)
    str(caught.value).encode()
