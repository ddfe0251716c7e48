"""What an exported model says about itself: enough to use it, and to tell what it was made of."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blemish.errors import BadModel
from blemish.predictor import Setup

PREFIX = "blemish."
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ModelMeta:
    """What stands in a model's metadata, one key a field, each as JSON.

    setup: the detector's, without `runtime`. mean, std: of the network input, per channel, for 0..1. map_range,
    score_range: what maps and scores can be. uses_class_names: the texts name `setup.class_name`, or "object".
    preprocess: the input is uint8 pixels (B, H, W, 3) of any size, resized inside; else float32 (B, 3, S, S).
    precision: "fp32", "int8 weights" or "int8". versions: package -> version at export. created: UTC, ISO.
    """

    setup: Setup
    mean: tuple[float, ...]
    std: tuple[float, ...]
    map_range: tuple[float, float]
    score_range: tuple[float, float]
    uses_class_names: bool = False
    preprocess: bool = False
    precision: str = "fp32"
    versions: dict[str, str] = field(default_factory=dict)
    created: str = ""
    format_version: int = FORMAT_VERSION

    @classmethod
    def names(cls) -> list[str]:
        """Every key that a model may have, without the prefix."""
        return [f.name for kind in (Setup, cls) for f in dataclasses.fields(kind) if f.name != "setup"]

    def to_properties(self) -> dict[str, str]:
        """Flat text pairs, as both file formats hold them; `from_properties` is the reverse."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "setup"}
        own = {key: value for key, value in vars(self.setup).items() if not key.startswith("runtime")}
        return {f"{PREFIX}{key}": json.dumps(value) for key, value in (own | values).items()}

    @classmethod
    def from_properties(cls, found: Mapping[str, str], path: Path) -> ModelMeta:
        """Raises BadModel for a model that `blemish export` did not write, or a newer one did."""
        values: dict[str, Any] = {}
        for key, text in found.items():
            if key.startswith(PREFIX):
                try:
                    values[key.removeprefix(PREFIX)] = json.loads(text)
                except json.JSONDecodeError as error:
                    raise BadModel(
                        f"{path}: its metadata {key} is damaged ({error}); export it anew"
                    ) from error
        if not {"method", "image_size", "format_version"} <= values.keys():
            raise BadModel(f"{path} was not written by `blemish export`: its metadata names no method")
        if values["format_version"] != FORMAT_VERSION:
            raise BadModel(
                f"{path} has format version {values['format_version']}, this program reads {FORMAT_VERSION}; "
                f"update blemish, or export it anew"
            )
        setup_names, names = ({f.name for f in dataclasses.fields(kind)} for kind in (Setup, cls))
        setup = Setup(**{key: value for key, value in values.items() if key in setup_names})
        rest: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.items()
            if key in names
        }
        try:
            return cls(setup=setup, **rest)
        except TypeError as error:
            raise BadModel(f"{path}: its metadata is incomplete ({error}); export it anew") from error
