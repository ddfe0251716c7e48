"""The configuration of a CLIP from its tensors' shapes and the files published beside them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import BadWeights
from .config import CLIPConfig, TextConfig, VisionConfig
from .formats import TRANSFORMERS
from .hub import BACKBONES, FORMAT, MODEL_FILES, OPEN_CLIP_CONFIG, OPEN_CLIP_FILES, read_json

logger = logging.getLogger(__name__)

# the one named backbone that is not OpenAI's, told by its width
PLUS_WIDTH = 896
# open_clip's H, g and bigG are the image towers whose heads are not 64 channels wide
_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}


def configure(tensors: Mapping[str, Tensor], naming: str, file: Path, repository: str) -> CLIPConfig:
    """Configuration of the tensors (OpenAI's names) read from `file`, which used `naming`.

    Shapes come first; the files that belong beside a file of this name add what shapes cannot tell.
    repository: hub id the file came from, or "". Raises BadWeights.
    """
    beside = {n: file.with_name(n) for n in ("config.json", OPEN_CLIP_CONFIG, "preprocessor_config.json")}
    described: dict[str, Any] = {}
    if file.name in MODEL_FILES and beside["config.json"].exists():
        described = read_json(beside["config.json"])
        if described.get("format") == FORMAT:
            return _own_config(described, beside["config.json"])
    config = _infer(tensors, file)
    if naming == TRANSFORMERS and described:
        config = _apply_transformers(config, described, beside["config.json"])
        if beside["preprocessor_config.json"].exists():
            seen = read_json(beside["preprocessor_config.json"])
            config = _normalised(config, seen.get("image_mean"), seen.get("image_std"))
    elif naming != TRANSFORMERS and file.name in OPEN_CLIP_FILES and beside[OPEN_CLIP_CONFIG].exists():
        config = _apply_open_clip(
            config, read_json(beside[OPEN_CLIP_CONFIG]), beside[OPEN_CLIP_CONFIG], repository
        )
    else:
        logger.info("%s: no configuration beside it, taken as %s weights", file, config.source)
    return replace(config, name=_name(config, repository) or repository or file.stem)


def _own_config(described: dict[str, Any], path: Path) -> CLIPConfig:
    values = {key: value for key, value in described.items() if key != "format"}
    try:
        return CLIPConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise BadWeights(f"{path}: {error}") from error


def _infer(tensors: Mapping[str, Tensor], file: Path) -> CLIPConfig:
    """All that shapes tell; heads by the usual head width, activation and source by OpenAI's habits."""

    def shape(name: str, dims: int) -> tuple[int, ...]:
        if name not in tensors:
            raise BadWeights(f"{file}: tensor {name} is missing")
        if tensors[name].dim() != dims:
            raise BadWeights(
                f"{file}: tensor {name} has shape {tuple(tensors[name].shape)}, expected {dims}-d"
            )
        return tuple(tensors[name].shape)

    if "visual.stem.conv.weight" in tensors:
        raise BadWeights(f"{file}: a CLIP with a convolutional stem needs its own config.json beside it")
    width, _, _, patch = shape("visual.conv1.weight", 4)
    positions = shape("visual.positional_embedding", 2)[0]
    grid = round((positions - 1) ** 0.5)
    if grid * grid != positions - 1:
        raise BadWeights(
            f"{file}: visual.positional_embedding has {positions} rows, not one more than a square grid"
        )
    vocabulary, text_width = shape("token_embedding.weight", 2)
    first = "transformer.resblocks.0.mlp.c_fc.weight"
    plus = width == PLUS_WIDTH
    return CLIPConfig(
        embed_dim=shape("visual.proj", 2)[1],
        vision=VisionConfig(
            width=width,
            layers=_depth(tensors, "visual.transformer"),
            heads=_heads(width),
            patch_size=patch,
            image_size=grid * patch,
            mlp_width=shape(f"visual.{first}", 2)[0],
        ),
        text=TextConfig(
            width=text_width,
            layers=_depth(tensors, "transformer"),
            heads=_heads(text_width),
            mlp_width=shape(first, 2)[0],
            context_length=shape("positional_embedding", 2)[0],
            vocab_size=vocabulary,
        ),
        activation="gelu" if plus else "quick_gelu",
        source="laion400m" if plus else "openai",
    )


def _apply_transformers(config: CLIPConfig, described: dict[str, Any], path: Path) -> CLIPConfig:
    """config.json of `transformers`, which leaves out what equals its own defaults."""
    if described.get("model_type") != "clip":
        raise BadWeights(f"{path}: model_type is {described.get('model_type')!r}, expected 'clip'")
    vision = described.get("vision_config") or {}
    text = described.get("text_config") or {}
    activations = {part.get("hidden_act", "quick_gelu") for part in (vision, text)}
    if len(activations) > 1 or not activations <= {"quick_gelu", "gelu"}:
        shown = ", ".join(sorted(activations))
        raise BadWeights(f"{path}: hidden_act is {shown}; both towers need quick_gelu, or both gelu")
    if {part.get("layer_norm_eps", 1e-5) for part in (vision, text)} != {1e-5}:
        raise BadWeights(f"{path}: layer_norm_eps is not the 1e-5 that CLIP uses")
    activation = activations.pop()
    source = "openai" if activation == "quick_gelu" else "transformers"
    return replace(
        config,
        vision=replace(config.vision, heads=int(vision.get("num_attention_heads", 12))),
        text=replace(config.text, heads=int(text.get("num_attention_heads", 8))),
        activation=activation,
        source=config.source if config.vision.width == PLUS_WIDTH else source,
    )


def _apply_open_clip(
    config: CLIPConfig, described: dict[str, Any], path: Path, repository: str
) -> CLIPConfig:
    """open_clip_config.json; OpenAI's weights are told by the repository's name, else by quick_gelu."""
    model = described.get("model_cfg", described)
    vision, text = model.get("vision_cfg") or {}, model.get("text_cfg") or {}
    for key, part, value in (("vision_cfg", vision, "tok"), ("text_cfg", text, "argmax")):
        if part.get("pool_type", value) != value:
            raise BadWeights(
                f"{path}: {key}.pool_type is {part['pool_type']!r}, expected {value!r} as in CLIP"
            )
        eps = ((part.get("norm_kwargs") or {}).get("eps")) or 1e-5
        if eps != 1e-5:
            raise BadWeights(f"{path}: {key}.norm_kwargs.eps is {eps}, expected the 1e-5 that CLIP uses")
    quick = bool(model.get("quick_gelu", False))
    openai = "openai" in repository.lower() if repository else quick
    heads = config.vision.heads
    if "head_width" in vision:
        heads = config.vision.width // int(vision["head_width"])
    source = "laion400m" if config.vision.width == PLUS_WIDTH else "open_clip"
    config = replace(
        config,
        vision=replace(config.vision, heads=heads),
        text=replace(config.text, heads=int(text.get("heads", config.text.heads))),
        activation="quick_gelu" if quick or openai else "gelu",
        source="openai" if openai else source,
    )
    seen = described.get("preprocess_cfg") or {}
    return _normalised(config, seen.get("mean"), seen.get("std"))


def _normalised(config: CLIPConfig, mean: Any, std: Any) -> CLIPConfig:
    """The configuration with another mean and standard deviation, where both are given for three channels."""
    if not mean or not std or len(mean) != 3 or len(std) != 3:
        return config
    r, g, b = map(float, mean)
    sr, sg, sb = map(float, std)
    return replace(config, mean=(r, g, b), std=(sr, sg, sb))


def _heads(width: int) -> int:
    return max(1, width // _HEAD_WIDTHS.get(width, 64))


def _depth(tensors: Mapping[str, Tensor], tower: str) -> int:
    prefix = f"{tower}.resblocks."
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in tensors if name.startswith(prefix)}
    return 1 + max((int(n) for n in numbers if n.isdigit()), default=-1)


def _name(config: CLIPConfig, repository: str) -> str:
    """Name of the backbone of these shapes and origin, "" when there is none; fine-tuned copies are others."""
    for name, known in BACKBONES.items():
        if known.config is not None and replace(config, name=name) == known.config:
            return name if not repository or repository in known.repositories else ""
    return ""
