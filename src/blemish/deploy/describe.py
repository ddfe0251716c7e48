"""What an exported model holds, for `blemish info`: read from the file alone, without torch and without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blemish.deploy.contents import missing_weights, read_contents
from blemish.deploy.engines import check_model_path, model_files, model_hash
from blemish.deploy.metadata import ModelMeta
from blemish.errors import BadModel


def describe_model(path: Path) -> dict[str, Any]:
    """What `blemish export` wrote, as plain values with "kind" first.

    kind: "exported model", or "unknown" with a "reason" for a file of another kind. input: what the network takes.
    missing: files with its weights that are not beside it, only where there are some. Raises BadModel when there
    is no file at `path`.
    """
    runtime = check_model_path(path)
    try:
        found = read_contents(path)
        meta = ModelMeta.from_properties(found.properties, path)
    except BadModel as error:
        return {"kind": "unknown", "path": str(path), "reason": str(error)}
    files = model_files(path)
    values: dict[str, Any] = {"kind": "exported model"}
    values |= {"path": str(path), "runtime": runtime, "method": meta.setup.method}
    values |= {"precision": meta.precision, "input": _input(meta), "output": _output(meta)}
    if missing := missing_weights(path, found):
        values["missing"] = missing
    values |= {"files": [file.name for file in files], "bytes": sum(file.stat().st_size for file in files)}
    values |= {"sha256": model_hash(path), "opset": found.opset}
    own = {key: value for key, value in vars(meta.setup).items() if not key.startswith("runtime")}
    rest = {key: value for key, value in vars(meta).items() if key != "setup"}
    return values | {key: value for key, value in (own | rest).items() if key not in values}


def _input(meta: ModelMeta) -> str:
    if meta.preprocess:
        return "images: uint8 (B, H, W, 3), RGB of any size, resized inside"
    side = meta.setup.image_size
    return f"images: float32 (B, 3, {side}, {side}), RGB, resized, mean and std taken out"


def _output(meta: ModelMeta) -> str:
    return f"map: float32 (B, {meta.setup.image_size}, {meta.setup.image_size}); score: float32 (B,)"
