"""VCP-CLIP's and VCP-CLIP+'s checkpoint files in the names and shapes of their authors' code.

Both hold three dictionaries and the text tower's prompts. VCP-CLIP+ adds IDP, `alpha`, and under `model` the
whole CLIP with the prompts once more; its `beta` is not in the file, and its code saves parts of VCP-CLIP that
it does not use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import BadOption
from .vcp_clip import VCPCLIP
from .vcp_clip_plus import VCPCLIPPlus

GROUPS = ("trainable_linearlayer", "New_Lan_Embed", "Zero_try")
UNUSED = "prompt_text_projection"
CATEGORY = "New_Lan_Embed.prompt_query"
MINI_NET = "New_Lan_Embed.prompt_linear1.fc"
IDP = "prompt_token_embedding"
MODEL_WORDS = "model.token_embedding.weight"
# The authors' input size, which the position table in `model` is resized for.
IMAGE_SIZE = 518

Flat = dict[str, Tensor]
Family = VCPCLIP | VCPCLIPPlus


def identify(flat: Flat) -> dict[str, Any] | None:
    """Method, widths and options that the shapes tell, as in `OfficialInfo`; None for another file."""
    base, category = flat.get("trainable_linearlayer.fc.0.weight"), flat.get(CATEGORY)
    if base is None or category is None or base.ndim != 2 or category.ndim != 3:
        return None
    tokens, deep = flat.get(f"{IDP}.prompt_tokens"), flat.get("prompt_embeddings")
    options = {"category_tokens": int(category.shape[1])}
    if deep is not None and deep.ndim == 3:
        options["deep_tokens"] = int(deep.shape[1])
    if tokens is not None and tokens.ndim == 3:
        options["idp_tokens"] = int(tokens.shape[1])
    return {
        "method": "vcp_clip" if tokens is None else "vcp_clip_plus",
        "text_width": int(category.shape[-1]),
        "vision_width": int(base.shape[1]),
        "options": options,
    }


def is_scalar(name: str) -> bool:
    """Whether a tensor of this name is a single number in these files."""
    return name in ("alpha", "beta") or name.startswith("model.") or "prompt_temp" in name


def _names(method: Family) -> list[tuple[str, str]]:
    """Our names and the authors', except the deep prompts and what the files do not hold."""
    pairs = [("log_scale", "New_Lan_Embed.prompt_temp"), ("post_log_scale", "Zero_try.prompt_temp_l1")]
    modules = [(f"linear.{i}", f"trainable_linearlayer.fc.{i}") for i in range(len(method.linear))]
    modules += [
        ("post.query", "Zero_try.q_proj_pre"),
        ("post.key", "Zero_try.k_proj_pre_1"),
        ("post.value", "Zero_try.v_proj_pre_1"),
        ("post.out", "Zero_try.proj_post_t"),
        ("deep_projection", "prompt_proj"),
        ("prompt_norm", "prompt_norm"),
    ]
    if isinstance(method, VCPCLIPPlus) and method.alpha is not None:
        pairs.append(("alpha", "alpha"))
    if isinstance(method, VCPCLIPPlus) and method.idp is not None:
        pairs.append(("idp.tokens", f"{IDP}.prompt_tokens"))
        theirs = {"summary": "projector", "norm": "norm", "fusion": "fusion_proj"}
        modules += [(f"idp.{ours}", f"{IDP}.{name}") for ours, name in theirs.items()]
    else:
        pairs.append(("category", CATEGORY))
        modules.append(("mini_net", MINI_NET))
    return pairs + [(f"{a}.{kind}", f"{b}.{kind}") for a, b in modules for kind in ("weight", "bias")]


def learned(method: Family) -> Flat:
    """Learned parts in the names and shapes of the authors' file, `beta` excepted.

    Raises BadOption for variants that have parts of other shapes.
    """
    if isinstance(method, VCPCLIP) and (method.mini_net is None or not method.config.post_vcp):
        raise BadOption("the authors' files hold both branches of vcp_clip; mini_net and post_vcp must be on")
    text, joint = method.clip.config.text.width, method.clip.config.embed_dim
    if text != joint:
        raise BadOption("the authors' files need a backbone whose text width equals its joint width")
    flat: Flat = {}
    for ours, theirs in _names(method):
        tensor: Tensor = method.get_parameter(ours)
        if ours in ("category", "idp.tokens"):
            tensor = tensor[None]
        elif ours.startswith("post.") and ours.endswith(".weight"):
            tensor = tensor[..., None]
        flat[theirs] = tensor
    return flat | {
        "prompt_embeddings": method.deep_prompts[:1],
        "deep_prompt_embeddings": method.deep_prompts[1:],
    }


def assign(method: Family, flat: Flat) -> None:
    """Copy an authors' tensors into a method; `beta` where there is one."""
    for ours, theirs in _names(method):
        target = method.get_parameter(ours)
        target.copy_(flat[theirs].reshape(target.shape))
    method.deep_prompts.copy_(torch.cat([flat["prompt_embeddings"], flat["deep_prompt_embeddings"]]))
    if isinstance(method, VCPCLIPPlus) and method.beta is not None and "beta" in flat:
        method.beta.copy_(flat["beta"])


def content(method: Family) -> Flat:
    """Everything in the authors' file under dotted names; what their code saves unused is zero.

    Raises BadOption for variants that the files cannot hold.
    """
    flat = learned(method)
    width = method.clip.config.text.width
    flat[UNUSED] = torch.zeros(width, width)
    if isinstance(method, VCPCLIP):
        return flat
    if not (method.config.idp and method.config.uniop):
        raise BadOption("the authors' files cannot tell variants of vcp_clip_plus; idp and uniop must be on")
    count = method.config.category_tokens
    flat |= {
        CATEGORY: torch.zeros(1, count, width),
        f"{MINI_NET}.weight": torch.zeros(count, 1, 3),
        f"{MINI_NET}.bias": torch.zeros(count),
    }
    prompts = {name: t for name, t in flat.items() if name.startswith(("prompt_", "deep_prompt_"))}
    return flat | {f"model.{name}": t for name, t in (_model(method) | prompts).items()}


def _model(method: VCPCLIPPlus) -> Flat:
    """The frozen CLIP as the authors save it: positions of their grid, one more word for the class name."""
    clip = method.clip
    side = IMAGE_SIZE // clip.config.vision.patch_size
    state = dict(clip.state_dict())
    words = state["token_embedding.weight"]
    state["token_embedding.weight"] = torch.cat([words, words.new_zeros(1, words.shape[1])])
    positions = clip.visual.positions((side, side), method.config.position_resize)
    state["visual.positional_embedding"] = positions
    return state


def nest(flat: Flat) -> dict[str, Any]:
    """Tensors under dotted names, in the dictionaries of the authors' files."""
    nested: dict[str, Any] = {group: {} for group in GROUPS}
    for name, tensor in flat.items():
        group, _, rest = name.partition(".")
        if group in (*GROUPS, "model"):
            nested.setdefault(group, {})[rest] = tensor
        else:
            nested[name] = tensor
    return nested
