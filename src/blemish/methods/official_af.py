"""AF-CLIP's checkpoint files: a pickled adaptor and, in a second file beside it, a tensor with the prompt's vectors.

The authors saved the adaptor as a Python object. It is read without running anything of the file: whatever is no
tensor becomes an empty shell, from which the parameters are taken by name.
"""

from __future__ import annotations

import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadCheckpoint
from .af_clip import AFCLIP

METHOD = AFCLIP
ADAPTOR, PROMPT = "adaptor", "prompt"  # groups of what is read, and the words that tell the two files apart
VECTORS = "state_prompt_embedding"
QUERY = "attention.attn.to_q.weight"
# The authors' code does not say how wide a head is in its files; all have 64 channels.
HEAD_WIDTH = 64
NAMES = {
    "norm.weight": "attention.norm.weight",
    "norm.bias": "attention.norm.bias",
    "query.weight": QUERY,
    "key.weight": "attention.attn.to_k.weight",
    "value.weight": "attention.attn.to_v.weight",
    "out.weight": "attention.attn.to_out.0.weight",
    "out.bias": "attention.attn.to_out.0.bias",
}
Flat = dict[str, Tensor]


def identify(flat: Flat) -> dict[str, Any] | None:
    """What the shapes tell; None for another file."""
    query, vectors = flat.get(f"{ADAPTOR}.{QUERY}"), flat.get(f"{PROMPT}.{VECTORS}")
    if query is None or vectors is None or query.ndim != 2 or vectors.ndim != 3:
        return None
    text, vision = int(vectors.shape[-1]), int(query.shape[1])
    options = {"n_ctx": int(vectors.shape[-2]), "head_width": HEAD_WIDTH}
    options["heads"] = max(1, int(query.shape[0]) // HEAD_WIDTH)
    found = {"method": "af_clip", "text_width": text, "vision_width": vision, "options": options}
    return found | {"widths": (text, vision)}


def learned(method: AFCLIP) -> Flat:
    """Learned parts in the names of the authors' files."""
    parts = dict(method.adaptor.named_parameters())
    adaptor = {f"{ADAPTOR}.{theirs}": parts[ours] for ours, theirs in NAMES.items()}
    return adaptor | {f"{PROMPT}.{VECTORS}": method.words[None]}


def assign(method: AFCLIP, flat: Flat) -> None:
    """Copy an authors' tensors into a method. Raises BadCheckpoint when the files have more than the method."""
    own = learned(method)
    if more := sorted(flat.keys() - own.keys()):
        raise BadCheckpoint(
            f"{len(more)} tensors have no place in af_clip, first {more[0]}; get the authors' files again"
        )
    for name, tensor in own.items():
        tensor.copy_(flat[name])  # views of the parameters


def content(method: AFCLIP) -> dict[str, Any]:
    """Both of the authors' files in one, as groups of plain tensors; their own code cannot load it."""
    flat = learned(method)
    return {
        group: {name.partition(".")[2]: t for name, t in flat.items() if name.startswith(f"{group}.")}
        for group in (ADAPTOR, PROMPT)
    }


def joined(path: Path, content: Any) -> dict[str, Any] | None:
    """Both files as two groups, when `path` is one of them; None when it is anything else.

    content: what a safe load made of the file; None when it failed. Raises BadCheckpoint when the other file is
    not beside it.
    """
    own = _tensors(path, content)
    if own is None or not (QUERY in own or own.keys() == {VECTORS}):
        return None
    mine, other = (ADAPTOR, PROMPT) if QUERY in own else (PROMPT, ADAPTOR)
    partner = path.with_name(path.name.replace(mine, other))
    if partner == path or not partner.is_file():
        if mine == PROMPT and mine not in path.name:
            return None  # a tensor of some shape is not yet AF-CLIP's
        raise BadCheckpoint(
            f"{path} holds AF-CLIP's {mine} alone; put the file with its {other} beside it, under names that "
            f"differ in these words, such as visa_{ADAPTOR}.pt and visa_{PROMPT}.pt"
        )
    found = _tensors(partner, _load(partner))
    if found is None or (QUERY if other == ADAPTOR else VECTORS) not in found:
        raise BadCheckpoint(f"{partner} does not hold the {other} that belongs to {path}; get it again")
    groups = {mine: own, other: found}
    vectors = groups[PROMPT][VECTORS]
    return {ADAPTOR: groups[ADAPTOR], PROMPT: {VECTORS: vectors.reshape(1, *vectors.shape[-2:])}}


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a pickled object fails here too, and is read as shells
        return None


def _tensors(path: Path, content: Any) -> Flat | None:
    """The tensors of one of the files: of a saved object, of its state dict, or the prompt's vectors."""
    if content is None:
        content = _shells(path)
    if isinstance(content, Shell):
        return dict(_parameters(content, ""))
    if isinstance(content, Tensor) and content.ndim in (2, 3):
        return {VECTORS: content.detach()}
    if isinstance(content, Mapping):
        return {k: v.detach() for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    return None


class Shell:
    """Stands for every object of a file that is no tensor: keeps what the file says of it and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Makes tensors and `Shell`s. No class or function that a file names is imported or called."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")):
            return getattr(torch._utils, name)
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else Shell


def _shells(path: Path) -> Any:
    """The content of a PyTorch archive as tensors and shells; None when it cannot be read."""
    if not zipfile.is_zipfile(path):  # older forms are pickles as a whole
        return None
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return None  # TorchScript is read by other means than the unpickler
    reader = types.SimpleNamespace(Unpickler=_Unpickler, __name__="shells")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception:  # every damaged or foreign file fails in its own way
        return None


def _parameters(shell: Shell, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters of a module that was read as a shell, by dotted names."""
    for name, value in (vars(shell).get("_parameters") or {}).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
    for name, child in (vars(shell).get("_modules") or {}).items():
        if isinstance(child, Shell):
            yield from _parameters(child, f"{prefix}{name}.")
