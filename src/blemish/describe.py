"""What a file is that somebody names to `blemish info`: checkpoint, authors' file, memory or backbone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from blemish.checkpoint import file_hash, is_checkpoint, load_checkpoint
from blemish.clip.weights import fingerprint, read_weights
from blemish.errors import BadCheckpoint, BlemishError
from blemish.few_shot import describe_memory, is_memory
from blemish.methods.official import recognise


def describe(path: Path) -> dict[str, Any]:
    """What a file is, as plain values with "kind" first.

    kind: "checkpoint" (ours), "official checkpoint" (the authors'), "backbone" (CLIP weights), "memory" (of normal
    images) or "unknown" with a "reason". Raises BadCheckpoint only when there is nothing at `path`.
    """
    if not path.exists():
        raise BadCheckpoint(f"{path} does not exist")
    if not (path.is_file() or path.is_dir()):  # opening a pipe would wait for ever
        return {"kind": "unknown", "path": str(path), "reason": "neither a file nor a folder"}
    if path.is_file() and is_checkpoint(path):
        return _describe_own(path)
    if is_memory(path):
        return {"kind": "memory", "path": str(path), "sha256": file_hash(path), **describe_memory(path)}
    if path.is_file() and (info := _describe_official(path)) is not None:
        return info
    return _describe_backbone(path)


def _describe_own(path: Path) -> dict[str, Any]:
    try:
        meta, tensors = load_checkpoint(path)
    except BadCheckpoint as error:
        return {"kind": "unknown", "path": str(path), "reason": str(error)}
    size = {"tensors": len(tensors), "parameters": sum(t.numel() for t in tensors.values())}
    return {"kind": "checkpoint", "path": str(path), "sha256": file_hash(path), **size} | dataclasses.asdict(
        meta
    )


def _describe_official(path: Path) -> dict[str, Any] | None:
    info = recognise(path)
    if info is None:
        return None
    fields = dataclasses.asdict(info) if dataclasses.is_dataclass(info) else dict(info)
    return {"kind": "official checkpoint", "path": str(path), "sha256": file_hash(path), **fields}


def _describe_backbone(path: Path) -> dict[str, Any]:
    try:
        config, tensors = read_weights(path)
    except BlemishError as error:
        return {"kind": "unknown", "path": str(path), "reason": f"not a checkpoint: {error}"}
    return {
        "kind": "backbone",
        "path": str(path),
        "parameters": sum(t.numel() for t in tensors.values()),
        "fingerprint": fingerprint(config, tensors),
        "config": config.to_dict(),
    }
