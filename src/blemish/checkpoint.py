"""The package's own checkpoint: one safetensors file with a method's learned parts and how they were made."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from blemish.errors import BadCheckpoint
from blemish.files import file_hash, printable_name, write_whole
from blemish.machine import package_versions

__all__ = [
    "CheckpointMeta",
    "file_hash",
    "is_checkpoint",
    "load_checkpoint",
    "load_parts",
    "package_versions",
    "read_meta",
    "rewrite_checkpoint",
    "save_checkpoint",
]

FORMAT = "blemish-checkpoint"
FORMAT_VERSION = 1
LARGEST = 1e15  # no number in a header comes near it


@dataclass(frozen=True)
class CheckpointMeta:
    """What a checkpoint says about itself.

    method: registered name. options: the method's configuration, plain JSON values.
    backbone: name, path or repository the learned parts were trained on; backbone_fingerprint: hash of its
        weights; backbone_config: its `CLIPConfig.to_dict()`.
    auxiliary: dataset it was trained on. image_size: side of the network input in pixels. tile, overlap, score_rule:
        how pictures are cut and scored, as `Setup` has them.
    image_threshold, pixel_threshold: calibrated on the training data; None when it was not calibrated.
    versions: package -> version at the time of writing.
    """

    method: str
    options: dict[str, Any] = field(default_factory=dict)
    backbone: str = ""
    backbone_fingerprint: str = ""
    backbone_config: dict[str, Any] = field(default_factory=dict)
    auxiliary: str = ""
    image_size: int | None = None
    tile: int | str | None = None
    overlap: float = 0.25
    score_rule: str = "native"
    image_threshold: float | None = None
    pixel_threshold: float | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: str = ""


def save_checkpoint(path: Path, method: nn.Module, meta: CheckpointMeta) -> None:
    """Write the learned parts of `method` and `meta` to one safetensors file, whole or not at all.

    `meta.versions` is filled in when empty. Raises OutputError when the file cannot be written.
    """
    # Clones, because tied or strided tensors cannot be stored as they are.
    _write(
        path, {name: t.detach().cpu().contiguous().clone() for name, t in method.state_dict().items()}, meta
    )


def rewrite_checkpoint(source: Path, target: Path, **changes: Any) -> None:
    """Copy a checkpoint with some fields of its CheckpointMeta changed; its tensors stay bit for bit.

    target may be source. Raises as `load_checkpoint`, and OutputError when the file cannot be written.
    """
    meta, tensors = load_checkpoint(source)
    _write(target, tensors, dataclasses.replace(meta, **changes))


def _write(path: Path, tensors: dict[str, Tensor], meta: CheckpointMeta) -> None:
    if not meta.versions:
        meta = dataclasses.replace(meta, versions=package_versions())
    header = {"format": FORMAT, "format_version": str(FORMAT_VERSION)}
    for f in dataclasses.fields(meta):
        value = getattr(meta, f.name)
        header[f.name] = value if f.type == "str" else json.dumps(value)
    write_whole(path, save(tensors, metadata=header))


def load_checkpoint(path: Path) -> tuple[CheckpointMeta, dict[str, Tensor]]:
    """Read a checkpoint written by `save_checkpoint`: what it says and its tensors, on the CPU.

    Raises BadCheckpoint when the file is missing, truncated, of another kind or of a newer version.
    """
    with _open(path) as file:
        meta = _parse(path, file.metadata())
        return meta, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def read_meta(path: Path) -> CheckpointMeta:
    """What a checkpoint says about itself, without its tensors; raises as `load_checkpoint`."""
    with _open(path) as file:
        return _parse(path, file.metadata())


def is_checkpoint(path: Path) -> bool:
    """Whether the file is a safetensors file with our header (it may still be of a newer version)."""
    try:
        with _open(path) as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except BadCheckpoint:
        return False


def load_parts(method: nn.Module, name: str, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy a checkpoint's tensors into `method`, which must have exactly these names and shapes.

    name: the method's registered name. Raises BadCheckpoint that names the first tensor that does not fit.
    """
    wanted = method.state_dict()
    missing, surplus = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or surplus:
        named = (_some(names, word) for names, word in ((missing, "missing"), (surplus, "unknown")) if names)
        raise BadCheckpoint(
            f"{path} does not fit {name}: {' and '.join(named)}; was it saved with other options, "
            f"or for a backbone of another depth? `blemish info` shows what it was made with"
        )
    for key, tensor in wanted.items():
        if tensors[key].shape != tensor.shape:
            raise BadCheckpoint(
                f"{path} does not fit this backbone: {key} is {tuple(tensors[key].shape)}, needed is "
                f"{tuple(tensor.shape)}; pass the backbone it was made with (`blemish info` names it)"
            )
    with torch.no_grad():
        for key, tensor in wanted.items():
            tensor.copy_(tensors[key])


