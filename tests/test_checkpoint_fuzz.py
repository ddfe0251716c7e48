"""Checkpoint files that are not as they were written: one error of the package in one or two lines, or a checkpoint."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blemish.checkpoint import is_checkpoint, load_checkpoint, read_fields, read_meta
from blemish.errors import BadCheckpoint, BlemishError
from blemish.few_shot import MemoryMeta
from blemish.loading import EMBEDDED, load
from blemish.methods import official

WHOLE = (EMBEDDED / "anomaly_clip.safetensors").read_bytes()
LENGTH = struct.unpack("<Q", WHOLE[:8])[0]
HEADER: dict[str, Any] = json.loads(WHOLE[8 : 8 + LENGTH])
fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
quick = settings(max_examples=60, deadline=None, suppress_health_check=fixtures)
slow = settings(max_examples=12, deadline=None, suppress_health_check=fixtures)

ODD_TEXT = st.sampled_from(
    [
        "",
        "null",
        "[]",
        "{}",
        "-1",
        "1e999",
        "NaN",
        "true",
        '"x"',
        "[1,2",
        "a\nb",
        "9" * 5000,
        "[" * 2000,
        '{"vision": 3}',
    ]
)
ODD_VALUE = st.sampled_from([None, [], {}, "x", -1, 0, 1e300, True, "a\nb", [1, [2]], 10**30])


def joined(header: dict[str, Any]) -> bytes:
    """The file with another header."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + WHOLE[8 + LENGTH :]


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """The file with changed bytes, cut short, or random."""
    kind = draw(st.sampled_from(["bytes", "cut", "random"]))
    if kind == "cut":
        return WHOLE[: draw(st.integers(0, len(WHOLE) - 1))]
    if kind == "random":
        return draw(st.binary(max_size=200))
    data = bytearray(WHOLE)
    for _ in range(draw(st.integers(1, 4))):
        data[draw(st.integers(0, LENGTH + 40))] = draw(st.integers(0, 255))
    return bytes(data)


@st.composite
def odd_header(draw: st.DrawFn) -> bytes:
    """A whole safetensors file that says something odd about itself."""
    header = json.loads(json.dumps(HEADER))
    meta = header["__metadata__"]
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(sorted(HEADER["__metadata__"])))
        change = draw(st.sampled_from(["text", "lost", "inner"]))
        if change == "text":
            meta[key] = draw(ODD_TEXT)
        elif change == "lost":
            meta.pop(key, None)
        elif isinstance(values := _json(meta.get(key)), dict) and values:
            values[draw(st.sampled_from(sorted(values)))] = draw(ODD_VALUE)
            meta[key] = json.dumps(values)
        else:
            meta[key] = json.dumps(draw(ODD_VALUE))
    return joined(header)


def _json(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def refused_in_words(read: Any, path: Path) -> bool:
    """Whether it was refused, which must be by an error that is fit to be shown."""
    try:
        read(path)
    except BlemishError as error:
        assert 0 < len(str(error).splitlines()) <= 2 and len(str(error)) < 6000
        return True
    return False


@quick
@given(st.one_of(changed(), odd_header()))
def test_headers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert is_checkpoint(path) in (True, False)
    refused = refused_in_words(read_meta, path)
    assert refused_in_words(load_checkpoint, path) >= refused
    if not refused:
        meta = read_meta(path)
        assert isinstance(meta.method, str) and isinstance(meta.options, dict)
        assert meta.image_threshold is None or -1e15 < meta.image_threshold < 1e15


@slow
@given(odd_header())
def test_loading(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    refused_in_words(lambda it: load(checkpoint=it, backbone="tiny"), path)


@quick
@given(
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02}q\0"]),
    st.one_of(changed(), st.binary(max_size=300)),
)
def test_no_bytes_pass_for_the_authors_files(tmp_path: Path, head: bytes, data: bytes) -> None:
    path = tmp_path / "a.pth"
    path.write_bytes(head + data)
    assert official.recognise(path) is None


def test_the_file_is_whole_before_it_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(joined(HEADER))
    assert read_meta(path).method == "anomaly_clip" and is_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("image_size", '"320"'),
        ("image_size", "true"),
        ("image_size", "320.5"),
        ("image_threshold", '"high"'),
        ("image_threshold", "1e999"),
        ("pixel_threshold", "NaN"),
        ("pixel_threshold", "9" * 400),
        ("options", "[]"),
        ("versions", "null"),
        ("backbone_config", '{"vision": 3}'),
        ("backbone_config", "{"),
    ],
)
def test_fields_of_another_type_are_named(tmp_path: Path, key: str, text: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(joined(HEADER | {"__metadata__": HEADER["__metadata__"] | {key: text}}))
    for read in (read_meta, lambda it: load(checkpoint=it)):
        with pytest.raises(BadCheckpoint, match=key) as caught:
            read(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text"),
    [("images", '"4"'), ("needs", "[]"), ("method", "3"), ("tile", "[1]"), ("overlap", "null")],
)
def test_fields_of_a_memory(tmp_path: Path, key: str, text: str) -> None:
    with pytest.raises(BadCheckpoint, match=f"damaged .{key}"):
        read_fields(tmp_path / "a", MemoryMeta, {key: text}, quoted=True)
    good = {"tile": '"square"', "overlap": "0", "method": '"win_clip"'}
    assert read_fields(tmp_path / "a", MemoryMeta, good, quoted=True) == {
        "tile": "square",
        "overlap": 0,
        "method": "win_clip",
    }
