"""Weight files in the forms CLIP is published in, read as tensors under OpenAI's names.

Kinds of file are told by content, never by name. Nothing here runs code from a file: pickles are read with
`weights_only`, and TorchScript archives only give up their tensors.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BadWeights, WeightsNotFound
from .hub import shard_names
from .mapped import MappedFiles

OPENAI, TRANSFORMERS = "openai", "transformers"
# numbers that OpenAI's archives keep among the weights, and buffers that follow from the configuration
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
_NESTED = ("state_dict", "model_state_dict", "model")
_MAX_HEADER = 100_000_000

_TRANSFORMERS_NAMES = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_TRANSFORMERS_BLOCK = re.compile(
    r"(vision|text)_model\.encoder\.layers\.(\d+)\."
    r"(self_attn\.(?:q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(weight|bias)"
)
_TRANSFORMERS_PARTS = {
    "self_attn.out_proj": "attn.out_proj.",
    "self_attn.q_proj": "attn.in_proj_",
    "self_attn.k_proj": "attn.in_proj_",
    "self_attn.v_proj": "attn.in_proj_",
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a weight file (or of the shards of an `*.index.json`) under its own name, on the CPU.

    Uncompressed files are memory-mapped, so tensors cost memory only once touched. Raises WeightsNotFound for
    a missing file or shard, BadWeights with the cause for anything that cannot be read.
    """
    if path.name.endswith(".index.json"):
        merged: dict[str, Tensor] = {}
        for name in shard_names(path):
            shard = path.with_name(name)
            if not shard.exists():
                raise WeightsNotFound(f"{path} lists the shard {name}, which is not beside it; fetch it too")
            merged.update(read_tensors(shard))
        return merged
    kind = _kind(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "torchscript":
        return _read_torchscript(path)
    return _read_pickle(path, mapped=kind == "zip")


def to_openai_names(tensors: dict[str, Tensor], origin: Path) -> tuple[dict[str, Tensor], str]:
    """Rename to OpenAI's names; returns the tensors and which naming the file had, OPENAI or TRANSFORMERS.

    `tensors` is emptied, so that converted and original tensors never exist twice. Names that belong to no
    CLIP stay as they are, for the caller to report. Raises BadWeights when this is no ViT CLIP at all.
    """
    if all(name.startswith("module.") for name in tensors):  # saved from data-parallel training
        for name in list(tensors):
            tensors[name.removeprefix("module.")] = tensors.pop(name)
    _refuse_other_kinds(tensors, origin)
    if any(name.startswith("vision_model.") for name in tensors):
        naming, renamed = TRANSFORMERS, _from_transformers(tensors, origin)
    else:
        naming, renamed = OPENAI, _from_openai(tensors)
    if "logit_scale" in renamed and renamed["logit_scale"].numel() == 1:
        renamed["logit_scale"] = renamed["logit_scale"].reshape(())
    return renamed, naming


def _from_openai(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        # open_clip's CustomTextCLIP keeps the text tower in a module of its own
        target = name.removeprefix("text.")
        if target not in _NOT_WEIGHTS:
            renamed[target] = tensor
    return renamed


def _from_transformers(tensors: dict[str, Tensor], origin: Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    files = MappedFiles()
    for name in list(tensors):
        if name not in tensors or name.endswith("position_ids"):
            continue
        block = _TRANSFORMERS_BLOCK.fullmatch(name)
        if block is None:
            target = _TRANSFORMERS_NAMES.get(name, name)
            tensor = tensors.pop(name)
            renamed[target] = tensor.T.contiguous() if name.endswith("_projection.weight") else tensor
            continue
        tower, number, part, end = block.groups()
        prefix = "visual.transformer" if tower == "vision" else "transformer"
        target = f"{prefix}.resblocks.{number}.{_TRANSFORMERS_PARTS[part]}{end}"
        names = [name]
        if part.endswith(("q_proj", "k_proj", "v_proj")):
            names = [name.replace(part, f"self_attn.{letter}_proj") for letter in "qkv"]
            if missing := [n for n in names if n not in tensors]:
                raise BadWeights(f"{origin}: tensor {missing[0]} is missing")
        parts = [tensors.pop(n) for n in names]
        renamed[target] = parts[0]
        if len(parts) > 1:
            renamed[target] = torch.cat(parts)
            for piece in parts:
                files.release(piece)
    return renamed


def _refuse_other_kinds(names: Iterable[str], origin: Path) -> None:
    known = set(names)
    if {"visual.class_embedding", "vision_model.embeddings.class_embedding"} & known:
        return
    if "patch_embed.proj.weight" in known:
        why = (
            "timm's image tower alone, without the text tower; take open_clip_model.safetensors of the same "
            "repository instead"
        )
    elif any(n.startswith("visual.trunk.") for n in known):
        why = "an open_clip model whose image tower is another architecture; only ViT CLIPs can be used"
    elif any(n.startswith(("visual.layer1.", "visual.attnpool.")) for n in known):
        why = "a ResNet CLIP; only ViT CLIPs can be used"
    elif any("prompt" in n or "ctx" in n or "linear" in n for n in known):
        why = "a method's checkpoint rather than a backbone; pass it with --checkpoint"
    else:
        shown = ", ".join(sorted(known)[:3])
        why = f"no CLIP: visual.class_embedding is missing; it starts with {shown or 'nothing'}"
    raise BadWeights(f"{origin}: this is {why}")


def _kind(path: Path) -> str:
    """Kind of a file by its first bytes: "safetensors", "torchscript", "zip" or "pickle"."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as error:
        raise WeightsNotFound(f"no weight file at {path}; check the path given with --backbone") from error
    except OSError as error:
        raise BadWeights(f"{path}: cannot be read: {error.strerror}") from error
    if head.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise BadWeights(f"{path}: truncated torch file (its table of contents is gone); fetch it again")
        with zipfile.ZipFile(path) as archive:
            scripted = any(n.endswith("/constants.pkl") for n in archive.namelist())
        return "torchscript" if scripted else "zip"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < _MAX_HEADER:
        return "safetensors"
    if head[:1] == b"\x80":
        return "pickle"
    raise BadWeights(f"{path}: {_describe_foreign(head)}; expected safetensors or a torch file")


def _describe_foreign(head: bytes) -> str:
    if not head:
        return "the file is empty"
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "an HTML page, as a failed download leaves behind"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer instead of the file itself (run `git lfs pull`)"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "neither safetensors nor a torch file"
    return (
        f"a text file that starts with {text[:24]!r}"
        if text.isprintable() or "\n" in text
        else "unknown data"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadWeights(f"{path}: truncated or damaged safetensors file ({_cause(error)})") from error


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the archives are what OpenAI published
            module = torch.jit.load(str(path), map_location="cpu")
        return {name: tensor.detach() for name, tensor in module.state_dict().items()}
    except (RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadWeights(f"{path}: damaged TorchScript archive ({_cause(error)})") from error


def _read_pickle(path: Path, *, mapped: bool) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises nearly every type for damaged pickles
        if "weights_only" in str(error) and "nsupported" in str(error):
            why = "holds Python objects besides tensors and is not read, since that could run foreign code"
        else:
            why = f"truncated or damaged torch file ({_cause(error)})"
        raise BadWeights(f"{path}: {why}") from error
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(loaded, Mapping):
        inner = next((loaded[k] for k in _NESTED if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping):
        raise BadWeights(f"{path}: holds a {type(loaded).__name__}, expected a state dictionary of tensors")
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, Tensor)}
    if not tensors:
        shown = ", ".join(str(name) for name in list(loaded)[:4])
        raise BadWeights(
            f"{path}: no CLIP weights; its entries are {shown or 'none'}. "
            "A method's checkpoint is passed with --checkpoint"
        )
    return tensors


def _cause(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:160]
