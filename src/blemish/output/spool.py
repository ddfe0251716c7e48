"""The gallery's small pictures, kept on disk while a run goes on."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

from blemish.files import cannot_write, make_folder, printable_name, write_whole


class _Entry(NamedTuple):
    """Where one pair lies in the file: begin of its header, begin and lengths of its pictures, its score."""

    start: int
    data: int
    photo: int
    heat: int
    score: float

    @property
    def end(self) -> int:
        return self.data + self.photo + self.heat


class GallerySpool:
    """Pairs of JPEG pictures by image path, in one hidden file of the output folder. A context manager.

    out: the output folder, made when missing. resume: keep the pairs of an earlier run; a torn last one is
    cut off. limit: at most twice as many pairs are kept, those of the highest scores, so that file and memory
    stay bounded whatever the number of images. The file stays after the run, for `resume`. Threads may share
    a spool.
    """

    NAME = ".gallery.spool"

    def __init__(self, out: Path, resume: bool = False, limit: int = 300) -> None:
        self.path = out / self.NAME
        self.limit = limit
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._floor = -float("inf")
        make_folder(out)
        try:
            self._file: BinaryIO = self.path.open("r+b" if resume and self.path.exists() else "w+b")
            self._scan()
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def __len__(self) -> int:
        return len(self._entries)

    def wants(self, score: float) -> bool:
        """Whether a pair with this score could still be shown; if not, its pictures need not be made."""
        return score > self._floor

    def add(self, path: str | Path, score: float, photo: bytes, heat: bytes) -> None:
        """Append a pair of JPEG files; a later pair of one path replaces the earlier. Raises OutputError."""
        name = printable_name(path)
        about = {"path": name, "score": score, "photo": len(photo), "heat": len(heat)}
        header = json.dumps(about).encode() + b"\n"
        with self._lock:
            if not self.wants(score):
                return
            start = self._file.seek(0, 2)
            try:
                self._file.write(header + photo + heat)
                self._file.flush()
            except OSError as error:
                raise cannot_write(self.path, error) from error
            self._entries[name] = _Entry(start, start + len(header), len(photo), len(heat), score)
            if len(self._entries) > 2 * self.limit:
                self._compact()

    def pictures(self, path: str | Path) -> tuple[bytes, bytes] | None:
        """(photo, heat map) as JPEG, or None when this image has no pair."""
        with self._lock:
            entry = self._entries.get(printable_name(path))
            if entry is None:
                return None
            self._file.seek(entry.data)
            return self._file.read(entry.photo), self._file.read(entry.heat)

    def close(self) -> None:
        """Close the file; it stays on disk."""
        # What `add` could not write is still buffered: trying it again would hide the error already raised.
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> GallerySpool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _scan(self) -> None:
        """Find the pairs of the file and cut off what is torn at its end."""
        size = self._file.seek(0, 2)
        start = self._file.seek(0)
        while start < size:
            line = self._file.readline()
            try:
                header = json.loads(line)
                entry = _Entry(start, start + len(line), header["photo"], header["heat"], header["score"])
                name = header["path"]
            except (ValueError, KeyError, TypeError):
                break
            if entry.end > size:
                break
            self._entries[name] = entry
            start = self._file.seek(entry.end)
        self._file.truncate(start)

    def _compact(self) -> None:
        """Rewrite the file with the `limit` highest scores."""
        best = sorted(self._entries.items(), key=lambda item: -item[1].score)[: self.limit]
        best.sort(key=lambda item: item[1].start)

        def copy(file: BinaryIO) -> None:
            for _, entry in best:
                self._file.seek(entry.start)
                file.write(self._file.read(entry.end - entry.start))

        write_whole(self.path, copy)
        self._file.close()
        self._file = self.path.open("r+b")
        self._entries = {}
        self._scan()
        self._floor = min(entry.score for entry in self._entries.values())
