"""Frozen CLIP from pretrained weights: any published form in, one model out, and our own folder back.

The configuration follows from the tensors' shapes; what shapes cannot tell (heads, activation, whose weights)
comes from the files beside the weights, from the backbone's name, or from OpenAI's habits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import BadWeights, WeightsNotFound
from ..files import whole, write_whole
from .config import CLIPConfig
from .formats import read_tensors, to_openai_names
from .hub import (
    BACKBONES,
    FORMAT,
    MODEL_FILES,
    OPEN_CLIP_FILES,
    WEIGHT_SUFFIXES,
    Backbone,
    Located,
    locate,
    read_json,
)
from .infer import configure
from .mapped import MappedFiles
from .model import CLIP
from .packed import Packer
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from hashlib import _Hash as Digest

__all__ = ["BACKBONES", "Backbone", "fingerprint", "load_clip", "read_weights", "save_clip"]

Heads = tuple[int, int]
TOKENIZER_FILE = "tokenizer.json"
IMAGE_TOWER = "visual."
EXACT = "visual.stem."  # tensors that stay in float32; see `LiteStem`
_FINGERPRINT_VALUES = 256
_DIGITS = 16


def load_clip(
    source: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    heads: Heads | None = None,
    packed: bool = False,
) -> CLIP:
    """A frozen CLIP in evaluation mode.

    source: a name from `BACKBONES`, a weight file, a folder, or a hub repository id.
    dtype: floating type of the weights; None means float32, whatever the file holds. The embedded model's stem is in
        float32 always.
    heads: attention heads of the (image, text) tower, where neither the files nor the usual 64 channels per
        head tell them.
    packed: pack the weights of the image tower where the processor gains by it (see `Packable`). The text tower has
        few tokens, and most methods use it once.
    The model carries `fingerprint` (see there) and `tokenizer`, which is None when the vocabulary is neither
    CLIP's nor described by a tokenizer.json. Raises WeightsNotFound, BadWeights, UnknownName.
    """
    located = locate(source)
    config, tensors, model = _read(located, heads)
    tokenizer = _tokenizer(config, located.path)
    digest, files, modules = _begin(config), MappedFiles(), dict(model.named_modules())
    packer = Packer() if packed and torch.device(device).type == "cpu" else None
    for name in sorted(tensors):
        original = tensors.pop(name)
        _add(digest, name, original)
        exact = dtype is None or name.startswith(EXACT)
        wanted = torch.float32 if exact or dtype is None else dtype
        owner, _, leaf = name.rpartition(".")
        in_image_tower = name.startswith(IMAGE_TOWER)
        if packer is not None and in_image_tower and packer.took(modules[owner], leaf, original, wanted):
            files.release(original)
            continue
        tensor = original.to(device=device, dtype=wanted)
        setattr(modules[owner], leaf, nn.Parameter(tensor, requires_grad=False))
        if tensor is not original:  # the file's pages would count beside the copies
            files.release(original)
    model.fingerprint, model.tokenizer = digest.hexdigest()[:_DIGITS], tokenizer
    return model.freeze()


def read_weights(path: str | Path, *, heads: Heads | None = None) -> tuple[CLIPConfig, dict[str, Tensor]]:
    """Configuration and tensors of a weight file or folder, under OpenAI's names, in the file's own dtype.

    Exactly the tensors of `CLIP(config).state_dict()`, with its shapes. heads as in `load_clip`. Raises
    WeightsNotFound, or BadWeights naming the first tensor that is missing, surplus or misshapen.
    """
    config, tensors, _ = _read(Located(Path(path).expanduser()), heads)
    return config, tensors


def save_clip(clip: CLIP, folder: str | Path) -> None:
    """Write a CLIP to a folder that `load_clip` reads: config.json, model.safetensors, its own tokenizer."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in clip.state_dict().items()}
    with whole(folder / MODEL_FILES[0]) as file:
        save_file(tensors, file, metadata={"format": "pt"})
        # safetensors makes files that only their owner may read
        file.chmod(0o644)
    if clip.config.text.tokenizer == "own":
        if clip.tokenizer is None:
            raise ValueError(
                'config.text.tokenizer is "own", but clip.tokenizer is None; set it before saving'
            )
        text = clip.tokenizer.to_json()
        write_whole(folder / TOKENIZER_FILE, text.encode())
    described = json.dumps({"format": FORMAT, **clip.config.to_dict()}, indent=2) + "\n"
    write_whole(folder / "config.json", described.encode())


