"""Records of equal size on disk, by key: files that are whole or redone, shared by processes, memory-mapped.

A folder holds shards. A shard is written under the ending `.part` by a process that holds its lock, and gets its
own name once it is whole. The lock goes with the process, however that ends, so a part without one is what a
kill has left. Which records are being made, and by whom, therefore needs no bookkeeping that could go stale.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import mmap
import os
import struct
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import ModuleType

import numpy as np

from ..errors import OutputError
from ..files import cannot_write, make_folder, printable_name

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

PAGE = 4096
LOCK_FILE = "lock"
_START, _END = b"blmfeat1", b"blmwhole"
_PREAMBLE = struct.Struct("<8sQ")  # _START, bytes of the JSON header that follows
_TRAILER = struct.Struct("<8sQII")  # _END, records, checksum of the header, checksum of the records
_OPEN_MAPS = 64  # each holds a file descriptor
_CHECKERS = 4
# What file systems without locks answer
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Shard:
    """A file whose frame is sound: header, size and trailer agree. start: of its first record.

    checksum: what its records must sum to; sound: whether that has been looked at, by this process.
    """

    path: Path
    keys: tuple[str, ...]
    start: int
    checksum: int
    sound: bool = False


class ShardStore:
    """The records under `folder` that were made for `identity`, each of `record` bytes.

    record: a multiple of `PAGE`. Reading needs no permission to write, and creates nothing. Threads may share
    a store. Where the system or the file system has no locks, processes that build the same keys at once do
    some of the work twice; what they leave is sound all the same.
    """

    def __init__(self, folder: Path, identity: str, record: int) -> None:
        if record <= 0 or record % PAGE:
            raise ValueError(f"record is {record} bytes; expected a multiple of {PAGE}")
        self.folder, self.identity, self.record = folder, identity, record
        self._shards: dict[str, Shard] = {}
        self._damaged: set[str] = set()
        self._index: dict[str, tuple[Shard, int]] = {}
        self._maps: OrderedDict[str, mmap.mmap] = OrderedDict()
        self._guard = threading.RLock()

    def absent(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys`, in order, that no sound shard holds. A shard is checked when first asked for."""
        keys = list(keys)
        with self._guard:
            self._refresh()
            while unchecked := self._unchecked(keys):
                self._check(unchecked)
            return [key for key in keys if key not in self._index]

    def locate(self, keys: Sequence[str]) -> list[tuple[mmap.mmap, int]]:
        """Where each record is: a private memory map and the offset in it. Raises KeyError (the first absent)."""
        with self._guard:
            if any(key not in self._index for key in keys) or self._unchecked(keys):
                for key in self.absent(keys):
                    raise KeyError(key)
            places = []
            for key in keys:
                shard, number = self._index[key]
                try:
                    places.append((self._map(shard), shard.start + number * self.record))
                except FileNotFoundError:
                    raise KeyError(key) from None
        if hasattr(mmap, "MADV_WILLNEED"):
            for mapped, offset in places:  # so that the disk reads whole records, all at once
                mapped.madvise(mmap.MADV_WILLNEED, offset, self.record)
        return places

    def claim(self, keys: Sequence[str]) -> Part | None:
        """Begin a shard for those of `keys` that are neither stored nor being made; None when there are none.

        Removes damaged shards and what kills have left. Raises OutputError.
        """
        with self.locked():
            taken = {key for _, found in self._parts() for key in found}
            wanted = [key for key in self.absent(keys) if key not in taken]
            with self._guard:
                for name in self._damaged:
                    (self.folder / name).unlink(missing_ok=True)
                self._damaged.clear()
            return Part(self, wanted) if wanted else None

    def wait(self, keys: Sequence[str]) -> None:
        """Until some part that others are making for `keys` is done, or its process has ended."""
        wanted = set(keys)
        with self.locked():
            busy = [path for path, found in self._parts() if wanted.intersection(found)]
        for path in busy[:1]:
            log.info("waiting for another process that builds features in %s", printable_name(self.folder))
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                _lock(file, shared=True)

    def _refresh(self) -> None:
        """Notice the shards that have come or gone."""
        names = {path.name for path in self.folder.glob("*.shard")}
        for name in self._shards.keys() - names:
            self._drop(name)
        for name in sorted(names - self._shards.keys() - self._damaged):
            path = self.folder / name
            try:
                shard = read_shard(path, self.identity, self.record)
            except ValueError as error:
                self._warn(name, error)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _cannot_read(path, error) from error
            else:
                self._shards[name] = shard
                self._index.update((key, (shard, number)) for number, key in enumerate(shard.keys))

    def _drop(self, name: str) -> None:
        """Forget a shard; its keys may also be in others."""
        del self._shards[name]
        self._maps.pop(name, None)
        self._index = {
            key: (shard, number) for shard in self._shards.values() for number, key in enumerate(shard.keys)
        }

    def _unchecked(self, keys: Iterable[str]) -> list[Shard]:
        found = {self._index[key][0] for key in keys if key in self._index}
        return [shard for shard in found if not shard.sound]

    def _check(self, shards: Sequence[Shard]) -> None:
        """Compare the checksums of shards; damaged ones are as good as absent."""
        with ThreadPoolExecutor(min(_CHECKERS, os.cpu_count() or 1)) as pool:
            found = list(pool.map(lambda shard: is_sound(shard, self.identity, self.record), shards))
        for shard, sound in zip(shards, found, strict=True):
            shard.sound = sound
            if not sound:
                self._warn(shard.path.name, "it is not what was written")
                self._drop(shard.path.name)

    def _warn(self, name: str, reason: object) -> None:
        self._damaged.add(name)
        log.warning("%s is damaged and will be redone: %s", printable_name(self.folder / name), reason)

    def _map(self, shard: Shard) -> mmap.mmap:
        mapped = self._maps.get(shard.path.name)
        if mapped is None:
            # Private: torch wants buffers that can be written, and what is written never reaches the file.
            with shard.path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._maps[shard.path.name] = mapped
            if len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)  # closed when its last reader lets go
        self._maps.move_to_end(shard.path.name)
        return mapped

    def _parts(self) -> Iterator[tuple[Path, tuple[str, ...]]]:
        """Parts that living processes are making, with their keys; others are removed. Under the lock."""
        for path in self.folder.glob("*.part"):
            with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                free = _lock(file, wait=False, shared=True)
                if free:
                    path.unlink(missing_ok=True)
                elif free is not None:
                    with contextlib.suppress(ValueError):
                        yield path, _keys(_read_header(file), self.identity, self.record)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process or thread at a time, for the moment that it takes to list, begin or rename files."""
        make_folder(self.folder)
        path = self.folder / LOCK_FILE
        try:
            file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        with file:
            _lock(file)
            yield


class Part:
    """A shard in the making, held by this process until it is closed. Made by `ShardStore.claim`.

    keys: what it is for, in the order in which `append` expects the records.
    """

    def __init__(self, store: ShardStore, keys: Sequence[str]) -> None:
        self.keys = tuple(keys)
        self._store = store
        self._path = store.folder / f"{uuid.uuid4().hex}.part"
        self._count = self._checksum = 0
        described = json.dumps({"identity": store.identity, "record": store.record, "keys": self.keys})
        header = _PREAMBLE.pack(_START, len(described)) + described.encode()
        header += bytes(-len(header) % PAGE)
        self._start, self._header_sum = len(header), zlib.crc32(header)
        try:
            self._file = self._path.open("xb", buffering=0)
            _lock(self._file)
            _write(self._file, header)
        except OSError as error:
            self._discard()
            raise cannot_write(self._path, error) from error

    def append(self, record: np.ndarray) -> None:
        """Write the next record: uint8 (record,). Raises OutputError; what was appended before stays good."""
        if record.shape != (self._store.record,) or record.dtype != np.uint8:
            raise ValueError(
                f"record is {record.dtype} {record.shape}; expected uint8 ({self._store.record},)"
            )
        if self._count == len(self.keys):
            raise ValueError(f"this shard is for {len(self.keys)} records")
        try:
            _write(self._file, record.data)
        except OSError as error:
            raise cannot_write(self._path, error) from error
        self._count += 1
        self._checksum = page_sums(record, self._checksum)

    def close(self) -> None:
        """Publish what was appended, or remove the file when that is nothing. Raises OutputError."""
        if self._file.closed:
            return
        if not self._count:
            self._discard()
            return
        final = self._path.with_suffix(".shard")
        try:
            end = self._start + self._count * self._store.record
            self._file.truncate(end)
            self._file.seek(end)
            _write(self._file, _TRAILER.pack(_END, self._count, self._header_sum, self._checksum))
            with self._store.locked():
                # Closing gives the lock away, so nobody may look before the new name is there.
                self._file.close()
                self._path.rename(final)
        except OSError as error:
            self._discard()
            raise error if isinstance(error, OutputError) else cannot_write(final, error) from error

    def _discard(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_shard(path: Path, identity: str, record: int) -> Shard:
    """The frame of a finished file, without its records. Raises ValueError naming what is damaged."""
    with path.open("rb", buffering=0) as file:
        header = _read_header(file)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TRAILER.size))
        tail = file.read(_TRAILER.size)
    if len(tail) < _TRAILER.size or not tail.startswith(_END):
        raise ValueError("it ends early")
    _, count, header_sum, checksum = _TRAILER.unpack(tail)
    if zlib.crc32(header) != header_sum:
        raise ValueError("the checksum of its header does not fit")
    keys = _keys(header, identity, record)
    if not 0 < count <= len(keys) or size != len(header) + count * record + _TRAILER.size:
        raise ValueError(f"its {size} bytes are not those of {count} records")
    return Shard(path, keys[:count], len(header), checksum)


def is_sound(shard: Shard, identity: str, record: int) -> bool:
    """Whether all of a shard can be read and is what was written.

    By reading, not through a map, as there a bad disk ends the process.
    """
    total, buffer = 0, np.empty(record, np.uint8)
    try:
        frame = read_shard(shard.path, identity, record)
        with shard.path.open("rb", buffering=0) as file:
            file.seek(shard.start)
            for _ in frame.keys:
                if file.readinto(buffer.data) < record:
                    return False
                total = page_sums(buffer, total)
    except ValueError:
        return False
    except OSError as error:
        if error.errno in (errno.EIO, errno.ENOENT):
            return False
        raise _cannot_read(shard.path, error) from error
    return (frame.keys, frame.start) == (
        shard.keys,
        shard.start,
    ) and total == frame.checksum == shard.checksum


def page_sums(record: np.ndarray, checksum: int = 0) -> int:
    """Checksum of uint8 bytes (a multiple of `PAGE`), going on from that of the bytes before.

    A CRC over the sums of all pages. It is there for what happens to files (lost pages, flipped bits, parts of
    other files) and takes a seventh of the time of a CRC over every byte.
    """
    sums = record.view("<u8").reshape(-1, PAGE // 8).sum(axis=1)
    return zlib.crc32(sums, checksum)


def _read_header(file: FileIO) -> bytes:
    """The header of a shard or part, padded to whole pages. Raises ValueError."""
    head = file.read(_PREAMBLE.size)
    if len(head) < _PREAMBLE.size or not head.startswith(_START):
        raise ValueError("it does not begin as a file of features")
    length = int(_PREAMBLE.unpack(head)[1])
    if length > os.fstat(file.fileno()).st_size:
        raise ValueError("it ends early")
    return head + file.read(length + -(len(head) + length) % PAGE)


def _keys(header: bytes, identity: str, record: int) -> tuple[str, ...]:
    """The keys that a header lists. Raises ValueError when it belongs to other features."""
    described = json.loads(header[_PREAMBLE.size :].rstrip(b"\0"))
    if (described["identity"], described["record"]) != (identity, record):
        raise ValueError("it belongs to other features")
    return tuple(described["keys"])


def _cannot_read(path: Path, error: OSError) -> OutputError:
    cause = (error.strerror or str(error)).lower()
    return OutputError(
        f"cannot read {printable_name(path)}: {cause}; mend that, or choose another cache folder"
    )


def _lock(file: FileIO, *, wait: bool = True, shared: bool = False) -> bool | None:
    """Lock an open file until it is closed or the process ends. False: another holds it; None: no locks here."""
    if fcntl is None:
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file.fileno(), kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _write(file: FileIO, data: bytes | memoryview) -> None:
    """All of the data: one call may write less, as when the disk fills up."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]
