"""The authors' file of ViP2-CLIP, which `official` reads and writes: its names, shapes and buffers.

`*_train_epoch_10.pth` holds two dictionaries: `prompt_learner` with the learned words, the Meta-Nets and copies
of the fixed words, and `Zero_try` with ViP-FGP as convolutions of kernel 1 and a scalar that nothing uses.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import BadOption
from ..parts.prompts import tokenizer_of
from .vip2_clip import ViP2CLIP

Flat = dict[str, Tensor]

FGP = {"query": "q_proj_pre", "key": "k_proj_pre_1", "value": "v_proj_pre_1", "out": "proj_post_t"}
UNUSED = "Zero_try.prompt_temp_l1"


def shapes_tell(flat: Flat) -> dict[str, int] | None:
    """Options that the shapes of an authors' file fix; None when it is no file of ViP2-CLIP."""
    static, dynamic = flat.get("ctx_pos", flat.get("ctx_neg")), flat.get("cls_ctx")
    if static is None or dynamic is None or static.ndim != 2 or dynamic.ndim != 2:
        return None
    if not any(name.startswith("Zero_try.") for name in flat):
        return None
    return {"n_static": int(static.shape[0]), "n_dynamic": int(dynamic.shape[0])}


def words_tell(flat: Flat) -> dict[str, bool]:
    """Whether both prompts of the file hold the abnormal word, as the published program's do."""
    normal, abnormal = flat.get("token_middle_pos"), flat.get("token_middle_neg")
    if normal is None or abnormal is None:
        return {}
    return {"legacy_state_word": torch.equal(normal.float(), abnormal.float())}


def names(method: ViP2CLIP) -> list[tuple[str, str]]:
    """Our names of the learned parts and the authors'; parts that an option switches off are left out."""
    pairs = [
        ("object_tokens", "cls_ctx"),
        ("normal_context", "ctx_pos"),
        ("abnormal_context", "ctx_neg"),
    ]
    modules = []
    if method.config.use_vca:
        pairs.append(("meta_bias", "cls_prompter.bias"))
        count = method.config.n_dynamic
        modules += [(f"meta_nets.{i}.{j}", f"cls_prompter.fc.{i}.{j}") for i in range(count) for j in (0, 2)]
    if method.config.use_fgp:
        modules += [(f"fgp.{ours}", f"Zero_try.{theirs}") for ours, theirs in FGP.items()]
    return pairs + [(f"{a}.{kind}", f"{b}.{kind}") for a, b in modules for kind in ("weight", "bias")]


def learned(method: ViP2CLIP) -> Flat:
    """Learned parts in the names and shapes of the authors' file."""
    flat: Flat = {}
    for ours, theirs in names(method):
        tensor: Tensor = method.get_parameter(ours)
        if ours == "meta_bias":
            tensor = tensor[None]
        elif ours.startswith("fgp.") and ours.endswith(".weight"):
            tensor = tensor[..., None]
        flat[theirs] = tensor
    return flat


def assign(method: ViP2CLIP, flat: Flat) -> None:
    """Copy an authors' tensors into the method; all of `names` must be there in their shapes."""
    for ours, theirs in names(method):
        target = method.get_parameter(ours)
        target.copy_(flat[theirs].reshape(target.shape))


def buffers(method: ViP2CLIP) -> Flat:
    """The rest of `prompt_learner`: fixed words and token ids, which follow from the backbone.

    Under `legacy_state_word` the words are wrong but the ids are not, as in the published program.
    """
    static, dynamic = method.config.n_static, method.config.n_dynamic
    length = method.clip.config.text.context_length
    tokenizer = tokenizer_of(method.clip)
    (filler,) = tokenizer.encode("X")[:1]
    prompts = method.prompts(method.object_tokens[None], length)[0]
    extra: Flat = {}
    for i, state in enumerate(("pos", "neg")):
        words, after = prompts[i], static + method.templates[i].start
        extra[f"token_prefix_{state}"] = words[None, :1]
        extra[f"token_middle_{state}"] = words[None, 1 + static : after]
        extra[f"token_suffix_{state}"] = words[None, after + dynamic :]
        word = tokenizer.encode(method.config.state_words[i])
        ids = [tokenizer.sot, *[filler] * static, *word, *[filler] * dynamic, tokenizer.eot]
        ids += [0] * (length - len(ids))
        extra[f"tokenized_prompts_{state}"] = torch.tensor([ids], dtype=torch.int32)
    return extra


def content(method: ViP2CLIP) -> dict[str, Any]:
    """The file's content, nested as the authors save it. Raises BadOption for ablations it cannot hold."""
    if not (method.config.use_vca and method.config.use_fgp):
        raise BadOption("the authors' files hold all of vip2_clip; use_vca and use_fgp must be on")
    flat = learned(method) | {UNUSED: torch.tensor(math.log(1 / 0.07))}
    fgp = {k.removeprefix("Zero_try."): t for k, t in flat.items() if k.startswith("Zero_try.")}
    words = {k: t for k, t in flat.items() if not k.startswith("Zero_try.")}
    return {"prompt_learner": words | buffers(method), "Zero_try": fgp}