def fingerprint(config: CLIPConfig, tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits that tell weights apart whatever file they came from.

    SHA-256 over heads and activation, then each tensor's name, shape and up to 256 evenly spaced values in
    half precision, so float16 and float32 copies of the same weights agree.
    """
    digest = _begin(config)
    for name in sorted(tensors):
        _add(digest, name, tensors[name])
    return digest.hexdigest()[:_DIGITS]


def _begin(config: CLIPConfig) -> Digest:
    return hashlib.sha256(f"{config.vision.heads} {config.text.heads} {config.activation}".encode())


def _add(digest: Digest, name: str, tensor: Tensor) -> None:
    step = max(1, -(-tensor.numel() // _FINGERPRINT_VALUES))
    values = tensor.detach().reshape(-1)[::step].to(device="cpu", dtype=torch.float16)
    digest.update(f"{name} {tuple(tensor.shape)}".encode() + values.numpy().tobytes())


def _read(located: Located, heads: Heads | None) -> tuple[CLIPConfig, dict[str, Tensor], CLIP]:
    """Configuration, tensors, and the model on the meta device that they were checked against."""
    file = _weight_file(located.path)
    tensors, naming = to_openai_names(read_tensors(file), file)
    config = located.config or configure(tensors, naming, file, located.repository)
    if heads is not None:
        config = replace(
            config,
            vision=replace(config.vision, heads=heads[0]),
            text=replace(config.text, heads=heads[1]),
        )
    for tower, shape in (("image", config.vision), ("text", config.text)):
        if shape.heads < 1 or shape.width % shape.heads:
            raise BadWeights(
                f"{file}: {shape.heads} heads do not divide the {tower} tower's width {shape.width}; "
                "give heads=(image, text)"
            )
    with torch.device("meta"), _SkipInit():
        model = CLIP(config)
    _check(tensors, model.state_dict(), file)
    return config, tensors, model


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], file: Path) -> None:
    for kind, names in (
        ("is missing", [n for n in expected if n not in tensors]),
        ("belongs to no ViT CLIP of this configuration", [n for n in tensors if n not in expected]),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise BadWeights(f"{file}: tensor {names[0]} {kind}{more}")
    for name, tensor in tensors.items():
        shape, wanted = tuple(tensor.shape), tuple(expected[name].shape)
        if shape != wanted:
            raise BadWeights(f"{file}: tensor {name} has shape {shape}, expected {wanted}")
        if not tensor.is_floating_point():
            raise BadWeights(f"{file}: tensor {name} is {tensor.dtype}, expected floating point")


def _weight_file(path: Path) -> Path:
    """The file to read from a path that may be a folder."""
    if not path.is_dir():
        return path
    config = path / "config.json"
    own = config.exists() and read_json(config).get("format") == FORMAT
    for name in MODEL_FILES if own else (*OPEN_CLIP_FILES, *MODEL_FILES):
        if (path / name).exists():
            return path / name
    others = sorted(p for p in path.iterdir() if p.name.endswith(WEIGHT_SUFFIXES))
    if len(others) == 1:
        return others[0]
    if others:
        shown = ", ".join(p.name for p in others[:4])
        raise BadWeights(f"{path}: holds several weight files ({shown}); name one of them with --backbone")
    raise WeightsNotFound(
        f"no weights in the folder {path}: looked for {', '.join((*OPEN_CLIP_FILES, *MODEL_FILES))}; "
        "put one there or name another with --backbone PATH"
    )


def _tokenizer(config: CLIPConfig, path: Path) -> Tokenizer | None:
    if config.text.tokenizer == "clip":
        known = Tokenizer.clip()
        return known if config.text.vocab_size == known.vocab_size else None
    file = (path if path.is_dir() else path.parent) / TOKENIZER_FILE
    if not file.exists():
        raise WeightsNotFound(f"{file} is missing: these weights have a tokenizer of their own; put it there")
    own = Tokenizer.from_file(file)
    if own.vocab_size != config.text.vocab_size:
        raise BadWeights(f"{file}: has {own.vocab_size} ids, the text tower has {config.text.vocab_size}")
    return own


class _SkipInit(TorchFunctionMode):
    """Leaves out `torch.nn.init`: there is nothing to fill on the meta device, and trying costs a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
