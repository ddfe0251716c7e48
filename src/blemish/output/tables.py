"""What a program reads: anomaly maps as TIFF, masks as PNG, one JSON line per image, the same as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from blemish.errors import BadImage
from blemish.files import cannot_write, make_folder, printable_name, write_whole
from blemish.types import Result

KINDS = ("overlay", "mask", "map", "attention", "attention_data")
CSV_COLUMNS = (
    *("path", "score", "threshold", "is_anomalous", "width", "height", "map_max"),
    *KINDS,
    *("seconds", "error"),
)


def write_map(path: Path, anomaly_map: np.ndarray) -> None:
    """A map (H, W) as one-page float32 TIFF, not packed (MVTec's result convention). Raises OutputError.

    Deflate at its lowest level saved 8 % of such floats and took as long as the network on a megapixel.
    """
    import tifffile

    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    write_whole(path, lambda file: tifffile.imwrite(file, values, photometric="minisblack", metadata=None))


def read_map(path: Path) -> np.ndarray:
    """float32 (H, W), the reverse of `write_map`. Raises BadImage."""
    import tifffile

    try:
        values = np.asarray(tifffile.imread(path))
    except Exception as error:  # tifffile meets damaged files with errors of many types
        raise BadImage(f"{printable_name(path)}: cannot be read as a map ({error})") from error
    if values.ndim != 2:
        raise BadImage(
            f"{printable_name(path)}: is no map; expected one page of H×W values, got {values.shape}"
        )
    return values.astype(np.float32, copy=False)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """A mask, bool (H, W), as 8-bit grey PNG of 0 and 255. Raises OutputError."""
    picture = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    write_whole(path, lambda file: picture.save(file, format="PNG"))


def write_attention(path: Path, attention: np.ndarray) -> None:
    """Attention maps (layers, heads, 2, rows, columns) as float32 .npy. Raises OutputError."""
    values = np.ascontiguousarray(attention, dtype=np.float32)
    write_whole(path, lambda file: np.save(file, values, allow_pickle=False))


def record(result: Result, path: str | Path, files: Mapping[str, str | Path] | None = None) -> dict[str, Any]:
    """The line of predictions.jsonl for one image.

    path: the image as the user named it. files: kind, of `KINDS` -> path below the output folder.
    """
    width, height = result.size
    return {
        "path": printable_name(path),
        "score": float(result.score),
        "threshold": None if result.threshold is None else float(result.threshold),
        "is_anomalous": result.is_anomalous,
        "width": width,
        "height": height,
        "map_max": _short(float(result.map.max())),
        "regions": [
            {"box": [int(v) for v in r.box], "area": int(r.area), "peak": _short(r.peak)}
            for r in result.regions
        ],
        "files": {kind: Path(name).as_posix() for kind, name in (files or {}).items()},
        "seconds": round(float(result.seconds), 6),
    }


def error_record(path: str | Path, message: str | Exception) -> dict[str, Any]:
    """The line of predictions.jsonl for an image that failed; the cause does not repeat the file's name."""
    name = printable_name(path)
    return {"path": name, "error": printable_name(str(message)).removeprefix(f"{name}: ")}


def _short(value: float) -> float:
    """A float32 value without the digits that float64 adds to it."""
    return float(f"{value:.7g}")


def json_line(values: Mapping[str, Any]) -> bytes:
    """One line of strict JSON, UTF-8. Raises ValueError for NaN or infinity."""
    return json.dumps(values, ensure_ascii=False, allow_nan=False).encode() + b"\n"


class PredictionWriter:
    """predictions.jsonl, a line at a time, and predictions.csv at the end. A context manager.

    out: the output folder, made when missing. resume: keep the lines that are there; otherwise the file
    starts anew. A line that is torn (the run was killed) or no JSON is dropped, and so are those of failed
    images, which are to be tried again.

    done: path -> record of each line that was kept.
    """

    def __init__(self, out: Path, resume: bool = False) -> None:
        self.path = out / "predictions.jsonl"
        self.csv_path = out / "predictions.csv"
        make_folder(out)
        self.done: dict[str, dict[str, Any]] = {}
        if resume and self.path.exists():
            self.done = {r["path"]: r for r in read_records(self.path) if "error" not in r}
        write_whole(self.path, lambda file: file.writelines(map(json_line, self.done.values())))
        self._open()

    def _open(self) -> None:
        try:
            # unbuffered: a line reaches the file in one call, so that a kill between two calls tears nothing
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one record. Raises OutputError (the file keeps whole lines) or ValueError for NaN."""
        line = memoryview(json_line(values))
        start = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            raise cannot_write(self.path, error) from error

    def finish(self, order: Sequence[str | Path]) -> None:
        """Put the lines into the order of the input paths, then write predictions.csv.

        Lines whose path is not in `order` (of an earlier run with other inputs) stay, at the end; of two
        lines with one path the later is kept. Holds one position per image, not the records.
        """
        self.close()
        places = {values["path"]: span for values, span in _spans(self.path)}
        wanted = dict.fromkeys(name for name in map(printable_name, order) if name in places)
        names = [*wanted, *(name for name in places if name not in wanted)]
        spans = [places[name] for name in names]
        if spans != sorted(spans) or sum(length for _, length in spans) != self.path.stat().st_size:
            with self.path.open("rb") as source:
                write_whole(self.path, lambda file: file.writelines(_copy(source, spans)))
        write_whole(self.csv_path, lambda file: file.writelines(_csv_lines(read_records(self.path))))

    def close(self) -> None:
        """Close the file; further writes fail."""
        self._file.close()

    def __enter__(self) -> PredictionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a predictions.jsonl, one at a time; torn or damaged lines are passed over."""
    return (values for values, _ in _spans(path))


def _spans(path: Path) -> Iterator[tuple[dict[str, Any], tuple[int, int]]]:
    """(record, (offset, length)) of each whole line."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            span = (offset, len(line))
            offset += len(line)
            try:
                values = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                continue
            if isinstance(values, dict) and isinstance(values.get("path"), str):
                yield values, span


def _copy(source: BinaryIO, spans: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    for offset, length in spans:
        source.seek(offset)
        yield source.read(length)


def _csv_lines(records: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    buffer = io.StringIO()
    table = csv.DictWriter(buffer, CSV_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    for values in records:
        files = values.get("files") or {}
        table.writerow({k: _cell(v) for k, v in {**values, **files}.items() if v is not None})
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _cell(value: object) -> object:
    return str(value).lower() if isinstance(value, bool) else value
