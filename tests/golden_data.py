"""Golden data: what the authors' programs return for tiny random weights, as modules and tensors.

The sets in `tests/golden` keep only the rows of the word table that are in use (`token_ids`). The environment
variable BLEMISH_GOLDEN names another folder of sets in the same form, also with whole tables, other seeds and
other sizes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from blemish.clip.config import CLIPConfig, TextConfig, VisionConfig
from blemish.clip.model import CLIP
from blemish.clip.tokenizer import Tokenizer

Tensors = dict[str, Tensor]


def folder(name: str) -> Path:
    """Where a set is: in BLEMISH_GOLDEN when it has it, else beside the tests."""
    other = os.environ.get("BLEMISH_GOLDEN")
    if other and (Path(other) / name).is_dir():
        return Path(other) / name
    return Path(__file__).parent / "golden" / name


@dataclass(frozen=True)
class Golden:
    """One set: sizes and settings, the frozen backbone, learned tensors, inputs, and the authors' results."""

    name: str
    config: dict[str, Any]
    clip: CLIP
    method: Tensors
    inputs: Tensors
    expected: Tensors


def expected_names(name: str) -> list[str]:
    """Names of the tensors to compare, without reading them."""
    with safe_open(str(folder(name) / "expected.safetensors"), "pt") as file:
        return sorted(file.keys())


@lru_cache(maxsize=4)
def load(name: str) -> Golden:
    """Read a set; the same object every time, so callers must not change it."""
    root = folder(name)
    config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    read = {
        kind: load_file(root / f"{kind}.safetensors") for kind in ("clip", "method", "inputs", "expected")
    }
    clip = make_clip(clip_config(config), read["clip"])
    return Golden(name, config, clip, read["method"], read["inputs"], read["expected"])


def clip_config(config: dict[str, Any]) -> CLIPConfig:
    """The backbone's shape from a set's `config.json`, in either of the two forms in use."""
    flat = config.get("clip") or {
        "embed_dim": config["embed_dim"],
        **{f"vision_{key}": value for key, value in config["vision"].items()},
        **{f"text_{key}": value for key, value in config["text"].items()},
    }
    image_size = flat.get("pretrain_image_size") or flat["vision_pretrain_image_size"]
    return CLIPConfig(
        embed_dim=flat["embed_dim"],
        vision=VisionConfig(
            width=flat["vision_width"],
            layers=flat["vision_layers"],
            heads=flat["vision_heads"],
            patch_size=flat["vision_patch_size"],
            image_size=image_size,
            mlp_width=4 * flat["vision_width"],
        ),
        text=TextConfig(
            width=flat["text_width"],
            layers=flat["text_layers"],
            heads=flat["text_heads"],
            mlp_width=4 * flat["text_width"],
            context_length=flat.get("context_length") or flat["text_context"],
            vocab_size=flat.get("vocab_size") or flat["text_vocab"],
        ),
    )


def make_clip(config: CLIPConfig, tensors: Tensors) -> CLIP:
    """A frozen CLIP with the set's weights; words outside a reduced table become zeros."""
    tensors = dict(tensors)
    ids = tensors.pop("token_ids", None)
    if ids is not None:
        rows = tensors["token_embedding.weight"]
        table = rows.new_zeros(config.text.vocab_size, config.text.width)
        table[ids] = rows
        tensors["token_embedding.weight"] = table
    clip = CLIP(config)
    clip.load_state_dict(tensors)
    clip.tokenizer = Tokenizer.clip()
    return clip.freeze()
