"""What a run at scale is given, as a list: local pictures, pictures in object stores, tables of paths or bytes."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from blemish.data.find import IMAGE_ENDINGS, find_images, free_name, natural_key
from blemish.errors import BadOption
from blemish.files import printable_name

TABLE_ENDINGS = (".parquet", ".pq")
ROWS_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Item:
    """One picture to be scored, or an input that gave none.

    name: its `path` in the results, unique in its list. relative: where its saved pictures go, unique even without
    the ending. source: absolute path or URL of the picture's file, or of the table that holds its bytes in row `row`
    of row group `group`; -1 for files. error: why there is no picture.
    """

    name: str
    relative: str
    source: str
    group: int = -1
    row: int = -1
    error: str | None = None

    @property
    def in_table(self) -> bool:
        """Whether its bytes are a table's."""
        return self.row >= 0


def is_url(text: str) -> bool:
    """Whether an input or output names a place in a file system of fsspec's."""
    return "://" in text


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL or a local path, and the path in it.

    Raises BadOption for a protocol that is unknown or whose package is absent, and for chained URLs.
    """
    import fsspec

    if "::" in url:
        raise BadOption(
            f"{url}: chained URLs are not supported; name the object store itself, as in s3://bucket"
        )
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(url.partition("://")[0])
        mend = f"pip install {package}" if package else str(error).rstrip(".")
        raise BadOption(f"{url}: the package for this kind of address is missing; {mend}") from error
    except Exception as error:  # every file system has errors of its own
        raise BadOption(f"{url}: not an address that can be used ({cause_of(error)})") from error
    return found


def list_items(inputs: Iterable[str]) -> list[Item]:
    """What the inputs name, in their order; the same picture named twice appears once.

    inputs: those of `blemish.data.find.find_images`; URLs of fsspec's (files, folders, globs); parquet tables, local
    or by URL (files, or folders that hold them and no images), with a column `path` or `bytes` and perhaps `name`.
    A missing or empty input is an item with an error. Raises BadOption for tables and URLs that cannot be read.
    """
    listing, local = _Listing(), list[str]()
    for text in inputs:
        if is_url(text) or _is_local_table(text):
            listing.add_local(local)
            local = []
            (listing.add_url if is_url(text) else listing.add_table)(text)
        else:
            local.append(text)
    listing.add_local(local)
    return listing.items


class _Listing:
    """Collects items without duplicates, with names and places of their own."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self._sources: set[object] = set()
        self._names: set[str] = set()
        self._places: set[Path] = set()

    def add(
        self,
        name: str,
        relative: Path,
        source: str,
        *,
        group: int = -1,
        row: int = -1,
        error: str | None = None,
    ) -> None:
        key = source.removeprefix("file://"), group, row
        if key in self._sources:
            return
        self._sources.add(key)
        name, number = printable_name(name), 2
        unique = name
        while unique in self._names:
            unique, number = f"{name}#{number}", number + 1
        self._names.add(unique)
        place = free_name(relative, self._places) if error is None else relative
        self.items.append(Item(unique, place.as_posix(), source, group, row, error))

    def add_local(self, inputs: Sequence[str]) -> None:
        for ref in find_images(inputs):
            source = os.path.abspath(ref.path)  # noqa: PTH100 - `resolve` would follow links
            error = None if ref.error is None else ref.error.removeprefix(f"{printable_name(ref.path)}: ")
            self.add(str(ref.path), ref.relative, source, error=error)

    def add_url(self, url: str) -> None:
        if url.lower().endswith(TABLE_ENDINGS):
            self.add_table(url)
            return
        fs, path = filesystem(url)
        try:
            root, files = _find(fs, path)
        except Exception as error:  # every file system has errors of its own
            raise BadOption(f"{url}: cannot be listed ({cause_of(error)})") from error
        images = [f for f in files if f == path or f.lower().endswith(IMAGE_ENDINGS)]
        if not images and any(f.lower().endswith(TABLE_ENDINGS) for f in files):
            self.add_table(url)
        elif not images:
            cause = f"no images here (looked for {' '.join(IMAGE_ENDINGS)})" if files else "nothing is here"
            self.add(url, _relative(url), url, error=cause)
        for file in sorted(images, key=lambda f: natural_key(Path(f))):
            full = fs.unstrip_protocol(file)
            self.add(full, _relative(file[len(root) :] if file.startswith(root) else file), full)

    def add_table(self, text: str) -> None:
        fs, path = filesystem(text)
        try:
            files = (
                [path] if fs.isfile(path) else sorted(_tables(fs, path), key=lambda f: natural_key(Path(f)))
            )
        except Exception as error:
            raise BadOption(f"{text}: cannot be listed ({cause_of(error)})") from error
        before = len(self.items)
        for file in files:
            url = fs.unstrip_protocol(file) if is_url(text) else file
            self._add_rows(fs, file, url)
        if not files:
            raise BadOption(f"{text}: no such table; expected a parquet file, or a folder with some")
        if len(self.items) == before:
            raise BadOption(f"{text}: the table has no rows that are not named already")

    def _add_rows(self, fs: Any, file: str, url: str) -> None:
        folder, number = url.rpartition("/")[0], 0
        try:
            with fs.open(file, "rb") as stream:
                for group, rows in enumerate(_named_rows(stream, url)):
                    for row, (path, name) in enumerate(rows):
                        self._add_row(path, name, url, folder, (group, row, number))
                        number += 1
        except BadOption:
            raise
        except Exception as error:  # pyarrow meets damaged files with errors of many types
            raise BadOption(f"{url}: cannot be read as a parquet table ({cause_of(error)})") from error

    def _add_row(
        self, path: str | None, name: str | None, table: str, folder: str, place: tuple[int, int, int]
    ) -> None:
        """One row of a table. path: of the picture; None where the row itself holds it."""
        group, row, number = place
        label = name or path or f"{PurePosixPath(table).name}#{number}"
        if path is None:
            self.add(label, _relative(label), table, group=group, row=row)
        elif not path.strip():
            self.add(label, _relative(label), f"{table}#{number}", error="the row has no path")
        else:
            source = path if is_url(path) or path.startswith("/") else _beside(folder, path)
            self.add(label, _relative(path), source)


