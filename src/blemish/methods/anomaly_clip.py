"""AnomalyCLIP: object-agnostic prompt learning (Zhou et al., ICLR 2024), as its published code computes it.

Two prompts, "[V1]..[V12] object." and "[W1]..[W12] damaged object.", hold learned words; learned tokens
replace the first positions inside the text tower; local features come from a parallel stream of value-value
attention (DPAM). Where paper and code disagree the code is followed; the preset "paper" has the paper's
layers and weight, the other presets are its ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP, DeepPrompts
from ..errors import BadOption
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, softmax_then_upsample, upsample
from ..parts.prompts import Template, TextCache, fill, template
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, STREAMS, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option

STATES = ("", "damaged ")


@dataclass(frozen=True)
class AnomalyCLIPConfig:
    """Options of AnomalyCLIP; the defaults are those of the authors' released scripts."""

    layers: tuple[int | float, ...] = option(
        (1.0,), "image blocks whose maps are added: numbers from 1, or fractions of the depth"
    )
    local_weight: float = option(4.0, "weight of the map losses against the image loss (lambda)", least=0)
    n_ctx: int = option(12, "learned words in each prompt", least=1)
    depth: int = option(9, "text blocks with learned tokens: before blocks 2..depth", least=1)
    t_n_ctx: int = option(4, "learned tokens before each of these text blocks", least=1)
    rounding: str = option(
        "straight",
        "learned text tokens pass through fp16 as in the authors' code, with exact gradients (straight) or"
        " the authors' fp16 gradients (official); or they do not (off)",
        ("straight", "official", "off"),
    )
    streams: tuple[str, ...] = option(
        ("vv",), "attention of the local features; several are averaged before the softmax", STREAMS
    )
    stream_start: int | float = option(0.25, "first image block of the parallel attention")
    stream_ffn: bool = option(False, "the parallel stream also passes the MLP")
    shared_words: bool = option(False, "both prompts share their learned words")
    object_aware: bool = option(False, "the class name stands in the prompts in place of 'object'")
    temperature: float = option(0.07, "divisor of the cosine similarities, image and pixel level")
    sigma: float = option(4.0, "standard deviation of the map's smoothing, in pixels", least=0)
    layer_reduction: str = option("sum", "how the maps of several layers are joined", ("sum", "mean"))
    class_ln_post: bool = option(False, "the class feature passes ln_post before the projection, as in CLIP")
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        if self.t_n_ctx > self.n_ctx:
            raise BadOption(f"option t_n_ctx is {self.t_n_ctx}; expected at most n_ctx = {self.n_ctx}")


