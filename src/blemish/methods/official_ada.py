"""AdaCLIP's checkpoint files (`pretrained_*.pth`): one flat dictionary of the learned tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import BadCheckpoint
from .ada_clip import AdaCLIP

METHOD = AdaCLIP
ROOT = "clip_model"
PROMPTERS = {"visual_prompter": "static_visual", "text_prompter": "static_text"}
GENERATORS = {
    "dynamic_visual_prompt_generator": "dynamic_visual",
    "dynamic_text_prompt_generator": "dynamic_text",
}
Flat = dict[str, Tensor]


def identify(flat: Flat) -> dict[str, Any] | None:
    """What the shapes tell; None for another file."""
    visual, text = (flat.get(f"{ROOT}.{name}.static_prompts.0") for name in PROMPTERS)
    if visual is None or text is None or visual.ndim != 2 or text.ndim != 2:
        return None
    count = sum(name.startswith(f"{ROOT}.visual_prompter.static_prompts.") for name in flat)
    widths = int(text.shape[1]), int(visual.shape[1])
    return {
        "method": "ada_clip",
        "text_width": widths[0],
        "vision_width": widths[1],
        "options": {"depth": count, "length": int(visual.shape[0])},
        "widths": widths,
    }


def learned(method: AdaCLIP) -> Flat:
    """Learned parts in the names and shapes of the authors' file, as views of the parameters."""
    flat: Flat = {}
    for theirs, ours in PROMPTERS.items():
        for i, tokens in enumerate(method.get_parameter(ours)):
            flat[f"{ROOT}.{theirs}.static_prompts.{i}"] = tokens
    for theirs, ours in GENERATORS.items():
        for kind in ("weight", "bias"):
            # They have one linear layer per token, here the same is one layer for all.
            parts = method.get_parameter(f"{ours}.{kind}").unflatten(0, (method.config.length, -1))
            for i, part in enumerate(parts):
                flat[f"{ROOT}.{theirs}.head.{i}.{kind}"] = part
    for name, tensor in method.heads.named_parameters():
        flat[f"{ROOT}.patch_token_layer.head.{name.removeprefix('fc.')}"] = tensor
    for name, tensor in method.class_head.named_parameters():
        flat[f"{ROOT}.cls_token_layer.head.0.{name}"] = tensor
    return flat


def assign(method: AdaCLIP, flat: Flat) -> None:
    """Copy an authors' tensors into a method. Raises BadCheckpoint when the file has more than the method."""
    own = learned(method)
    more = sorted(name for name in flat.keys() - own.keys() if name.startswith(f"{ROOT}."))
    if more:
        raise BadCheckpoint(
            f"{len(more)} tensors have no place in ada_clip with these options, first {more[0]}; "
            f"its option layers names {len(method.blocks)} layers"
        )
    for name, tensor in own.items():
        tensor.copy_(flat[name])


def content(method: AdaCLIP) -> dict[str, Any]:
    """The authors' dictionary, flat as their code saves it."""
    return dict(learned(method))
