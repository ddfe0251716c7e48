"""The authors' own checkpoint files: recognised by content, read, and written.

AnomalyCLIP's `epoch_15.pth` holds one dictionary `prompt_learner`; those of VCP-CLIP and VCP-CLIP+ are described
in `official_vcp`, ViP2-CLIP's in `official_vip2`, the baselines' in the modules of FAMILIES. All belong to ViT-L/14
at 336 pixels; files of other sizes are read all the same, when the backbone fits.
"""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..clip.model import CLIP
from ..errors import BadCheckpoint, BadOption, OutputError
from ..parts.prompts import tokenizer_of
from . import (
    build,
    official_aa,
    official_ada,
    official_af,
    official_april,
    official_fa,
    official_vcp,
    official_vip2,
)
from .anomaly_clip import AnomalyCLIP
from .vcp_clip import VCPCLIP
from .vcp_clip_plus import VCPCLIPPlus
from .vip2_clip import ViP2CLIP

log = logging.getLogger(__name__)

# Width of AnomalyCLIP's projections that its code creates, saves and never uses.
UNUSED_WIDTH = 896
BUFFERS = ("token_prefix_pos", "token_prefix_neg", "token_middle_neg", "token_suffix_pos", "token_suffix_neg")

Flat = dict[str, Tensor]
# A family's module: METHOD, its class; identify(flat), None or what a file is, as keywords of OfficialInfo and
# `widths`, of text (or joint) and image tower, by which the backbone is named; learned(method), names and shapes of
# the file; assign(method, flat); content(method), nested as saved. Where a method has two files, joined(path, content):
# the content of both, None when it is none of them.
FAMILIES: tuple[Any, ...] = (official_aa, official_ada, official_af, official_april, official_fa)


@dataclass(frozen=True)
class OfficialInfo:
    """What an authors' file is.

    method: registry name. backbone: the named backbone of these widths, empty when there is none. text_width,
    vision_width: widths of the towers it needs; None where the file does not depend on it. options: those of
    the method that the shapes tell. values: numbers in the file. defaults: options that its content suggests.
    """

    method: str
    backbone: str
    text_width: int | None
    vision_width: int | None
    options: dict[str, Any]
    values: int
    defaults: dict[str, Any] = field(default_factory=dict)


def recognise(source: Path | str | Mapping[str, Any]) -> OfficialInfo | None:
    """What an authors' file (or its loaded content) is; None when it is anything else.

    Nothing in the file is executed. Raises FileNotFoundError when there is no such file.
    """
    content = source if isinstance(source, Mapping) else _load(Path(source))
    if content is None:
        return None
    flat = flatten(content)
    if any(t.ndim == 0 and not official_vcp.is_scalar(name) for name, t in flat.items()):
        return None
    found = next(filter(None, (family.identify(flat) for family in FAMILIES)), None)
    if found is not None:
        return OfficialInfo(backbone=_named(*found.pop("widths")), values=_values(flat), **found)
    return _paper_info(content, flat)


def _paper_info(content: Mapping[str, Any], flat: Flat) -> OfficialInfo | None:
    """The same for files of the methods of the five papers."""
    if isinstance(content.get("prompt_learner"), Mapping) and "cls_ctx" not in flat:
        return _anomaly_info(flat)
    if (options := official_vip2.shapes_tell(flat)) is not None:
        width, words = int(flat["cls_ctx"].shape[-1]), official_vip2.words_tell(flat)
        return OfficialInfo("vip2_clip", _named(width), width, None, options, _values(flat), words)
    if (found := official_vcp.identify(flat)) is not None:
        backbone = _named(found["text_width"], found["vision_width"])
        own = {name: t for name, t in flat.items() if not name.startswith("model.")}
        return OfficialInfo(**found, backbone=backbone, values=_values(own))
    return None


def _anomaly_info(flat: Flat) -> OfficialInfo | None:
    deep = [t for name, t in flat.items() if name.startswith("compound_prompts_text.")]
    words = flat.get("ctx_pos", flat.get("ctx_neg"))
    if words is None or words.ndim != 4:
        return None
    options = {"n_ctx": int(words.shape[-2]), "depth": len(deep) + 1}
    if deep:
        options["t_n_ctx"] = int(deep[0].shape[0])
    width = int(words.shape[-1])
    return OfficialInfo("anomaly_clip", _named(width), width, None, options, _values(flat))


def _named(text_width: int, vision_width: int = 1024) -> str:
    return "ViT-L-14-336" if (text_width, vision_width) == (768, 1024) else ""


def _values(flat: Flat) -> int:
    return sum(t.numel() for t in flat.values())


