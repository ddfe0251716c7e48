"""AA-CLIP's checkpoint files: one with the text tower's adapters, one with the image tower's.

No weights were published; files that the authors' code makes are read. Each holds one dictionary beside the state of
an optimiser, `text_adapter` or `image_adapter`; a file with both is read, and written, as well.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import BadCheckpoint
from .aa_clip import AACLIP

METHOD = AACLIP
TEXT, IMAGE = "text_adapter", "image_adapter"
Flat = dict[str, Tensor]
log = logging.getLogger(__name__)


def identify(flat: Flat) -> dict[str, Any] | None:
    """What the shapes tell; None for another file."""
    text, detection = flat.get(f"{TEXT}.0.fc.0.weight"), flat.get(f"{IMAGE}.det_proj.fc.weight")
    if text is None or detection is None or text.ndim != 2 or detection.ndim != 2:
        return None
    text_width, vision = int(text.shape[1]), int(detection.shape[1])
    # The last of the text file is the projection.
    options = {"text_adapters": _count(flat, f"{TEXT}.") - 1}
    options["image_adapters"] = _count(flat, f"{IMAGE}.layer_adapters.")
    found = {"method": "aa_clip", "text_width": text_width, "vision_width": vision, "options": options}
    return found | {"widths": (text_width, vision)}


def learned(method: AACLIP) -> Flat:
    """Learned parts in the names of the authors' files."""
    ours = dict(method.named_parameters())
    names = {f"text.adapters.{i}.linear": f"{TEXT}.{i}.fc.0" for i in range(len(method.text.adapters))}
    names["text.projection"] = f"{TEXT}.{len(names)}.fc.0"
    for i in range(len(method.image.adapters)):
        names[f"image.adapters.{i}.linear"] = f"{IMAGE}.layer_adapters.{i}.fc.0"
    for i in range(len(method.image.heads.fc)):
        names[f"image.heads.fc.{i}"] = f"{IMAGE}.seg_proj.{i}.fc"
    names["image.detection"] = f"{IMAGE}.det_proj.fc"
    return {f"{theirs}.weight": ours[f"{mine}.weight"] for mine, theirs in names.items()}


def assign(method: AACLIP, flat: Flat) -> None:
    """Copy an authors' tensors into a method. Raises BadCheckpoint when the file has another number of levels."""
    levels = _count(flat, f"{IMAGE}.seg_proj.")
    if levels != len(method.config.layers):
        raise BadCheckpoint(
            f"the file has heads for {levels} levels, the option layers names {len(method.config.layers)}; "
            f"name {levels}"
        )
    for name, tensor in learned(method).items():
        tensor.copy_(flat[name])
    log.warning(
        "the authors' files of aa_clip hold no scale of maps and scores, which their code takes from the images "
        "tested; scores follow a guessed one (evaluate with --set transductive_minmax=true does as they do)"
    )


def content(method: AACLIP) -> dict[str, Any]:
    """Both dictionaries in one file, of which the authors' code reads either by its name."""
    flat = learned(method)
    return {
        group: {name.removeprefix(f"{group}."): t for name, t in flat.items() if name.startswith(f"{group}.")}
        for group in (TEXT, IMAGE)
    }


def joined(path: Path, content: Any) -> Mapping[str, Any] | None:
    """Both dictionaries, when `path` holds one of them; None when it is anything else, or has both.

    content: what a safe load made of the file. Raises BadCheckpoint when the other one is not beside it.
    """
    if not isinstance(content, Mapping):
        return None
    held = [group for group in (TEXT, IMAGE) if isinstance(content.get(group), Mapping)]
    if len(held) != 1:
        return None
    (mine,) = held
    if mine == TEXT:
        raise BadCheckpoint(f"{path} holds AA-CLIP's {TEXT} alone; name the file with the {IMAGE} beside it")
    for partner in (path.with_name(path.name.replace("image", "text")), path.with_name(f"{TEXT}.pth")):
        if partner != path and partner.is_file() and (other := _load(partner)) is not None:
            return {TEXT: other, IMAGE: content[IMAGE]}
    raise BadCheckpoint(
        f"{path} holds AA-CLIP's {IMAGE} alone; put {TEXT}.pth of the same training beside it"
    )


def _load(path: Path) -> Mapping[str, Any] | None:
    """The text tower's dictionary in a file, or None."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # every damaged or foreign file fails in its own way
        return None
    group = found.get(TEXT) if isinstance(found, Mapping) else None
    return group if isinstance(group, Mapping) else None


def _count(flat: Flat, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in flat)
