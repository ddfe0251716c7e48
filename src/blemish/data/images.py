"""Any picture file -> RGB array; with `find_images`, the way in for pictures."""

from __future__ import annotations

import contextlib
import io
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from blemish.data.find import IMAGE_ENDINGS, ImageRef, find_images
from blemish.data.tiff_limits import UnfoldsTooFar, check_tiff
from blemish.errors import BadImage
from blemish.files import printable_name

__all__ = [
    "IMAGE_ENDINGS",
    "MAX_PIXELS",
    "ImageRef",
    "decode_image",
    "find_images",
    "pixel_count",
    "printable_name",
    "read_image",
]

MAX_PIXELS = 150_000_000
# Named, so that Pillow tries no decoder beyond these (its EPS reader, for one, starts another program).
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "GIF")
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"GIF8", *TIFF_SIGNATURES)
# TIFF: tag numbers and values of the photometric tag
BITS_PER_SAMPLE, ORIENTATION, TILE_WIDTH, TILE_LENGTH = 258, 274, 322, 323
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
STRIP_PIXELS = 1 << 22
CAUSE_LETTERS = 160

_open_lock = threading.Lock()


def read_image(source: str | Path | Image.Image | np.ndarray, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Any picture as RGB.

    source: a file (PNG, JPEG, BMP, WebP, TIFF, GIF; of several frames or pages the first), a PIL image, or a
        uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    max_pixels: larger pictures are refused before they are decoded.

    Returns uint8 (H, W, 3). EXIF orientation is applied. An alpha channel is dropped, not composited, as
    PIL's `convert("RGB")` does and with it the published methods' code. 16-bit values are divided by 257 (a PNG
    in 16-bit colour arrives as its high byte, at most one level off); float pictures must lie in 0..1 and are
    multiplied by 255. Raises BadImage, one line `name: cause`.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _guarded("the given PIL image", lambda: _decode(source, max_pixels))
    path = Path(source)
    name = printable_name(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise BadImage(f"{name}: is a folder, expected a picture file")
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise BadImage(f"{name}: is not a regular file")
        with path.open("rb") as file:
            head = file.read(8)
            file.seek(0)
            if not head:
                raise BadImage(f"{name}: the file is empty (0 bytes)")
            return _guarded(name, lambda: _read_file(file, head, max_pixels))
    except FileNotFoundError as error:
        raise BadImage(f"{name}: no such file") from error
    except PermissionError as error:
        raise BadImage(f"{name}: permission denied") from error
    except (OSError, ValueError) as error:
        if isinstance(error, BadImage):
            raise
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise BadImage(f"{name}: cannot be read ({cause.lower()})") from error


def decode_image(data: bytes, name: str = "the given image", max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """A picture file held in memory as RGB, uint8 (H, W, 3), as `read_image` gives it.

    name: what error texts call it. Raises BadImage, one line `name: cause`.
    """
    if not data:
        raise BadImage(f"{name}: the file is empty (0 bytes)")
    return _guarded(name, lambda: _read_file(io.BytesIO(data), data[:8], max_pixels))


def pixel_count(source: str | Path | Image.Image | np.ndarray | bytes) -> int:
    """Pixels of a picture, of a file (or its bytes) from its header alone; 0 when that cannot be told."""
    if isinstance(source, Image.Image):
        return source.width * source.height
    if isinstance(source, np.ndarray):
        return source.shape[0] * source.shape[1] if source.ndim >= 2 else 0
    try:
        if isinstance(source, bytes):
            with _open(io.BytesIO(source)) as image:
                return image.width * image.height
        if not stat.S_ISREG(Path(source).stat().st_mode):
            return 0
        with Path(source).open("rb") as file, _open(file) as image:
            return image.width * image.height
    # Pillow meets damaged files with errors of many types; the reader itself will report the cause.
    except Exception:
        return 0


def _open(file: BinaryIO) -> Image.Image:
    """The picture with its header read. Pillow's own size check, which warns or raises by a process-wide limit,
    is off: `_decode` makes ours instead.
    """
    with _open_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _guarded(name: str, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """Run a decoder; whatever it raises on a damaged file becomes a BadImage of one line with the name."""
    try:
        return decode()
    except BadImage as error:
        raise BadImage(f"{name}: {error}") from error
    except MemoryError as error:
        raise BadImage(f"{name}: not enough memory to decode it") from error
    except (
        Exception
    ) as error:  # decoders meet damaged files with errors of any type, struct.error to KeyError
        words = str(error).splitlines()[:1]
        # the text of an IndexError or KeyError is a mere number or key, and some decoders print what they read
        said = bool(words) and " " in words[0] and len(words[0]) <= CAUSE_LETTERS
        cause = words[0] if said else "its structure cannot be read"
        raise BadImage(f"{name}: damaged or cut short ({cause})") from error


def _read_file(file: BinaryIO, head: bytes, max_pixels: int) -> np.ndarray:
    try:
        image = _open(file)
    except UnidentifiedImageError as error:
        if head.startswith(TIFF_SIGNATURES):
            return _read_tiff(file, max_pixels)
        if head.startswith(SIGNATURES):
            raise BadImage("damaged or cut short (its header cannot be read)") from error
        raise BadImage("not an image (its content is no PNG, JPEG, BMP, WebP, TIFF or GIF)") from error
    with image:
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            width, length = (image.tag_v2.get(tag, 1) for tag in (TILE_WIDTH, TILE_LENGTH))
            _check_size(
                width, length, max_pixels
            )  # of tiles, of which one is held whole, however small the picture
            if _is_deep(image):
                # Pillow keeps the high byte of deep colour, misreads planes stored apart, forgets white-is-zero
                try:
                    return _read_tiff(file, max_pixels)
                except UnfoldsTooFar:
                    raise
                except ValueError:
                    pass  # tifffile lacks some compressions that Pillow has
        return _decode(image, max_pixels)


def _is_deep(image: TiffImagePlugin.TiffImageFile) -> bool:
    return max(image.tag_v2.get(BITS_PER_SAMPLE) or (1,)) > 8


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise BadImage(f"has no pixels ({width}×{height})")
    if width * height > max_pixels:
        given, allowed = width * height / 1e6, max_pixels / 1e6
        raise BadImage(
            f"{width}×{height} are {given:.4g} megapixels, more than the {allowed:.4g} allowed; "
            "cut it into parts or make it smaller"
        )


def _decode(image: Image.Image, max_pixels: int) -> np.ndarray:
    _check_size(*image.size, max_pixels)
    png = image.format == "PNG"
    image.load()
    # A malformed EXIF block says nothing about the pixels: they are taken as stored.
    with contextlib.suppress(Exception):
        if image.getexif().get(ORIENTATION, 1) != 1:  # asked first, since turning by nothing still copies
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and png):
        return _grey_to_rgb(_to_uint8(np.asarray(image).astype(np.uint16)))
    if image.mode in ("I", "F"):
        return _grey_to_rgb(_to_uint8(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB would warn; the colours are the same
    if image.mode != "RGB":
        image = image.convert("RGB")
    return _pixels(image)


def _pixels(image: Image.Image) -> np.ndarray:
    """Writable array of an RGB image, copied in strips: a whole conversion holds a second copy on the way."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if rows >= height:
        return np.array(image)
    out = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        out[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return out


def _to_uint8(values: np.ndarray) -> np.ndarray:
    """Values of any type to uint8 by the type's own full range; types without an agreed one are refused."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if values.dtype.kind == "f":
        if not (low >= 0.0 and high <= 1.0):  # written so that NaN is refused too
            raise BadImage(f"float picture with values {low:g} to {high:g}; expected 0 to 1, or 8 or 16 bit")
        return np.rint(values.astype(np.float32) * 255).astype(np.uint8)
    raise BadImage(f"{values.dtype} picture with values {low:g} to {high:g}; save it with 8 or 16 bit")


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _read_tiff(file: BinaryIO, max_pixels: int) -> np.ndarray:
    """First page of a TIFF that Pillow refuses or reads badly: more than 8 bits, BigTIFF variants."""
    import tifffile

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        _check_size(page.imagewidth, page.imagelength, max_pixels)
        if page.samplesperpixel > 4 or page.imagedepth > 1:  # before they are decoded: 65,535 may be claimed
            raise BadImage(
                f"TIFF of {page.samplesperpixel} samples a pixel and depth {page.imagedepth}; "
                "save it as grey or RGB"
            )
        if page.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            raise BadImage(f"TIFF of photometric kind {int(page.photometric)}; save it as grey or RGB")
        check_tiff(page, file, max_pixels)
        values = np.asarray(page.asarray())
        if page.planarconfig == 2 and values.ndim == 3:  # planes stored apart
            values = np.moveaxis(values, 0, -1)
        if page.photometric == WHITE_IS_ZERO and values.dtype.kind == "u":
            values = np.iinfo(values.dtype).max - values
        orientation = page.tags.valueof(ORIENTATION, 1)
    if values.ndim == 3 and values.shape[2] == 2:  # grey and alpha
        values = values[:, :, 0]
    turned = ImageOps.exif_transpose(_tagged(Image.fromarray(_from_array(_to_uint8(values))), orientation))
    return _pixels(turned)


def _tagged(image: Image.Image, orientation: int) -> Image.Image:
    image.getexif()[ORIENTATION] = orientation
    return image


def _from_array(array: np.ndarray) -> np.ndarray:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or array.size == 0:
        shape = "×".join(map(str, array.shape))
        raise BadImage(f"array of {array.dtype}, {shape}: expected uint8 H×W, H×W×1, H×W×3 or H×W×4")
    if channels == 1:
        return _grey_to_rgb(array.reshape(array.shape[:2]))
    return np.ascontiguousarray(array[:, :, :3])
