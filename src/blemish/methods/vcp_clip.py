"""VCP-CLIP: visual context prompting (Qu et al., ECCV 2024), as its published code computes it.

The prompts "a photo of a good / damaged <class>" get the image's own context in place of the class name
(Pre-VCP, a small convolution over the class feature); deep prompts tune the text tower; a second branch lets
the texts attend to the patches (Post-VCP). Where paper and code disagree the code is followed; the preset
"paper" has the paper's fusion weight, no smoothing and the maximum as image score, the preset "baseline" is
the paper's baseline.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.attention import PatchAttention
from ..parts.deep_text import PromptNorm, deep_text_features
from ..parts.layers import reset_layer, resolve_activation
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, upsample_then_probability, upsample_then_softmax
from ..parts.prompts import TextCache, template
from ..parts.scores import cosine_logits, maximum, top_k_mean
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class VCPCLIPConfig:
    """Options of VCP-CLIP; the defaults are those of the authors' code."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    category_tokens: int = option(2, "vectors in place of the class name (r)", least=1)
    deep_tokens: int = option(1, "deep prompts before each text block (n)", least=1)
    heads: int = option(
        8, "attention heads of Post-VCP, fewer where the image tower's width needs it", least=1
    )
    mini_net: bool = option(True, "the class name's vectors carry the image's context (Pre-VCP)")
    post_vcp: bool = option(True, "second branch with text attending to patches (Post-VCP)")
    alpha: float = option(0.8, "weight of the Post-VCP map; the other branch has 1 - alpha", least=0)
    layer_reduction: str = option("mean", "how the maps of the layers are joined", ("mean", "sum"))
    sigma: float = option(8.0, "standard deviation of the map's smoothing, in pixels", least=0)
    image_score: str = option(
        "top_k",
        "mean of the top_k largest pixels of each branch, added; or maximum of the final map",
        ("top_k", "max"),
    )
    top_k: int = option(2000, "pixels in the image score; all of them in smaller maps", least=1)
    temperature: float = option(0.07, "initial temperature of both branches")
    freeze_temperature: bool = option(False, "the temperatures are not learned")
    dropout: float = option(0.1, "dropout of the deep prompts in training", least=0)
    activation: str = option(
        "auto",
        "MLP activation of both towers; auto: exact GELU on OpenAI's weights, as the authors trained, else"
        " the backbone's own",
        ("auto", "native", "gelu", "quick_gelu"),
    )
    template: str = option("a photo of a", "words of both prompts before the state word")
    state_words: tuple[str, ...] = option(("good", "damaged"), "words of the two states, normal first")
    position_resize: str = option("bicubic_antialias", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.state_words) != 2 or not all(word.strip() for word in self.state_words):
            raise BadOption(f"option state_words is {self.state_words!r}; expected two words, normal first")
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        for name, value, end in (("alpha", self.alpha, "1"), ("dropout", self.dropout, "1")):
            if not 0 <= value <= 1:
                raise BadOption(f"option {name} is {value}; expected a number from 0 to {end}")


@dataclass
class Branches:
    """What both branches compute from B images.

    text: (1 or B, 2, D), unit rows; base_logits, post_logits: (B, N, 2) per layer, scaled; projected: (B, N,
    D) per layer, the baseline's patches; post_text: (B, 2, W) per layer, unit rows.
    """

    text: Tensor
    base_logits: list[Tensor]
    projected: list[Tensor]
    post_logits: list[Tensor]
    post_text: list[Tensor]


