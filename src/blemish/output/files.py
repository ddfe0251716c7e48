"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from blemish.data.find import printable_name
from blemish.errors import OutputError

Content = bytes | Callable[[BinaryIO], object]


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


def write_whole(path: Path, content: Content) -> None:
    """Write a file under a temporary name beside it and rename, so that a reader never sees a part of it.

    content: the bytes, or a function that writes them to the open binary file it is given. Missing parent
    folders are made. Raises OutputError when the disk or the folder refuses; what `content` raises besides
    OSError passes through. The temporary file is removed in every case, an existing file at `path` kept.
    """
    make_folder(path.parent)
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
