"""Files of records: whole or redone, claimed by one at a time, memory-mapped."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blemish.clip import shards
from blemish.clip.shards import LOCK_FILE, PAGE, ShardStore, page_sums
from blemish.errors import OutputError

RECORD = 2 * PAGE


def record(key: str) -> np.ndarray:
    return np.random.default_rng(list(key.encode())).integers(0, 256, RECORD, dtype=np.uint8)


def make(folder: Path, identity: str = "one") -> ShardStore:
    return ShardStore(folder, identity, RECORD)


def put(store: ShardStore, *keys: str) -> None:
    part = store.claim(keys)
    assert part is not None
    for key in part.keys:
        part.append(record(key))
    part.close()


def holds(store: ShardStore, key: str) -> bool:
    mapped, offset = store.locate([key])[0]
    return bytes(mapped[offset : offset + RECORD]) == record(key).tobytes()


def endings(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir() if path.name != LOCK_FILE)


def test_what_is_put_is_found_by_this_and_by_other_stores(tmp_path: Path) -> None:
    store, other = make(tmp_path), make(tmp_path)
    assert store.absent(["a", "b"]) == ["a", "b"]
    put(store, "a", "b")
    put(other, "c", "a", "ü")
    for each in (store, other, make(tmp_path)):
        assert each.absent(["d", "c", "a", "ü"]) == ["d"]
        assert holds(each, "a")
        assert holds(each, "c")
        assert holds(each, "ü")
    assert len(list(tmp_path.glob("*.shard"))) == 2


def test_asking_creates_nothing(tmp_path: Path) -> None:
    store = make(tmp_path / "none")
    assert store.absent(["a"]) == ["a"]
    with pytest.raises(KeyError, match="a"):
        store.locate(["a"])
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[:10] + bytes([data[10] ^ 64]) + data[11:],  # length of the header
        lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],  # header
        lambda data: (
            data[: PAGE + 77] + bytes([data[PAGE + 77] ^ 1]) + data[PAGE + 78 :]
        ),  # one bit of a record
        lambda data: data[: 2 * PAGE] + bytes(PAGE) + data[3 * PAGE :],  # a page that never reached the disk
        lambda data: (
            data[:PAGE] + data[3 * PAGE : 5 * PAGE] + data[PAGE : 3 * PAGE] + data[5 * PAGE :]
        ),  # swapped
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # trailer
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_damaged_files_are_never_used_and_redone(
    tmp_path: Path, damage: Callable[[bytes], bytes], fresh: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(tmp_path)
    put(store, "a", "b")
    put(store, "c")
    bad = next(p for p in tmp_path.glob("*.shard") if p.stat().st_size > 4 * PAGE)
    bad.write_bytes(damage(bad.read_bytes()))
    # a store that has not looked at the file yet, whether it knew its name or not
    store = make(tmp_path) if fresh else store
    assert store.absent(["a", "b", "c"]) == ["a", "b"]
    with pytest.raises(KeyError):
        store.locate(["c", "a"])
    assert "damaged" in caplog.text
    assert bad.name in caplog.text
    put(store, "a", "b", "c")
    assert not bad.exists()
    assert store.absent(["a", "b", "c"]) == []
    assert all(holds(store, key) for key in "abc")


def test_files_of_other_features_are_not_used(tmp_path: Path) -> None:
    put(make(tmp_path, "one"), "a")
    assert make(tmp_path, "two").absent(["a"]) == ["a"]
    assert ShardStore(tmp_path, "one", PAGE).absent(["a"]) == ["a"]


def test_one_key_is_claimed_once(tmp_path: Path) -> None:
    store, other = make(tmp_path), make(tmp_path)
    first = store.claim(["a", "b"])
    second = other.claim(["a", "b", "c"])
    assert first is not None
    assert second is not None
    assert first.keys == ("a", "b")
    assert second.keys == ("c",)
    assert store.claim(["a", "b", "c"]) is None
    first.close()
    again = other.claim(["a", "c"])
    assert again is not None
    assert again.keys == ("a",)
    again.close()
    second.close()
    assert endings(tmp_path) == []


def test_what_a_kill_has_left_is_removed_and_not_used(tmp_path: Path) -> None:
    store = make(tmp_path)
    part = store.claim(["a", "b"])
    assert part is not None
    part.append(record("a"))
    # The descriptor goes, as it does with a process, but nothing else is done.
    part._file.close()
    (tmp_path / "begun.part").write_bytes(b"")
    assert endings(tmp_path) == [".part", ".part"]
    other = make(tmp_path)
    assert other.absent(["a", "b"]) == ["a", "b"]
    put(other, "a", "b")
    assert endings(tmp_path) == [".shard"]


def test_records_appended_before_an_early_close_are_kept(tmp_path: Path) -> None:
    store = make(tmp_path)
    part = store.claim(["a", "b", "c"])
    assert part is not None
    part.append(record("a"))
    part.close()
    part.close()
    assert make(tmp_path).absent(["a", "b", "c"]) == ["b", "c"]
    assert holds(store, "a")


def test_waiting_ends_with_the_part_waited_for(tmp_path: Path) -> None:
    store, other = make(tmp_path), make(tmp_path)
    part = store.claim(["a"])
    assert part is not None
    other.wait(["b"])  # nobody makes it
    done = threading.Event()

    def wait() -> None:
        other.wait(["a"])
        done.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert not done.wait(0.2)
    part.append(record("a"))
    part.close()
    assert done.wait(10)
    assert other.absent(["a"]) == []


def test_a_full_disk_is_one_error_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(tmp_path)
    part = store.claim(["a", "b"])
    assert part is not None
    part.append(record("a"))
    write = shards._write

    def full(file: object, data: memoryview | bytes) -> None:
        if len(data) == RECORD:
            write(file, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, data)

    monkeypatch.setattr(shards, "_write", full)
    with pytest.raises(OutputError, match="no space left on device; make room"):
        part.append(record("b"))
    part.close()
    assert make(tmp_path).absent(["a", "b"]) == ["b"]
    assert holds(make(tmp_path), "a")


def test_without_locks_the_work_is_done_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "fcntl", None)
    store, other = make(tmp_path), make(tmp_path)
    first, second = store.claim(["a"]), other.claim(["a"])
    assert first is not None
    assert second is not None
    for part in (first, second):
        part.append(record("a"))
        part.close()
    assert make(tmp_path).absent(["a"]) == []
    assert holds(make(tmp_path), "a")


def test_a_file_system_without_locks_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    put(make(tmp_path), "a")
    assert make(tmp_path).absent(["a"]) == []


def test_many_files_stay_within_the_limit_of_open_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_OPEN_MAPS", 3)
    store = make(tmp_path)
    keys = [str(number) for number in range(10)]
    for key in keys:
        put(store, key)
    places = store.locate(keys)
    assert len(store._maps) == 3
    for key, (mapped, offset) in zip(keys, places, strict=True):
        assert bytes(mapped[offset : offset + RECORD]) == record(key).tobytes()


def test_a_deleted_folder_is_noticed(tmp_path: Path) -> None:
    store = make(tmp_path / "cache")
    put(store, "a")
    assert store.absent(["a"]) == []
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    with pytest.raises(KeyError):
        store.locate(["a"])
    assert store.absent(["a"]) == ["a"]


def test_writing_to_a_map_leaves_the_file_alone(tmp_path: Path) -> None:
    store = make(tmp_path)
    put(store, "a")
    mapped, offset = store.locate(["a"])[0]
    mapped[offset : offset + 4] = b"oops"
    assert holds(make(tmp_path), "a")


def test_the_checksum_depends_on_every_byte_and_on_order() -> None:
    base = record("x")
    for place in (0, 7, PAGE - 1, PAGE, RECORD - 1):
        changed = base.copy()
        changed[place] ^= 1
        assert page_sums(changed) != page_sums(base)
    swapped = np.concatenate([base[PAGE:], base[:PAGE]])
    assert page_sums(swapped) != page_sums(base)
    assert page_sums(base[PAGE:], page_sums(base[:PAGE])) == page_sums(base)


def test_wrong_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="multiple of 4096"):
        ShardStore(tmp_path, "one", 100)
    part = make(tmp_path).claim(["a"])
    assert part is not None
    with pytest.raises(ValueError, match="expected uint8"):
        part.append(np.zeros(RECORD, np.float32))
    part.append(record("a"))
    with pytest.raises(ValueError, match="for 1 records"):
        part.append(record("b"))
    part.close()
