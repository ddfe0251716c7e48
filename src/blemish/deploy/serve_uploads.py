"""Bodies of `POST /v1/predict` -> images and options: multipart forms and JSON with base64."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blemish.deploy.limits import Refused

MAPS = ("none", "png", "tiff")
FIELDS = ("images", "map", "threshold", "pixel_threshold")
NAME_LENGTH = 255
FIELD_LENGTH = 64
OTHER_PARTS = 8  # of a form, besides its images
MARKS_OF_JSON = 50_000  # commas and brackets of a body: each may become an object of many times its size


@dataclass(frozen=True)
class Upload:
    """One image of a request. name: a label, never used as a path. error: why `data` could not be had."""

    name: str
    data: bytes
    error: str = ""


@dataclass(frozen=True)
class PredictRequest:
    """What a client asks for. map: one of `MAPS`. thresholds: in place of the model's; None for those."""

    uploads: tuple[Upload, ...]
    map: str = "none"
    threshold: float | None = None
    pixel_threshold: float | None = None


def parse_request(content_type: str, body: bytes, max_images: int) -> PredictRequest:
    """Read a body by its Content-Type.

    Raises Refused: 400 for what cannot be parsed, 413 for more than `max_images`, 415 for other types, 422 for values
    that make no sense.
    """
    kind, parameters = _content_type(content_type)
    if kind == "multipart/form-data":
        uploads, fields = _read_form(body, parameters.get("boundary", b""), max_images)
    elif kind == "application/json":
        uploads, fields = _read_json(body, max_images)
    else:
        given = display_name(kind) or "missing"
        raise Refused(415, f"the Content-Type is {given}; expected multipart/form-data or application/json")
    for key in fields:
        if key not in FIELDS:
            raise Refused(422, f"unknown field {display_name(str(key))!r}; expected {', '.join(FIELDS)}")
    if not uploads:
        raise Refused(422, "no images; send one or more files in the field images")
    wanted = fields.get("map")
    if wanted is not None and wanted not in MAPS:
        raise Refused(422, f"map is {display_name(str(wanted))!r}; expected {', '.join(MAPS)}")
    return PredictRequest(
        tuple(uploads), wanted or "none", _number(fields, "threshold"), _number(fields, "pixel_threshold")
    )


def display_name(text: str) -> str:
    """A client's text fit for logs, tables and databases: printable, at most 255 characters."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[:NAME_LENGTH])


def _content_type(header: str) -> tuple[str, dict[str, bytes]]:
    from python_multipart.multipart import parse_options_header

    kind, parameters = parse_options_header(header)
    return kind.decode("latin-1").lower(), {k.decode("latin-1").lower(): v for k, v in parameters.items()}


def _number(fields: Mapping[str, Any], key: str) -> float | None:
    value = fields.get(key)
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(value)
        if not math.isfinite(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as error:
        given = display_name(str(value))[:FIELD_LENGTH]
        raise Refused(422, f"{key} is {given!r}; expected a finite number") from error
    return number


class _Form:
    """Collects the parts of a multipart form from the parser's calls."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self.uploads: list[Upload] = []
        self.fields: dict[str, Any] = {}
        self.ended = False
        self._others = 0

    def callbacks(self) -> dict[str, Any]:
        return {
            "on_part_begin": self._begin,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_header_begin": self._begin_header,
            "on_header_field": lambda data, start, end: self._key.append(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.append(data[start:end]),
            "on_header_end": self._end_header,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._data: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._begin_header()

    def _begin_header(self) -> None:
        self._key: list[bytes] = []
        self._value: list[bytes] = []

    def _end_header(self) -> None:
        self._headers[b"".join(self._key).lower()] = b"".join(self._value)
        self._begin_header()

    def _finish(self) -> None:
        self.ended = True

    def _end(self) -> None:
        from python_multipart.multipart import parse_options_header

        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        field = options.get(b"name")
        if kind != b"form-data" or field is None:
            raise Refused(400, "malformed form: a part has no Content-Disposition: form-data with a name")
        name, data = field.decode("utf-8", "replace"), b"".join(self._data)
        if name == "images":
            if len(self.uploads) >= self.max_images:
                raise too_many_images(self.max_images)
            given = options.get(b"filename", b"").decode("utf-8", "replace")
            self.uploads.append(Upload(display_name(given) or f"image {len(self.uploads) + 1}", data))
            return
        self._others += 1
        if self._others > OTHER_PARTS:
            raise Refused(422, f"more than {OTHER_PARTS} fields besides images")
        if len(data) > FIELD_LENGTH:
            raise Refused(422, f"field {display_name(name)!r} is longer than {FIELD_LENGTH} bytes")
        self.fields[name] = data.decode("utf-8", "replace").strip()


def _read_form(body: bytes, boundary: bytes, max_images: int) -> tuple[list[Upload], dict[str, Any]]:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser

    if not boundary:
        raise Refused(400, "malformed form: its Content-Type names no boundary")
    form = _Form(max_images)
    try:
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refused(400, f"malformed form: {display_name(str(error))}") from error
    if not form.ended:
        raise Refused(400, "malformed form: it ends before its last boundary")
    return form.uploads, form.fields


def _read_json(body: bytes, max_images: int) -> tuple[list[Upload], dict[str, Any]]:
    values = parse_object(body)
    images = values.get("images")
    if images is None:
        images = []
    if not isinstance(images, list):
        raise Refused(422, 'images is no list; expected [{"name": ..., "data": base64}, ...]')
    if len(images) > max_images:
        raise too_many_images(max_images)
    return [_from_base64(i, image) for i, image in enumerate(images, start=1)], values


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises Refused (400, or 422 for JSON of another kind, 413 for too many values)."""
    if sum(map(body.count, (b",", b"[", b"{"))) > MARKS_OF_JSON:
        raise Refused(413, "the JSON body has too many values; expected a few for each image")
    try:
        values = json.loads(body)
    # JSONDecodeError and UnicodeDecodeError are ValueErrors, as are numbers of too many digits.
    except (ValueError, RecursionError) as error:
        raise Refused(400, "malformed JSON: the body cannot be parsed") from error
    if not isinstance(values, dict):
        raise Refused(422, "the body is no JSON object")
    return values


def _from_base64(number: int, image: Any) -> Upload:
    if not isinstance(image, dict) or not isinstance(image.get("data"), str):
        raise Refused(
            422, f'image {number} is no object with "data"; expected {{"name": ..., "data": base64}}'
        )
    name = image.get("name")
    if name is not None and not isinstance(name, str):
        raise Refused(422, f"the name of image {number} is no text")
    label = display_name(name or "") or f"image {number}"
    try:
        return Upload(label, base64.b64decode(image["data"], validate=True))
    except (binascii.Error, ValueError):
        return Upload(label, b"", error="its data is not base64")


def too_many_images(max_images: int) -> Refused:
    """The 413 for a request with too many images."""
    return Refused(413, f"more than the {max_images} images allowed in a request; send them in several")


def check_choices(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise Refused (422) unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join("null" if c is None else str(c) for c in choices)
        raise Refused(422, f"{name} is {display_name(str(value))[:FIELD_LENGTH]!r}; expected {known}")
