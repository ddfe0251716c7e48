"""The results of a run at scale: parquet parts in an output folder, on a disk or in an object store."""

from __future__ import annotations

import hashlib
import io
import logging
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from blemish.errors import OutputError
from blemish.files import write_whole
from blemish.output.tables import KINDS, PredictionWriter
from blemish.pipeline import ordered_map
from blemish.run.predict import LINES_FILE, RUN_FILE
from blemish.run.scale_inputs import cause_of, filesystem, is_url

RESULTS = "results"
CSV_FILE = "predictions.csv"
READERS = 8
# Uploads to these appear whole or not at all; elsewhere a temporary name is needed.
WHOLE_UPLOADS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory"})
log = logging.getLogger(__name__)


class Place:
    """The output folder. root: a path, or a URL of fsspec's. Files are there whole or not at all."""

    def __init__(self, root: str) -> None:
        """Raises BadOption for a URL that cannot be used."""
        self.root = root.rstrip("/") or root
        self.local = None if is_url(root) else Path(root)
        self._fs: Any = None
        self._base = ""
        if self.local is None:
            self._fs, self._base = filesystem(self.root)

    def write(self, name: str, content: bytes) -> None:
        """A file below the folder. Raises OutputError."""
        if self.local is not None:
            write_whole(self.local / name, content)
            return
        path = f"{self._base}/{name}"
        try:
            if WHOLE_UPLOADS.isdisjoint(_protocols(self._fs)):
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                temporary = f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex}.tmp"
                self._fs.pipe_file(temporary, content)
                self._fs.mv(temporary, path)
            else:
                self._fs.pipe_file(path, content)
        except Exception as error:  # every file system has errors of its own
            raise OutputError(
                f"cannot write {self.root}/{name}: {cause_of(error)}; choose another --out"
            ) from error

    def read(self, name: str) -> bytes | None:
        """The content of a file; None when it is not there. Raises OutputError."""
        try:
            if self.local is not None:
                return (self.local / name).read_bytes()
            content: bytes = self._fs.cat_file(f"{self._base}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:
            raise OutputError(
                f"cannot read {self.root}/{name}: {cause_of(error)}; choose another --out"
            ) from error
        return content

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder below this one, sorted; none when it is not there. Raises OutputError."""
        try:
            if self.local is not None:
                return sorted(path.name for path in (self.local / folder).iterdir())
            self._fs.invalidate_cache()
            found = self._fs.ls(f"{self._base}/{folder}", detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except Exception as error:
            raise OutputError(
                f"cannot list {self.root}/{folder}: {cause_of(error)}; choose another --out"
            ) from error
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """Remove a file that this run or an earlier one wrote; no error when it is not there."""
        try:
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            elif self._fs.exists(f"{self._base}/{name}"):
                self._fs.rm_file(f"{self._base}/{name}")
        except Exception as error:
            raise OutputError(
                f"cannot remove {self.root}/{name}: {cause_of(error)}; choose another --out"
            ) from error


class Parts:
    """The parts of a run: results/part-*.parquet, with the columns of predictions.jsonl."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def write(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        """One part, whole. Raises OutputError."""
        import pyarrow

        rows = [{"error": None, **values} for values in records]
        self._write(name, pyarrow.Table.from_pylist(rows, schema=schema()))

    def names(self) -> list[str]:
        """Whole parts, in the order of their first images."""
        return [n for n in self.place.names(RESULTS) if n.startswith("part-") and n.endswith(".parquet")]

    def clear(self) -> None:
        """Remove the parts of an earlier run."""
        for name in self.names():
            self.place.remove(f"{RESULTS}/{name}")

    def settle(self, *, drop_failed: bool) -> dict[str, bool | None]:
        """Make every path appear once, and return path -> is_anomalous of those that are there.

        drop_failed: remove the rows of failed images, which are to be tried again; else they are returned with the
        value None. Parts that are damaged are removed.
        """
        import pyarrow

        found: dict[str, bool | None] = {}
        for name, table in self._tables(("path", "is_anomalous", "error")):
            if table is None:
                log.warning("%s/%s/%s is damaged and begun anew", self.place.root, RESULTS, name)
                self.place.remove(f"{RESULTS}/{name}")
                continue
            keep = []
            for path, verdict, error in zip(*(column.to_pylist() for column in table.columns), strict=True):
                good = path not in found and not (drop_failed and error is not None)
                keep.append(good)
                if good:
                    found[path] = verdict
            if not any(keep):
                self.place.remove(f"{RESULTS}/{name}")
            elif not all(keep):
                whole = _read(self.place.read(f"{RESULTS}/{name}"))
                assert whole is not None
                self._write(name, whole.filter(pyarrow.array(keep)))
        return found

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of predictions.jsonl, part by part."""
        for _, table in self._tables():
            yield from [] if table is None else map(_record, table.to_pylist())

    def read(self, name: str) -> list[dict[str, Any]]:
        """The records of one part; none when it is not there or damaged."""
        table = _read(self.place.read(f"{RESULTS}/{name}"))
        return [] if table is None else [_record(row) for row in table.to_pylist()]

    def _write(self, name: str, table: Any) -> None:
        from pyarrow import parquet

        buffer = io.BytesIO()
        parquet.write_table(table, buffer, compression="zstd")
        self.place.write(f"{RESULTS}/{name}", buffer.getvalue())

    def _tables(self, columns: Sequence[str] = ()) -> Iterator[tuple[str, Any]]:
        """(name, table) of every part; no table where it is damaged."""

        def load(name: str) -> Any:
            return _read(self.place.read(f"{RESULTS}/{name}"), columns)

        loaded = ordered_map(load, self.names(), workers=READERS, ahead=2 * READERS)
        with closing(loaded):
            for name, future in loaded:
                yield name, future.result()


def schema() -> Any:
    """The columns of a part."""
    import pyarrow as pa

    region = pa.struct({"box": pa.list_(pa.int32()), "area": pa.int64(), "peak": pa.float64()})
    return pa.schema(
        {
            "path": pa.string(),
            "score": pa.float64(),
            "threshold": pa.float64(),
            "is_anomalous": pa.bool_(),
            "width": pa.int32(),
            "height": pa.int32(),
            "map_max": pa.float64(),
            "regions": pa.list_(region),
            "files": pa.struct({kind: pa.string() for kind in KINDS}),
            "seconds": pa.float64(),
            "error": pa.string(),
        }
    )


def part_name(first: int, names: Sequence[str]) -> str:
    """The file of a unit: the same whichever worker scores it, and whenever. first: place of its first image."""
    digest = hashlib.sha256("\0".join(names).encode()).hexdigest()
    return f"part-{first:012d}-{digest[:8]}.parquet"


def write_tables(parts: Parts, names: Sequence[str], rows: int, limit: int) -> bool:
    """predictions.jsonl and predictions.csv from the parts, in the order of `names`; not above `limit` rows.

    Returns whether they were written. Raises OutputError.
    """
    place = parts.place
    if rows > limit:
        for name in (LINES_FILE, CSV_FILE):
            place.remove(name)
        return False
    if place.local is not None:
        _write_tables(parts, names, place.local)
        return True
    with tempfile.TemporaryDirectory(prefix="blemish-") as folder:
        _write_tables(parts, names, Path(folder))
        for name in (LINES_FILE, CSV_FILE):
            place.write(name, (Path(folder) / name).read_bytes())
    return True


def check_place(place: Place, *, resume: bool, overwrite: bool) -> None:
    """Refuse an output folder that holds an earlier run, as `blemish.run.predict.check_output` does, by URL too."""
    if not (resume or overwrite) and not {RUN_FILE, LINES_FILE, RESULTS}.isdisjoint(place.names("")):
        raise OutputError(
            f"{place.root} holds an earlier run; go on with it with --resume, replace it with --overwrite, "
            f"or choose another folder with --out"
        )


def _write_tables(parts: Parts, names: Sequence[str], folder: Path) -> None:
    with PredictionWriter(folder) as writer:
        for values in parts.records():
            writer.write(values)
        writer.finish(names)


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a part as the record it was made from."""
    if row["error"] is not None:
        return {"path": row["path"], "error": row["error"]}
    values = {key: value for key, value in row.items() if key != "error"}
    values["files"] = {kind: name for kind, name in (row["files"] or {}).items() if name is not None}
    return values


def _read(content: bytes | None, columns: Sequence[str] = ()) -> Any:
    """A part as a table of some columns, or all; None when it is not there or damaged."""
    from pyarrow import ArrowInvalid, parquet

    try:
        if content is not None:
            return parquet.read_table(io.BytesIO(content), schema=schema()).select(columns or schema().names)
    except (ArrowInvalid, OSError):
        pass
    return None


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
