"""The shape of a CLIP model as data: everything that differs between the ViT CLIPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class VisionConfig:
    """Image tower. stem: "patch" (one convolution, as in CLIP) or "lite" (see `blemish.clip.stem`)."""

    width: int = 1024
    layers: int = 24
    heads: int = 16
    patch_size: int = 14
    image_size: int = 336
    mlp_width: int = 4096
    stem: str = "patch"

    @property
    def grid(self) -> int:
        """Side of the pre-training patch grid."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextConfig:
    """Text tower. tokenizer: "clip" (its byte-pair merges) or "own" (a tokenizer.json beside the weights)."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    context_length: int = 77
    vocab_size: int = 49408
    tokenizer: str = "clip"


@dataclass(frozen=True)
class CLIPConfig:
    """A whole CLIP. activation: the MLP activation the weights were trained with.

    source: "openai" when the weights are OpenAI's (the methods' activation overrides hold only there),
        any other text otherwise.
    """

    embed_dim: int = 768
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    activation: str = "quick_gelu"
    source: str = "openai"
    name: str = ""
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists and numbers, fit for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CLIPConfig:
        """The reverse of `to_dict`; unknown keys are refused with a ValueError that names them."""
        given = dict(data)
        given["vision"] = _build(VisionConfig, given.get("vision", {}))
        given["text"] = _build(TextConfig, given.get("text", {}))
        for key in ("mean", "std"):
            if key in given:
                given[key] = tuple(float(v) for v in given[key])
        config: CLIPConfig = _build(cls, given)
        return config


def _build(kind: type, values: dict[str, Any]) -> Any:
    unknown = set(values) - {f.name for f in fields(kind)}
    if unknown:
        raise ValueError(f"unknown {kind.__name__} keys: {', '.join(sorted(unknown))}")
    return kind(**values)
