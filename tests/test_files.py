"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import pytest

from blemish.errors import OutputError
from blemish.files import cannot_write, public_backbone, write_whole


def test_writes_bytes_and_streams_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b é" / "c.txt"
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"
    write_whole(path, lambda file: file.write(b"two"))
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]
    plain = tmp_path / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_backbone_that_is_a_file_or_folder_is_shown_without_its_place(tmp_path: Path) -> None:
    file, folder = tmp_path / "clip.safetensors", tmp_path / "weights"
    file.touch()
    folder.mkdir()
    given = (str(file), str(folder), "ViT-L-14-336", "laion/some-clip")
    shown = ["clip.safetensors", "weights", "ViT-L-14-336", "laion/some-clip"]
    assert [public_backbone(name) for name in given] == shown


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rest(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def full(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*a\.txt: no space left on device") as caught:
        write_whole(path, full)
    assert "\n" not in str(caught.value)

    def stop(file: BinaryIO) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(path, stop)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    for path in (tmp_path / "out" / "a.txt", tmp_path / "out" / "deeper" / "a.txt"):
        with pytest.raises(OutputError, match=r"out.*: a file is where a folder should be; choose another"):
            write_whole(path, b"x")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EACCES, "change the permissions"),
        (errno.EROFS, "; choose another"),
    ],
)
def test_the_mend_fits_the_cause(number: int, words: str) -> None:
    text = str(cannot_write(Path("out/a.png"), OSError(number, os.strerror(number))))
    assert words in text and os.strerror(number).lower() in text


def test_a_full_device() -> None:
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError):
        write_whole(Path("/dev/full/a"), b"x")
