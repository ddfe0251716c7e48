"""What stands in an exported file beside its weights, read without any engine: metadata, names of weight files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from xml.etree import ElementTree

from blemish.deploy.metadata import PREFIX
from blemish.errors import BadModel

# Numbers of the fields in ONNX's protocol buffers: of the model, its graph, a tensor, and a pair of texts.
_GRAPH, _OPSETS, _METADATA = 7, 8, 14
_INITIALIZER, _EXTERNAL_DATA = 5, 13
_KEY, _VALUE, _DOMAIN, _VERSION = 1, 2, 1, 2
_TEXT_LIMIT = 1 << 24
# A number, or the (start, stop) of a text or of an inner message.
Field = int | tuple[int, int]


@dataclass(frozen=True)
class Contents:
    """properties: the metadata. opset: ONNX's, else None. weights: names of files beside the model that it reads."""

    properties: dict[str, str]
    opset: int | None
    weights: tuple[str, ...]


def read_contents(path: Path) -> Contents:
    """Of an ONNX or OpenVINO file, by its ending; weights are skipped. Raises BadModel for a file of another kind."""
    return _read_openvino(path) if path.suffix.lower() == ".xml" else _read_onnx(path)


def missing_weights(path: Path, contents: Contents) -> list[str]:
    """Files that a model reads its weights from and that are not beside it."""
    return [name for name in contents.weights if not path.with_name(name).is_file()]


def _read_openvino(path: Path) -> Contents:
    """Raises BadModel."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError) as error:
        raise BadModel(f"{path}: not an OpenVINO model ({error})") from error
    rows = root.findall(f"rt_info/{PREFIX.rstrip('.')}/*")
    properties = {f"{PREFIX}{row.tag}": row.get("value", "") for row in rows}
    return Contents(properties, None, (path.with_suffix(".bin").name,))


def _read_onnx(path: Path) -> Contents:
    """Reads past the weights. Raises BadModel."""
    properties: dict[str, str] = {}
    weights: dict[str, None] = {}
    opset = None
    try:
        with path.open("rb") as file:
            for number, field in _fields(file, 0, path.stat().st_size):
                if number == _METADATA:
                    key, value = _pair(file, field)
                    properties[key] = value
                elif number == _OPSETS:
                    domain, version = _opset(file, field)
                    opset = version if domain in ("", "ai.onnx") else opset
                elif number == _GRAPH:
                    weights |= dict.fromkeys(_weight_files(file, field))
    except (EOFError, ValueError, OSError) as error:
        raise BadModel(f"{path}: not an ONNX model, or damaged ({error})") from error
    return Contents(properties, opset, tuple(weights))


def _weight_files(file: BinaryIO, graph: Field) -> Iterator[str]:
    """Names of the files that hold weights of a graph."""
    for number, tensor in _inner(file, graph):
        if number == _INITIALIZER:
            for inner, entry in _inner(file, tensor):
                if inner == _EXTERNAL_DATA:
                    key, value = _pair(file, entry)
                    if key == "location":
                        yield value


def _pair(file: BinaryIO, field: Field) -> tuple[str, str]:
    values = {number: _text(file, inner) for number, inner in _inner(file, field)}
    return values.get(_KEY, ""), values.get(_VALUE, "")


def _opset(file: BinaryIO, field: Field) -> tuple[str, int]:
    domain, version = "", 0
    for number, inner in _inner(file, field):
        if number == _DOMAIN:
            domain = _text(file, inner)
        elif number == _VERSION and isinstance(inner, int):
            version = inner
    return domain, version


def _inner(file: BinaryIO, field: Field) -> Iterator[tuple[int, Field]]:
    if isinstance(field, int):
        raise ValueError("a number where a message belongs")
    return _fields(file, *field)


def _text(file: BinaryIO, field: Field) -> str:
    if isinstance(field, int) or field[1] - field[0] > _TEXT_LIMIT:
        raise ValueError("no text where one belongs")
    file.seek(field[0])
    return file.read(field[1] - field[0]).decode()


def _fields(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[int, Field]]:
    """(number, value) of the fields of a message that lies from `start` to `stop` of a file; any may be skipped.

    Raises EOFError and ValueError for what is no message.
    """
    while start < stop:
        file.seek(start)
        number, kind = divmod(_varint(file), 8)
        value: Field
        if kind == 0:
            value = _varint(file)
            start = file.tell()
        elif kind in (1, 5):
            value, start = 0, file.tell() + (8 if kind == 1 else 4)
        elif kind == 2:
            length = _varint(file)
            value = (file.tell(), file.tell() + length)
            start = value[1]
        else:
            raise ValueError("its content is of another kind")
        if start > stop:
            raise EOFError("it ends too early")
        yield number, value


def _varint(file: BinaryIO) -> int:
    """A number of up to 64 bits, seven to a byte."""
    found = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends too early")
        found |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return found
    raise ValueError("its content is of another kind")
