"""What `blemish list` and `blemish info` show: rows of names with a few words, and flattened values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from blemish.loading import EMBEDDED


def methods() -> list[dict[str, Any]]:
    """Every method: name, what it is, options and presets."""
    from blemish.methods import METHODS, method_class, options_of, presets

    rows = []
    for name in METHODS:
        options = [{"name": o.name, "default": o.default, "help": o.help} for o in options_of(name).values()]
        rows.append(
            {"name": name, "about": _about(method_class(name)), "options": options}
            | {"presets": presets(name)}
        )
    return rows


def backbones() -> list[dict[str, Any]]:
    """Every named backbone."""
    from blemish.clip.hub import BACKBONES

    rows = []
    for name, known in BACKBONES.items():
        about = "embedded, needs no network"
        if known.config is not None:
            vision = known.config.vision
            about = f"{known.config.source}, {vision.image_size} px, patches of {vision.patch_size}"
            about += f", hub: {known.repositories[0]}"
        rows.append({"name": name, "about": about})
    return rows


def datasets() -> list[dict[str, Any]]:
    """Every known dataset."""
    import blemish

    return [{"name": name, "about": ""} for name in blemish.datasets()]


def checkpoints() -> list[dict[str, Any]]:
    """The embedded checkpoints: those that `blemish predict` uses without --checkpoint."""
    from blemish.checkpoint import is_checkpoint, read_meta

    rows = []
    for path in sorted(EMBEDDED.glob("*.safetensors")):
        if is_checkpoint(path):
            meta = read_meta(path)
            about = f"embedded, {meta.backbone}, trained on {meta.auxiliary or 'unnamed data'}"
            rows.append({"name": meta.method, "about": about, "file": path.name})
    return rows


def flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of nested values; what is empty is left out."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{key}.")
        elif value not in (None, ""):
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
            yield f"{before}{key}", text


def _about(kind: type) -> str:
    """The first sentence of the module that a method stands in."""
    text = " ".join((import_module(kind.__module__).__doc__ or "").split("\n\n")[0].split())
    return text.split(", as its")[0].rstrip(".")