def _some(names: list[str], word: str) -> str:
    return f"{names[0]} {f'and {len(names) - 1} more ' if len(names) > 1 else ''}{word}"


def _open(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise BadCheckpoint(f"checkpoint {path} {what}; pass the file with --checkpoint")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise BadCheckpoint(f"{path} is not a checkpoint: {_why_unreadable(path, error)}") from error


def _why_unreadable(path: Path, error: Exception) -> str:
    """The likeliest cause in a few words; safetensors' own messages speak of header internals."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as problem:
        return str(problem.strerror or problem).lower()
    size = path.stat().st_size
    reasons = (
        (not head, "the file is empty"),
        (head[:1] == b"<" or head.startswith(b"version https://git-lfs"), "a web page or a git-lfs pointer"),
        (head.startswith((b"PK", b"\x80\x02")), "a PyTorch archive that no finished method recognises"),
        (head[8:9] == b"{", f"truncated or damaged ({size} bytes); copy or download it again"),
        (b"\0" not in head, "a text file"),
    )
    return next((text for holds, text in reasons if holds), f"no safetensors file ({type(error).__name__})")


def _parse(path: Path, header: Mapping[str, str] | None) -> CheckpointMeta:
    if (header or {}).get("format") == "blemish-memory":
        raise BadCheckpoint(f"{path} is a memory of normal images, not a checkpoint; pass it with --normal")
    if (header or {}).get("format") != FORMAT:
        raise BadCheckpoint(
            f"{path} is a safetensors file but not a checkpoint of a method; backbones go with --backbone"
        )
    assert header is not None
    if (version := header.get("format_version", "?")) != str(FORMAT_VERSION):
        shown = repr(version[:20])[1:-1]
        raise BadCheckpoint(
            f"{path} has checkpoint version {shown}, this program reads {FORMAT_VERSION}; update blemish"
        )
    if "method" not in header:
        raise BadCheckpoint(f"{path}: its header names no method; it was not written by this program")
    meta = CheckpointMeta(**read_fields(path, CheckpointMeta, header))
    if not all(isinstance(meta.backbone_config.get(tower, {}), dict) for tower in ("vision", "text")):
        raise BadCheckpoint(f"{path}: its header's backbone_config describes no CLIP; the file is damaged")
    return meta


def read_fields(path: Path, kind: type, header: Mapping[str, str], *, quoted: bool = False) -> dict[str, Any]:
    """The fields of the dataclass `kind` that a file's header holds, as JSON of the field's type.

    quoted: fields of type str are JSON too, not plain text. Raises BadCheckpoint that names the field when it is
    something else, as in a damaged or hand-made file.
    """
    found: dict[str, Any] = {}
    for f in dataclasses.fields(kind):
        if f.name in header:
            text, hint = header[f.name], str(f.type)
            try:
                found[f.name] = json.loads(text) if quoted or hint != "str" else text
            except (ValueError, RecursionError) as error:  # ValueError: no JSON, or thousands of digits
                raise BadCheckpoint(
                    f"{printable_name(path)}: its header is damaged ({f.name} is not JSON); make it anew"
                ) from error
            if not _fits(found[f.name], hint):
                raise BadCheckpoint(
                    f"{printable_name(path)}: its header is damaged ({f.name} is {text[:40]!r}, expected "
                    f"{hint.replace(' |', ' or')}); make it anew"
                )
    return found


def _fits(value: Any, hint: str) -> bool:
    """Whether a JSON value is of the type that an annotation names; numbers must be finite."""
    if hint.startswith("dict["):
        return isinstance(value, dict)
    kinds = hint.split(" | ")
    if isinstance(value, int | float) and not isinstance(value, bool):
        whole = isinstance(value, int)
        return ("float" in kinds or (whole and "int" in kinds)) and -LARGEST < value < LARGEST
    return (value is None and "None" in kinds) or (isinstance(value, str) and "str" in kinds)