class VCPCLIP(nn.Module):
    """Learned parts of VCP-CLIP on a frozen CLIP of any size.

    Where the text tower's width differs from the joint width (in none of the papers' backbones), a learned
    linear map `class_adapter` carries the class name's vectors from one to the other.
    """

    config_class: ClassVar[type] = VCPCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"alpha": 0.75, "sigma": 0.0, "image_score": "max"},
        "baseline": {"mini_net": False, "post_vcp": False},
    }
    # The published recipe on VisA; on MVTec AD the authors use 2e-5 and mosaics ("vcp_mosaic").
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 10,
        "batch_size": 32,
        "seed": 333,
        "augmentation": "vcp",
        "learning_rate": 4e-5,
    }
    learns_without_masks: ClassVar[bool] = False
    clip: CLIP

    def __init__(self, clip: CLIP, config: VCPCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VCPCLIPConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        shape, text = clip.config, clip.config.text
        self.activation = resolve_activation(config.activation, clip)
        self.blocks = resolve_layers(config.layers, shape.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers,
            projected=False,
            position_resize=config.position_resize,
            activation=self.activation,
        )
        self._set_ranges()
        self.linear = nn.ModuleList(nn.Linear(shape.vision.width, shape.embed_dim) for _ in self.blocks)
        self.category = nn.Parameter(torch.empty(config.category_tokens, shape.embed_dim))
        self.mini_net = nn.Conv1d(1, config.category_tokens, 3, padding=1) if config.mini_net else None
        self.class_adapter = nn.Linear(shape.embed_dim, text.width) if shape.embed_dim != text.width else None
        self.deep_prompts = nn.Parameter(torch.empty(text.layers, config.deep_tokens, text.width))
        self.deep_projection = nn.Linear(text.width, text.width)
        self.prompt_norm = PromptNorm(text.width, eps=1e-6)
        self.log_scale = nn.Parameter(torch.empty(()), requires_grad=not config.freeze_temperature)
        if config.post_vcp:
            self.post = PatchAttention(shape.embed_dim, shape.vision.width, config.heads)
            self.post_log_scale = nn.Parameter(torch.empty(()), requires_grad=not config.freeze_temperature)
        self.templates = [
            template(clip, f"{config.template} {word}", config.category_tokens, "")
            for word in config.state_words
        ]
        self._cache = TextCache()
        self.reset()
        self.to(clip.device)

    def _set_ranges(self) -> None:
        top = float(len(self.blocks)) if self.config.layer_reduction == "sum" else 1.0
        self.map_range = (0.0, top)
        added = self.config.image_score == "top_k" and self.config.post_vcp
        self.score_range = (0.0, 2 * top if added else top)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts as the authors do."""
        nn.init.trunc_normal_(self.category, generator=generator)
        nn.init.uniform_(self.deep_prompts, -1, 1, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                reset_layer(module, generator)
        nn.init.kaiming_normal_(self.deep_projection.weight, a=0, mode="fan_out", generator=generator)
        self.prompt_norm.reset_parameters()
        scale = math.log(1 / self.config.temperature)
        for parameter in self.scales():
            nn.init.constant_(parameter, scale)

    def scales(self) -> list[nn.Parameter]:
        """The logarithms of the two logit scales (one without Post-VCP)."""
        return [self.log_scale, self.post_log_scale] if self.config.post_vcp else [self.log_scale]

    @torch.no_grad()
    def learned_scalars(self) -> dict[str, float]:
        """What a training log should show: the temperatures (one without Post-VCP)."""
        names = ("temperature", "post_temperature")
        return {name: math.exp(-float(scale)) for name, scale in zip(names, self.scales(), strict=False)}

    def train(self, mode: bool = True) -> VCPCLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 4e-5) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`: the temperatures at 0.01, the rest at `learning_rate`.

        The authors use 4e-5 on VisA and 2e-5 on MVTec AD. Frozen temperatures are left out.
        """
        scales = [p for p in self.scales() if p.requires_grad]
        rest = [p for p in self.parameters() if p.requires_grad and all(p is not s for s in scales)]
        groups = [{"params": rest, "lr": learning_rate}, {"params": scales, "lr": 0.01}]
        return [{**group, "betas": (0.5, 0.999)} for group in groups if group["params"]]

    def category_tokens(self, class_feature: Tensor) -> Tensor:
        """Pre-VCP: the r vectors in place of the class name, (B, r, D); (1, r, D) without Mini-Net."""
        if self.mini_net is None:
            return self.category[None]
        return self.category + self.mini_net(class_feature.to(self.category.dtype)[:, None])

    def text_features(self, category: Tensor, trace: dict[str, Tensor] | None = None) -> Tensor:
        """Unit text features (B, 2, D), normal first, from category tokens (B, r, D)."""
        vectors = category if self.class_adapter is None else self.class_adapter(category)
        return deep_text_features(
            self.clip,
            self.templates,
            vectors,
            self.deep_projection(self.deep_prompts),
            self.prompt_norm,
            self.config.dropout if self.training else 0.0,
            self.activation,
            trace,
        )

    def branches(self, features: ImageFeatures) -> Branches:
        """Everything up to the logits on the patch grid."""
        text = self._text(features.class_feature)
        found = Branches(text, [], [], [], [])
        dtype = self.category.dtype
        for linear, tokens in zip(self.linear, features.tokens["qk"], strict=True):
            patches = tokens[:, 1:].to(dtype)
            projected = linear(patches)
            found.projected.append(projected)
            found.base_logits.append(self.log_scale.exp() * cosine_logits(projected, text))
            if self.config.post_vcp:
                unit = F.normalize(patches, dim=-1)
                post_text = self.post(text.to(dtype).expand(features.count, -1, -1), unit)
                found.post_text.append(post_text)
                found.post_logits.append(self.post_log_scale.exp() * (unit @ post_text.transpose(1, 2)))
        return found

    @property
    def attention_heads(self) -> int:
        """Heads of Post-VCP; 0 without it."""
        return self.post.heads if self.config.post_vcp else 0

    @torch.no_grad()
    def attention_maps(self, features: ImageFeatures) -> Tensor:
        """How much Post-VCP's texts look at each patch: see `blemish.types.Attends`."""
        dtype = self.category.dtype
        text = self._text(features.class_feature).to(dtype).expand(features.count, -1, -1)
        patches = (F.normalize(tokens[:, 1:].to(dtype), dim=-1) for tokens in features.tokens["qk"])
        return torch.stack([self.post.maps(text, layer, features.grid) for layer in patches], dim=1)

    def _text(self, class_feature: Tensor) -> Tensor:
        if self.mini_net is not None:
            return self.text_features(self.category_tokens(class_feature))
        count = len(class_feature) if self.training else 1
        category = self.category[None].expand(count, -1, -1)
        return self._cache.get(self, "text", lambda: self.text_features(category))

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in `score_range`; class names are not used.

        details: "text_features" (1 or B, 2, D), unit rows; "base_logits" and "post_logits", (B, N, 2) per
        layer; "projected" (B, N, D) and "post_text" (B, 2, W) per layer; "base_map", "post_map" and "map",
        the two branches and their fusion before smoothing.
        """
        found = self.branches(features)
        base = fused = self._join(found.base_logits, features)
        branches = [base]
        details = {"base_map": base}
        if self.config.post_vcp:
            post = self._join(found.post_logits, features)
            branches.append(post)
            details["post_map"] = post
            fused = (1 - self.config.alpha) * base + self.config.alpha * post
        smoothed = gaussian_blur(fused, self.config.sigma)
        if self.config.image_score == "max":
            score = maximum(smoothed)
        else:
            score = torch.stack([top_k_mean(m, self.config.top_k) for m in branches]).sum(dim=0)
        logits = {"base_logits": tuple(found.base_logits), "post_logits": tuple(found.post_logits)}
        texts = {"text_features": found.text, "post_text": tuple(found.post_text)}
        return Prediction(
            map=smoothed,
            score=score,
            details={**details, **logits, **texts, "projected": tuple(found.projected), "map": fused},
        )

    def _join(self, logits: list[Tensor], features: ImageFeatures) -> Tensor:
        """One branch's map (B, H, W): sum or mean over its layers."""
        maps = (upsample_then_probability(layer, features.grid, features.image_size) for layer in logits)
        total = reduce(torch.add, maps)
        return total / len(logits) if self.config.layer_reduction == "mean" else total

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss; their sum is the total.

        Per layer N (`layer_names`) "focal.base.N", "dice.base.N", and with Post-VCP "focal.post.N", "dice.post.N".
        Raises ValueError without masks: the method has no image-level loss.
        """
        if target.mask is None:
            raise ValueError("vcp_clip learns from masks only; give Target.mask, or train anomaly_clip")
        mask = target.mask.float()
        found = self.branches(features)
        branches = {"base": found.base_logits}
        if self.config.post_vcp:
            branches["post"] = found.post_logits
        terms = {}
        for branch, layers in branches.items():
            for layer, logits in zip(layer_names(self.blocks), layers, strict=True):
                maps = upsample_then_softmax(logits, features.grid, features.image_size)
                terms[f"focal.{branch}.{layer}"] = focal(maps, mask)
                terms[f"dice.{branch}.{layer}"] = dice(maps[:, 1], mask)
        return terms