def read_official(path: Path | str, clip: CLIP, method: str | None = None, **options: Any) -> Any:
    """A method with the learned parts of an authors' file, in evaluation mode.

    method: the method expected, any when None. options: as in `methods.build`, except those that the file's
    shapes decide. Raises BadCheckpoint for a file of another kind, method or backbone and for missing keys;
    warns through logging when the file was made on a backbone with other words.
    """
    path = Path(path)
    if not path.is_file():
        raise BadCheckpoint(f"{path} does not exist or is no file; pass --checkpoint FILE")
    content = _load(path)
    info = recognise(content) if content is not None else None
    if content is None or info is None:
        raise BadCheckpoint(
            f"{path} is no authors' checkpoint of a method known here; see `blemish info {path}`"
        )
    if method is not None and method != info.method:
        raise BadCheckpoint(f"{path} holds {info.method}, not {method}; pass --method {info.method}")
    _check_backbone(path, info, clip)
    for key in options.keys() & info.options.keys():
        if options[key] != info.options[key]:
            raise BadOption(f"option {key} is {options[key]!r}, but {path} was made with {info.options[key]}")
    made = build(info.method, clip, **(info.defaults | options | info.options))
    try:
        from_official(made, content)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{path}: {error}") from error
    _compare_words(path, made, flatten(content))
    return made.eval()


def from_official(method: Any, content: Mapping[str, Any]) -> None:
    """Put the tensors of an authors' file, nested as saved or under dotted names, into a method.

    Entries that the authors save and never use are ignored. Raises BadCheckpoint for a missing tensor or
    another shape, before anything is changed.
    """
    flat = flatten(content)
    expected = {name: tuple(t.shape) for name, t in _learned(method).items()}
    missing = [name for name in expected if name not in flat]
    if missing:
        raise BadCheckpoint(
            f"{len(missing)} of {len(expected)} tensors are missing, first {missing[0]}; "
            "the file is damaged or of another version, get it again"
        )
    for name, shape in expected.items():
        if tuple(flat[name].shape) != shape:
            raise BadCheckpoint(
                f"{name} is {tuple(flat[name].shape)}, expected {shape} for these options on this backbone"
            )
    with torch.no_grad():
        _assign(method, flat)


def to_official(method: Any) -> dict[str, Any]:
    """The content of an authors' file for a method: nested as their code saves it, float32, on the CPU.

    Raises BadOption for variants that their files cannot hold.
    """
    if isinstance(method, AnomalyCLIP):
        return {"prompt_learner": _cpu(_anomaly_learned(method) | _anomaly_extra(method))}
    if isinstance(method, ViP2CLIP):
        return {group: _cpu(tensors) for group, tensors in official_vip2.content(method).items()}
    if (family := _family(method)) is not None:
        found: dict[str, Any] = family.content(method)
        loose = _cpu({name: t for name, t in found.items() if isinstance(t, Tensor)})
        return loose | {group: _cpu(tensors) for group, tensors in found.items() if group not in loose}
    if isinstance(method, VCPCLIP | VCPCLIPPlus):
        return official_vcp.nest(_cpu(official_vcp.content(method)))
    raise BadOption(f"{type(method).__name__} has no authors' file format")


def write_official(method: Any, path: Path | str) -> None:
    """Write a method as an authors' file, whole or not at all; see `to_official`. Raises OutputError."""
    path = Path(path)
    content = to_official(method)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _load(path: Path) -> Mapping[str, Any] | None:
    """The dictionary in a PyTorch file, or None. Only tensors and plain containers are ever unpickled."""
    is_archive, content = zipfile.is_zipfile(path), None
    try:
        if is_archive and _is_script(path):
            return None
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except FileNotFoundError:
        raise
    except Exception as error:  # every damaged or foreign file fails in its own way
        log.debug("%s is no PyTorch file of tensors: %s", path, error)
    for family in (official_aa, official_af):
        if (both := family.joined(path, content)) is not None:
            return both
    return content if isinstance(content, Mapping) else None


def _is_script(path: Path) -> bool:
    """Whether an archive is TorchScript (OpenAI's weights are), which holds code beside its tensors."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def flatten(content: Mapping[str, Any]) -> Flat:
    """The tensors of an authors' file under dotted names; the group `prompt_learner` leaves no prefix."""
    flat: Flat = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            flat[name.removeprefix("prompt_learner.")] = value.detach()
        elif isinstance(value, Mapping):
            prefix = "" if name == "prompt_learner" else f"{name}."
            flat |= {f"{prefix}{k}": v.detach() for k, v in value.items() if isinstance(v, Tensor)}
    return flat


def _cpu(flat: Flat) -> Flat:
    return {
        name: (t.detach().float() if t.is_floating_point() else t).cpu().contiguous().clone()
        for name, t in flat.items()
    }