class AnomalyCLIP(nn.Module):
    """Learned words and deep text tokens of AnomalyCLIP on a frozen CLIP of any size.

    words: (2, n_ctx, W), normal and abnormal, or (1, n_ctx, W) when shared; deep_tokens: (depth - 1, t_n_ctx,
    W), W being the text tower's width; `depth` is at most the number of text blocks.
    """

    config_class: ClassVar[type] = AnomalyCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"layers": (0.25, 0.5, 0.75, 1.0), "local_weight": 1.0},
        "object_aware": {"object_aware": True},
        "shared_words": {"shared_words": True},
        "qk": {"streams": ("qk",)},
        "qq": {"streams": ("qq",)},
        "kk": {"streams": ("kk",)},
        "qq+kk+vv": {"streams": ("qq", "kk", "vv")},
        "qk+qq+kk+vv": {"streams": ("qk", "qq", "kk", "vv")},
    }
    # The published recipe: VisA's or MVTec AD's test split, the last epoch is the result.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 15,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 1e-3,
    }
    learns_without_masks: ClassVar[bool] = True
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: AnomalyCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AnomalyCLIPConfig()
        self.uses_class_names = config.object_aware
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        self.blocks = resolve_layers(config.layers, clip.config.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers,
            streams=config.streams,
            stream_start=config.stream_start,
            stream_ffn=config.stream_ffn,
            projected=True,
            class_ln_post=config.class_ln_post,
            position_resize=config.position_resize,
        )
        self.map_range = (0.0, float(len(self.blocks)) if config.layer_reduction == "sum" else 1.0)
        text = clip.config.text
        self.words = nn.Parameter(torch.empty(1 if config.shared_words else 2, config.n_ctx, text.width))
        depth = min(config.depth, text.layers)
        deep_tokens = torch.empty(depth - 1, config.t_n_ctx, text.width)
        self.deep_tokens = nn.Parameter(deep_tokens, requires_grad=depth > 1)
        self._templates: dict[str, list[Template]] = {}
        self._cache = TextCache()
        self.templates()
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts: N(0, 0.02^2)."""
        nn.init.normal_(self.words, std=0.02, generator=generator)
        nn.init.normal_(self.deep_tokens, std=0.02, generator=generator)

    def train(self, mode: bool = True) -> AnomalyCLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 1e-3) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, with the authors' rate and betas."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, "lr": learning_rate, "betas": (0.5, 0.999)}]

    def templates(self, class_name: str = "object") -> list[Template]:
        """Both prompts in tokens, normal first."""
        if class_name not in self._templates:
            self._templates[class_name] = [
                template(self.clip, "", self.config.n_ctx, f"{state}{class_name}.") for state in STATES
            ]
        return self._templates[class_name]

    def prompts(self, class_name: str = "object") -> tuple[Tensor, tuple[int, int]]:
        """Both prompts as word embeddings (2, context, W), normal first, and their end-of-text indices."""
        templates = self.templates(class_name)
        length = self.clip.config.text.context_length
        words = self.words.expand(2, -1, -1)
        rows = [fill(self.clip, t, words[i : i + 1], length) for i, t in enumerate(templates)]
        return torch.cat(rows), (templates[0].eot, templates[1].eot)

    def text_features(self, class_names: Sequence[str] | None = None) -> Tensor:
        """Features of the two prompts, not normalised: (1, 2, D), or (B, 2, D) for object-aware prompts."""
        if not self.config.object_aware:
            return self._text_of("object")[None]
        names = [name.replace("_", " ") for name in class_names or ["object"]]
        known = {name: self._text_of(name) for name in dict.fromkeys(names)}
        return torch.stack([known[name] for name in names])

    def _text_of(self, class_name: str) -> Tensor:
        def encode() -> Tensor:
            prompts, eot = self.prompts(class_name)
            deep = DeepPrompts([None, *(self._rounded(tokens) for tokens in self.deep_tokens)])
            index = torch.tensor(eot, device=prompts.device)
            return self.clip.encode_embeddings(prompts, index, deep=deep).float()

        return self._cache.get(self, class_name, encode)

    def _rounded(self, tokens: Tensor) -> Tensor:
        """Deep tokens (n, W) as both prompts see them, (2, n, W): rounded to fp16 as the authors do."""
        tokens = tokens.expand(2, -1, -1)
        if self.config.rounding == "off":
            return tokens
        rounded = tokens.half().to(tokens.dtype)
        return rounded if self.config.rounding == "official" else tokens + (rounded - tokens).detach()

    def image_logits(self, features: ImageFeatures, text: Tensor) -> Tensor:
        """Class feature against both texts, divided by the temperature: (B, 2)."""
        return cosine_logits(features.class_feature[:, None], text)[:, 0] / self.config.temperature

    def token_logits(self, features: ImageFeatures, text: Tensor) -> list[Tensor]:
        """Cosines of every token with both texts, divided by the temperature: per layer (B, 1+N, 2).

        The class token comes first.
        """
        streams = [features.tokens[stream] for stream in self.config.streams]
        return [
            torch.stack([cosine_logits(tokens, text) for tokens in layer]).mean(0) / self.config.temperature
            for layer in zip(*streams, strict=True)
        ]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in [0, 1].

        details: "text_features" (1 or B, 2, D), unit rows; "similarity", class probabilities per token
        (B, 1+N, 2) of each layer; "map", before smoothing. class_names: one per image, used by object-aware
        prompts.
        """
        text = self.text_features(class_names)
        score = self.image_logits(features, text).softmax(dim=-1)[:, 1]
        similarity = [logits.softmax(dim=-1) for logits in self.token_logits(features, text)]
        # Enlarging is linear, and 1 - P(normal) is P(abnormal): the layers are joined before one enlargement.
        abnormal = torch.stack([s[:, 1:, 1:] for s in similarity])
        abnormal = abnormal.sum(dim=0) if self.config.layer_reduction == "sum" else abnormal.mean(dim=0)
        raw = upsample(abnormal, features.grid, features.image_size, align_corners=False)[:, 0]
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=score,
            details={
                "text_features": F.normalize(text, dim=-1),
                "similarity": tuple(similarity),
                "map": raw,
            },
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, weights included; their sum is the total.

        "image", and per layer N (`layer_names`) "focal.N", "dice_abnormal.N", "dice_normal.N"; without masks
        only "image".
        """
        text = self.text_features(class_names)
        terms = {"image": F.cross_entropy(self.image_logits(features, text), target.label.long())}
        if target.mask is None:
            return terms
        mask = target.mask.float()
        for layer, logits in zip(layer_names(self.blocks), self.token_logits(features, text), strict=True):
            maps = softmax_then_upsample(logits[:, 1:], features.grid, features.image_size)
            parts = {
                "focal": focal(maps, mask),
                "dice_abnormal": dice(maps[:, 1], mask),
                "dice_normal": dice(maps[:, 0], 1 - mask),
            }
            terms |= {f"{name}.{layer}": self.config.local_weight * value for name, value in parts.items()}
        return terms