def read_rows(items: Iterable[Item]) -> Iterator[bytes | str]:
    """The bytes of pictures in tables, or why there are none; rows of one row group are read in one pass."""
    for (table, group), run in groupby(items, key=lambda item: (item.source, item.group)):
        rows = [item.row for item in run]
        given = 0
        try:
            for content in _row_bytes(table, group, rows):
                yield content
                given += 1
        except Exception as error:  # pyarrow meets damaged files with errors of many types
            yield from [f"the table cannot be read ({cause_of(error)})"] * (len(rows) - given)


def read_url(url: str) -> bytes | str:
    """The bytes of a file at a URL, or why there are none."""
    try:
        fs, path = filesystem(url)
        content: bytes = fs.cat_file(path)
    except FileNotFoundError:
        return "no such file"
    except PermissionError:
        return "permission denied"
    except Exception as error:  # every file system has errors of its own
        return f"cannot be read ({cause_of(error)})"
    return content


def _row_bytes(table: str, group: int, rows: Sequence[int]) -> Iterator[bytes | str]:
    from pyarrow import parquet

    fs, path = filesystem(table)
    wanted, first = iter(rows), 0
    row = next(wanted, None)
    with fs.open(path, "rb") as stream:
        file = parquet.ParquetFile(stream)
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=["bytes"]):
            while row is not None and row < first + len(batch):
                content = batch.column(0)[row - first].as_py()
                yield "the row has no bytes" if content is None else content
                row = next(wanted, None)
            first += len(batch)
            if row is None:
                return


def _named_rows(stream: BinaryIO, url: str) -> Iterator[Iterable[tuple[str | None, str | None]]]:
    """(path, name) of the rows of each row group; path is None for tables of bytes."""
    import pyarrow
    from pyarrow import parquet

    file = parquet.ParquetFile(stream)
    schema = file.schema_arrow
    kinds: tuple[str, ...]
    if "bytes" in schema.names:
        source, kinds = "bytes", ("binary", "large_binary", "fixed_size_binary")
    elif "path" in schema.names:
        source, kinds = "path", ("string", "large_string")
    else:
        raise BadOption(f"{url}: has columns {', '.join(schema.names) or 'none'}; expected path or bytes")
    kind = schema.field(source).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not str(kind).startswith(kinds):
        raise BadOption(f"{url}: column {source} holds {kind}; expected {kinds[0]}")
    columns = [name for name in ("path", "name") if name in schema.names]
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        found = file.read_row_group(group, columns=columns)
        values = {name: map(_text, found.column(name).to_pylist()) for name in columns}
        nothing: list[str | None] = [None] * count
        paths, names = (list(values.get(name, nothing)) for name in ("path", "name"))
        if source == "bytes":
            yield ((None, name or path) for path, name in zip(paths, names, strict=True))
        else:
            yield ((path or "", name) for path, name in zip(paths, names, strict=True))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _find(fs: Any, path: str) -> tuple[str, list[str]]:
    """(folder below which relative names are kept, files) of a path in a file system: file, folder or glob."""
    if any(mark in path for mark in "*?["):
        fixed = min(path.index(mark) for mark in "*?[" if mark in path)
        return path[: path.rfind("/", 0, fixed) + 1], [f for f in fs.glob(path) if not fs.isdir(f)]
    if fs.isfile(path):
        return path[: path.rfind("/") + 1], [path]
    root = path.rstrip("/") + "/"
    files = fs.find(path)
    return root, [f for f in files if not any(p.startswith(".") for p in f[len(root) :].split("/"))]


def _tables(fs: Any, path: str) -> list[str]:
    return [f for f in _find(fs, path)[1] if f.lower().endswith(TABLE_ENDINGS)]


def _is_local_table(text: str) -> bool:
    """A parquet file, a folder named like one, or a folder with parquet files and no images directly in it."""
    path = Path(text)
    if text.lower().endswith(TABLE_ENDINGS):
        return True
    try:
        endings = {child.suffix.lower() for child in path.iterdir()} if path.is_dir() else set()
    except OSError:
        return False
    return not endings.isdisjoint(TABLE_ENDINGS) and endings.isdisjoint(IMAGE_ENDINGS)


def _beside(folder: str, path: str) -> str:
    """A path relative to a folder, or to a URL of one, below which nobody else resolves ".."."""
    if not is_url(folder) or ".." not in path.split("/"):
        return f"{folder}/{path}"
    protocol, _, place = folder.partition("://")
    return f"{protocol}://{posixpath.normpath(f'{place}/{path}')}"


def _relative(name: str) -> Path:
    """A name as a relative path without "..", for the pictures that are saved."""
    parts = [part for part in printable_name(name).rpartition("://")[2].split("/") if part.strip(". ")]
    return Path(*parts) if parts else Path("image")


def cause_of(error: Exception) -> str:
    """An error of a library in one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(str(text).split()).rstrip(".")
    return line if len(line) <= 200 else f"{line[:200]}..."
