"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from blemish.errors import OutputError

Content = bytes | Callable[[BinaryIO], object]


def printable_name(path: str | Path) -> str:
    """The path as text that can be encoded: bytes of a name that are not UTF-8 appear as %XX."""
    return re.sub("[\ud800-\udfff]", lambda m: f"%{ord(m[0]) & 0xFF:02X}", str(path))


def public_backbone(backbone: str) -> str:
    """The name of a backbone in what others may read: of a file or folder the last part alone.

    A path may tell a user's name, and the fingerprint says more about the weights.
    """
    return Path(backbone).name if Path(backbone).exists() else backbone


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The OutputError for a failed write: file, cause, mend."""
    cause = (error.strerror or str(error) or type(error).__name__).lower()
    mend = "choose another output folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "make room or choose another output folder"
    elif error.errno in (errno.EACCES, errno.EPERM):
        mend = "change the permissions or choose another output folder"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        cause = "a file is where a folder should be"
    return OutputError(f"cannot write {printable_name(path)}: {cause}; {mend}")


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it at the end, so that a reader never sees a part of the file.

    Missing parent folders are made. Raises OutputError when the disk or the folder refuses; what else is
    raised inside passes through. The temporary file is removed in every case, an existing file at `path` kept.
    """
    make_folder(path.parent)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: Content) -> None:
    """Write a file whole or not at all; see `whole`.

    content: the bytes, or a function that writes them to the open binary file it is given. Raises OutputError.
    """
    with whole(path) as temporary, temporary.open("xb") as file:
        if callable(content):
            content(file)
        else:
            file.write(content)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
