"""The page of the API: made from its OpenAPI description, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

PREDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
                        "map": {"type": "string", "enum": ["none", "png", "tiff"], "default": "none"},
                        "threshold": {"type": "number"},
                        "pixel_threshold": {"type": "number"},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "required": ["data"],
                                "properties": {
                                    "name": {"type": "string"},
                                    "data": {"type": "string", "format": "byte"},
                                },
                            },
                        },
                        "map": {"type": "string", "enum": ["none", "png", "tiff"], "default": "none"},
                        "threshold": {"type": "number"},
                        "pixel_threshold": {"type": "number"},
                    },
                }
            },
        },
    }
}
VERDICT_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["verdict"],
                    "properties": {
                        "verdict": {
                            "enum": ["confirmed", "false_alarm", "missed", "correct", None],
                        }
                    },
                }
            }
        },
    }
}


def docs_page(schema: Mapping[str, Any]) -> str:
    """An OpenAPI description as HTML for people."""
    return "\n".join(_lines(schema))


def _lines(schema: Mapping[str, Any]) -> Iterator[str]:
    title = escape(schema["info"]["title"])
    yield f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}: API</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">\n</head>\n<body>'
    yield f"<h1>{title} {escape(schema['info']['version'])}: API</h1>"
    yield f"<p>{escape(schema['info'].get('description', ''))}</p>"
    yield '<p>The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
            yield f"<p>{escape(operation.get('description') or operation.get('summary', ''))}</p>"
            yield from _parameters(operation.get("parameters", ()))
            yield from _bodies(operation.get("requestBody", {}))
    yield "</body>\n</html>"


def _parameters(parameters: Any) -> Iterator[str]:
    if not parameters:
        return
    yield "<table>\n<tr><th>parameter</th><th>in</th><th>default</th><th>what</th></tr>"
    for one in parameters:
        default = one.get("schema", {}).get("default")
        cells = (
            one["name"],
            one["in"],
            "" if default is None else str(default),
            one.get("description", ""),
        )
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _bodies(body: Mapping[str, Any]) -> Iterator[str]:
    for kind, content in body.get("content", {}).items():
        names = ", ".join(content.get("schema", {}).get("properties", {}))
        yield f"<p>Body, <code>{escape(kind)}</code>: {escape(names)}.</p>"
