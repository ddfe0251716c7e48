"""APRIL-GAN's checkpoint files: one dictionary with a linear head per layer, and nothing else."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import BadCheckpoint
from .april_gan import AprilGAN

METHOD = AprilGAN
GROUP = "trainable_linearlayer"
Flat = dict[str, Tensor]


def identify(flat: Flat) -> dict[str, Any] | None:
    """What the shapes tell; None for another file (those of VCP-CLIP have this group too)."""
    first = flat.get(f"{GROUP}.fc.0.weight")
    layers = range(len(flat) // 2)
    expected = {f"{GROUP}.fc.{i}.{kind}" for i in layers for kind in ("weight", "bias")}
    if first is None or first.ndim != 2 or flat.keys() != expected:
        return None
    joint, vision = map(int, first.shape)
    return {
        "method": "april_gan",
        "text_width": None,
        "vision_width": vision,
        "options": {},
        "widths": (joint, vision),
    }


def learned(method: AprilGAN) -> Flat:
    """Learned parts in the names of the authors' file."""
    return {f"{GROUP}.{name}": tensor for name, tensor in method.heads.named_parameters()}


def assign(method: AprilGAN, flat: Flat) -> None:
    """Copy an authors' tensors into a method. Raises BadCheckpoint when the file has more layers."""
    have = sum(name.startswith(f"{GROUP}.") and name.endswith(".weight") for name in flat)
    if have != len(method.blocks):
        raise BadCheckpoint(
            f"the file has heads for {have} layers, the option layers names {len(method.blocks)}; name {have}"
        )
    for name, tensor in learned(method).items():
        tensor.copy_(flat[name])


def content(method: AprilGAN) -> dict[str, Any]:
    """The authors' dictionary, nested as their code saves it."""
    return {GROUP: dict(method.heads.named_parameters())}
