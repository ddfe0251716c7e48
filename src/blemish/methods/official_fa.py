"""FAPrompt's checkpoint files: one dictionary `prompt_learner`, as AnomalyCLIP's, with a prior network in it.

No weights were published; files that the authors' code makes are read all the same.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .fa_prompt import FAPrompt

METHOD = FAPrompt
PRIOR = "patch_meta_net.linear"
Flat = dict[str, Tensor]


def identify(flat: Flat) -> dict[str, Any] | None:
    """What the shapes tell; None for another file. How many patches make the prior follows from the backbone."""
    shared, own = flat.get("ctx_pos"), flat.get("ctx_neg")
    if shared is None or own is None or not any(name.startswith(PRIOR) for name in flat):
        return None
    if shared.ndim != 4 or own.ndim != 4:
        return None
    deep = [t for name, t in flat.items() if name.startswith("compound_prompts_text.")]
    options = {
        "n_ctx": int(shared.shape[-2]),
        "abnormal_prompts": int(own.shape[1]),
        "abnormal_words": int(own.shape[-2]),
        "depth": len(deep) + 1,
    }
    if deep:
        options["t_n_ctx"] = int(deep[0].shape[0])
    width = int(shared.shape[-1])
    found = {"method": "fa_prompt", "text_width": width, "vision_width": None, "options": options}
    return found | {"widths": (width, 1024)}


def learned(method: FAPrompt) -> Flat:
    """Learned parts in the names and shapes of the authors' file."""
    flat: Flat = {"ctx_pos": method.words[None, None], "ctx_neg": method.abnormal_words[None]}
    for number, index in ((1, 0), (2, 2)):
        for name, tensor in method.prior_net[index].named_parameters():
            flat[f"{PRIOR}{number}.{name}"] = tensor
    return flat | {f"compound_prompts_text.{i}": t for i, t in enumerate(method.deep_tokens)}


def assign(method: FAPrompt, flat: Flat) -> None:
    """Copy an authors' tensors into a method; what their code saves without using it is left out."""
    for name, tensor in learned(method).items():
        tensor.copy_(flat[name])  # views of the parameters


def content(method: FAPrompt) -> dict[str, Any]:
    """The authors' dictionary, nested as their code saves it, without the parts that nothing uses."""
    return {"prompt_learner": learned(method)}
