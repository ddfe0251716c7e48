"""Scored images -> what the service answers, records and keeps."""

from __future__ import annotations

import base64
import hashlib
import io
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blemish.deploy.history import Inspection, utc
from blemish.deploy.serve_uploads import PredictRequest, Upload
from blemish.errors import BadImage
from blemish.files import printable_name, write_whole
from blemish.output.tables import read_map, record
from blemish.types import Result

LEVELS = 65535
STRIP_VALUES = 1 << 20
# By their first bytes; what is none of these is a TIFF, the only other kind that the reader takes.
KINDS = (
    (b"\x89PNG", ".png", "image/png"),
    (b"\xff\xd8\xff", ".jpg", "image/jpeg"),
    (b"BM", ".bmp", "image/bmp"),
    (b"RIFF", ".webp", "image/webp"),
    (b"GIF8", ".gif", "image/gif"),
)
TIFF = (".tiff", "image/tiff")
MAP_ENDING = ".map.tiff"


def with_thresholds(result: Result, request: PredictRequest) -> Result:
    """The result as judged by the request's thresholds, where it has any."""
    image = result.threshold if request.threshold is None else request.threshold
    pixel = result.pixel_threshold if request.pixel_threshold is None else request.pixel_threshold
    return replace(result, threshold=image, pixel_threshold=pixel)


def answer_record(result: Result, upload: Upload, wanted_map: str) -> dict[str, Any]:
    """One entry of "results" in an answer, without the inspection's number."""
    values = record(result, upload.name)
    values |= {
        "name": upload.name,
        "sha256": hashlib.sha256(upload.data).hexdigest(),
        "map_range": [float(v) for v in result.map_range],
        "pixel_threshold": None if result.pixel_threshold is None else float(result.pixel_threshold),
    }
    del values["path"], values["files"]
    if wanted_map != "none":
        data = map_png(result.map, result.map_range) if wanted_map == "png" else map_tiff(result.map)
        values["map"] = base64.b64encode(data).decode("ascii")
        values["map_format"] = "png16" if wanted_map == "png" else "tiff"
    return values


def inspection(values: Mapping[str, Any], model: str, kept: str | None) -> Inspection:
    """What the history notes of an entry that `answer_record` made."""
    low, high = values["map_range"]
    names = ("name", "sha256", "width", "height", "score", "threshold", "pixel_threshold", "is_anomalous")
    known = {name: values[name] for name in names}
    return Inspection(time=utc(), map_low=low, map_high=high, model=model, kept=kept, **known)


def map_png(anomaly_map: np.ndarray, map_range: tuple[float, float]) -> bytes:
    """A map (H, W) as 16-bit grey PNG: round((map - low) / (high - low) * 65535), clipped."""
    low, high = map_range
    levels = np.empty(anomaly_map.shape, dtype=np.uint16)
    rows = max(1, STRIP_VALUES // anomaly_map.shape[1])
    for top in range(0, len(levels), rows):
        part = anomaly_map[top : top + rows].astype(np.float64)
        levels[top : top + rows] = np.rint(np.clip((part - low) / (high - low), 0, 1) * LEVELS)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, format="PNG", compress_level=1)
    return file.getvalue()


def map_tiff(anomaly_map: np.ndarray) -> bytes:
    """A map (H, W) as one-page float32 TIFF."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, np.ascontiguousarray(anomaly_map), photometric="minisblack", metadata=None)
    return file.getvalue()


@dataclass(frozen=True)
class KeptFiles:
    """A folder of inspected images and their maps, under names of its own making."""

    folder: Path

    def save(self, data: bytes, anomaly_map: np.ndarray) -> str:
        """Write both and return the image's path below the folder. Raises OutputError."""
        day = utc()[:10].replace("-", "/")
        ending = next((ending for head, ending, _ in KINDS if data.startswith(head)), TIFF[0])
        name = f"{day}/{uuid.uuid4().hex}{ending}"
        write_whole(self.folder / name, data)
        write_whole(self._map_path(name), map_tiff(anomaly_map))
        return name

    def image(self, name: str) -> tuple[bytes, str]:
        """An image that `save` wrote, its bytes as they came, and its type. Raises FileNotFoundError."""
        path = self._checked(self.folder / name)
        kinds = {ending: kind for _, ending, kind in KINDS}
        return path.read_bytes(), kinds.get(path.suffix, TIFF[1])

    def map(self, name: str) -> np.ndarray:
        """The map of an image, float32 (H, W). Raises FileNotFoundError."""
        try:
            return read_map(self._checked(self._map_path(name)))
        except BadImage as error:
            raise FileNotFoundError(printable_name(name)) from error

    def _map_path(self, name: str) -> Path:
        return (self.folder / name).with_suffix(MAP_ENDING)

    def _checked(self, path: Path) -> Path:
        # Names come from the database; whoever can write there must still not reach other files.
        found = path.resolve()
        if not found.is_relative_to(self.folder.resolve()) or not found.is_file():
            raise FileNotFoundError(printable_name(path))
        return found