def _check_backbone(path: Path, info: OfficialInfo, clip: CLIP) -> None:
    have = {"text width": clip.config.text.width, "image width": clip.config.vision.width}
    need = {"text width": info.text_width, "image width": info.vision_width}
    for name, value in need.items():
        if value is not None and value != have[name]:
            wanted = info.backbone or "the one it was trained on"
            raise BadCheckpoint(
                f"{path} needs a backbone of {name} {value}, this one has {have[name]}; "
                f"pass --backbone with {wanted}"
            )


def _family(method: Any) -> Any:
    """The module of FAMILIES that knows a method's files; None for the others."""
    return next((family for family in FAMILIES if isinstance(method, family.METHOD)), None)


def _learned(method: Any) -> Flat:
    """Learned parts in the names and shapes of the authors' file."""
    if isinstance(method, ViP2CLIP):
        return official_vip2.learned(method)
    if (family := _family(method)) is not None:
        return family.learned(method)
    return _anomaly_learned(method) if isinstance(method, AnomalyCLIP) else official_vcp.learned(method)


def _assign(method: Any, flat: Flat) -> None:
    if isinstance(method, ViP2CLIP):
        official_vip2.assign(method, flat)
        return
    if (family := _family(method)) is not None:
        family.assign(method, flat)
        return
    if isinstance(method, AnomalyCLIP):
        deep = [flat[f"compound_prompts_text.{i}"] for i in range(len(method.deep_tokens))]
        method.words.copy_(torch.cat([flat["ctx_pos"][0], flat["ctx_neg"][0]]))
        if deep:
            method.deep_tokens.copy_(torch.stack(deep))
        return
    official_vcp.assign(method, flat)


def _anomaly_learned(method: AnomalyCLIP) -> Flat:
    if method.config.object_aware:
        raise BadOption("the authors' files know the word 'object' only, not object-aware prompts")
    words = method.words.expand(2, -1, -1)
    deep = {f"compound_prompts_text.{i}": t for i, t in enumerate(method.deep_tokens)}
    return {"ctx_pos": words[None, :1], "ctx_neg": words[None, 1:]} | deep


def _anomaly_extra(method: AnomalyCLIP) -> Flat:
    """The rest of AnomalyCLIP's file: projections without use, and buffers that follow from the backbone."""
    count, width = len(method.deep_tokens), method.words.shape[-1]
    extra: Flat = {}
    for i in range(count):
        extra[f"compound_prompt_projections.{i}.weight"] = torch.zeros(UNUSED_WIDTH, width)
        extra[f"compound_prompt_projections.{i}.bias"] = torch.zeros(UNUSED_WIDTH)
    n_ctx = method.config.n_ctx
    (filler,) = tokenizer_of(method.clip).encode("X")[:1]
    prompts, _ = method.prompts()
    for state, words, prompt in zip(("pos", "neg"), prompts, method.templates(), strict=True):
        extra[f"token_prefix_{state}"] = words[None, None, :1]
        extra[f"token_suffix_{state}"] = words[None, None, 1 + n_ctx :]
        ids = torch.zeros(1, 1, len(words), dtype=torch.int32)
        ids[0, 0, : len(prompt.ids)] = torch.tensor(prompt.ids, dtype=torch.int32)
        ids[0, 0, 1 : 1 + n_ctx] = filler
        extra[f"tokenized_prompts_{state}"] = ids
    return extra


def _compare_words(path: Path, method: Any, flat: Flat) -> None:
    """Warn when the file's copies of the backbone's word embeddings differ from this backbone's."""
    ours = _words(method)
    for name in (*BUFFERS, official_vcp.MODEL_WORDS):
        if name not in flat or name not in ours:
            continue
        mine, theirs = (t.detach().float().cpu().flatten() for t in (ours[name], flat[name]))
        theirs = theirs[: len(mine)]  # VCP-CLIP+ appends a word of its own
        # Half precision weights differ by their rounding alone, far less than two backbones do.
        if mine.shape != theirs.shape or (mine - theirs).norm() > 0.02 * theirs.norm():
            log.warning(
                "%s was made on a backbone with other word embeddings (%s); scores may be wrong", path, name
            )
            return


def _words(method: Any) -> Flat:
    """This backbone's word embeddings under the names of their copies in the authors' file."""
    if isinstance(method, AnomalyCLIP):
        return _anomaly_extra(method)
    if isinstance(method, ViP2CLIP):
        return official_vip2.buffers(method)
    if _family(method) is not None:
        return {}
    return {official_vcp.MODEL_WORDS: method.clip.token_embedding.weight}
