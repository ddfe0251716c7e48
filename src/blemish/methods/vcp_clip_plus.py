"""VCP-CLIP+: VCP-CLIP with four changes (Electronics 15(10):2058, 2026), as its published code computes it.

The two branches of VCP-CLIP stay: projected patches against the texts, and raw patches against texts that
have attended to them (Post-VCP). New are a fixed temperature, one learned fusion of the two branches in
training and inference (UniOp), a learned convex mix of focal and Dice loss (LoReb), and one token made of the
image feature and learned tokens in place of the class name (IDP). Each can be switched off; the presets are
the rows of the paper's ablation.
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
from ..parts.prompts import template
from ..parts.scores import cosine_logits, scaled_count, top_k_mean
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class VCPCLIPPlusConfig:
    """Options of VCP-CLIP+; the defaults are those of the authors' current code."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    temperature: str = option(
        "fixed", "divisor of the cosines: tau for good (fixed), or learned from tau", ("fixed", "learnable")
    )
    tau: float = option(0.07, "temperature of both branches, or where learning it begins")
    uniop: bool = option(True, "the branches' fusion weight is learned, and the loss is that of the fusion")
    uniop_init_logit: float = option(
        0.5, "initial logit of the fusion weight; 1.0986 starts at VCP-CLIP's 0.75"
    )
    uniop_resoftmax: bool = option(
        False, "a second softmax over the fused probabilities before the losses, as in the first code"
    )
    fusion_weight: float = option(0.75, "weight of the Post-VCP map without uniop", least=0)
    loreb: bool = option(True, "focal and Dice loss in a learned convex mix; else their plain sum")
    loreb_min_weight: float = option(
        0.0, "neither loss weighs less than this; 0.05 for long schedules or large rates", least=0
    )
    idp: bool = option(True, "one token of image feature and learned tokens as class name; else Pre-VCP")
    idp_tokens: int = option(3, "learned tokens of IDP (N; 2 to 10 in the paper)", least=1)
    category_tokens: int = option(2, "vectors in place of the class name without idp", least=1)
    deep_tokens: int = option(1, "deep prompts before each text block", least=1)
    heads: int = option(
        8, "attention heads of Post-VCP, fewer where the image tower's width needs it", least=1
    )
    layer_reduction: str = option("mean", "how the maps of the layers are joined", ("mean", "sum"))
    sigma: float = option(8.0, "standard deviation of the map's smoothing, in pixels", least=0)
    image_score_source: str = option(
        "branches",
        "top_k mean of each branch's map, added; or of the fused map before smoothing",
        ("branches", "fused"),
    )
    top_k: int = option(2000, "pixels in the image score; all of them in smaller maps", least=1)
    scale_top_k: bool = option(False, "top_k is meant for 518 x 518 pixels and scaled by area elsewhere")
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
        if not self.tau > 0:
            raise BadOption(f"option tau is {self.tau}; expected a number above 0")
        if not math.isfinite(self.uniop_init_logit):
            raise BadOption(f"option uniop_init_logit is {self.uniop_init_logit}; expected a finite number")
        if not self.loreb_min_weight < 0.5:
            raise BadOption(f"option loreb_min_weight is {self.loreb_min_weight}; expected less than 0.5")
        for name, value in (("fusion_weight", self.fusion_weight), ("dropout", self.dropout)):
            if not 0 <= value <= 1:
                raise BadOption(f"option {name} is {value}; expected a number from 0 to 1")


class IDP(nn.Module):
    """The image-driven prompt token: y = W_f [x ; LayerNorm(sum_n a_n P_n + c)] + b_f.

    c and everything that does not depend on the image only shift a learned offset; they are kept for the
    parameter count and the authors' files.
    """

    def __init__(self, count: int, embed_dim: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(count, width))
        self.summary = nn.Linear(count, 1)
        self.norm = nn.LayerNorm(width)
        self.fusion = nn.Linear(embed_dim + width, width)

    def offset(self) -> Tensor:
        """The normalised summary of the learned tokens, (W,); the same for every image."""
        normed: Tensor = self.norm(self.summary(self.tokens.T)[:, 0])
        return normed

    def forward(self, class_feature: Tensor) -> Tensor:
        """Class features (B, D), not normalised -> tokens (B, 1, W)."""
        class_feature = class_feature.to(self.tokens.dtype)
        offset = self.offset().to(class_feature.dtype).expand(class_feature.shape[0], -1)
        token: Tensor = self.fusion(torch.cat([class_feature, offset], dim=-1))
        return token[:, None]


@dataclass
class Branches:
    """What both branches compute from B images.

    text: (B, 2, D), unit rows; base_logits, post_logits: (B, N, 2) per layer, scaled; projected: (B, N, D)
    per layer, the CLIP branch's patches; post_text: (B, 2, W) per layer, unit rows.
    """

    text: Tensor
    base_logits: list[Tensor]
    projected: list[Tensor]
    post_logits: list[Tensor]
    post_text: list[Tensor]


class VCPCLIPPlus(nn.Module):
    """Learned parts of VCP-CLIP+ on a frozen CLIP of any size.

    Without IDP and where the text tower's width differs from the joint width (in none of the papers'
    backbones), a learned linear map `class_adapter` carries the class name's vectors from one to the other.
    """

    config_class: ClassVar[type] = VCPCLIPPlusConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "baseline": {"temperature": "learnable", "uniop": False, "loreb": False, "idp": False},
        "fixed": {"uniop": False, "loreb": False, "idp": False},
        "fixed+uniop": {"loreb": False, "idp": False},
        "fixed+loreb": {"uniop": False, "idp": False},
        "fixed+idp": {"uniop": False, "loreb": False},
        "fixed+uniop+loreb": {"idp": False},
        "fixed+uniop+idp": {"loreb": False},
        "fixed+loreb+idp": {"uniop": False},
        "full": {"temperature": "fixed", "uniop": True, "loreb": True, "idp": True},
    }
    # The published recipe on VisA; on MVTec AD the authors add mosaics ("vcp_mosaic").
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 10,
        "batch_size": 16,
        "seed": 333,
        "augmentation": "vcp",
        "learning_rate": 4e-5,
    }
    learns_without_masks: ClassVar[bool] = False
    clip: CLIP

    def __init__(self, clip: CLIP, config: VCPCLIPPlusConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VCPCLIPPlusConfig()
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
        top = float(len(self.blocks)) if config.layer_reduction == "sum" else 1.0
        self.map_range = (0.0, top)
        self.score_range = (0.0, 2 * top if config.image_score_source == "branches" else top)
        self.linear = nn.ModuleList(nn.Linear(shape.vision.width, shape.embed_dim) for _ in self.blocks)
        self._make_category(shape.embed_dim, text.width)
        self.deep_prompts = nn.Parameter(torch.empty(text.layers, config.deep_tokens, text.width))
        self.deep_projection = nn.Linear(text.width, text.width)
        self.prompt_norm = PromptNorm(text.width, eps=1e-6)
        self.post = PatchAttention(shape.embed_dim, shape.vision.width, config.heads)
        learned = config.temperature == "learnable"
        self.log_scale = nn.Parameter(torch.empty(()), requires_grad=learned)
        self.post_log_scale = nn.Parameter(torch.empty(()), requires_grad=learned)
        self.alpha = nn.Parameter(torch.empty(())) if config.uniop else None
        self.beta = nn.Parameter(torch.empty(())) if config.loreb else None
        self.templates = [
            template(clip, f"{config.template} {word}", 1 if config.idp else config.category_tokens, "")
            for word in config.state_words
        ]
        self.reset()
        self.to(clip.device)

    def _make_category(self, embed_dim: int, width: int) -> None:
        """What stands in place of the class name: IDP, or VCP-CLIP's vectors with Pre-VCP."""
        count = self.config.category_tokens
        if self.config.idp:
            self.idp: IDP | None = IDP(self.config.idp_tokens, embed_dim, width)
            return
        self.idp = None
        self.category = nn.Parameter(torch.empty(count, embed_dim))
        self.mini_net = nn.Conv1d(1, count, 3, padding=1)
        self.class_adapter = nn.Linear(embed_dim, width) if embed_dim != width else None

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts as the authors do."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv1d):
                reset_layer(module, generator)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        if self.idp is not None:
            nn.init.normal_(self.idp.tokens, generator=generator)
        else:
            nn.init.trunc_normal_(self.category, generator=generator)
        nn.init.uniform_(self.deep_prompts, -1, 1, generator=generator)
        nn.init.kaiming_normal_(self.deep_projection.weight, a=0, mode="fan_out", generator=generator)
        for scale in (self.log_scale, self.post_log_scale):
            nn.init.constant_(scale, math.log(1 / self.config.tau))
        if self.alpha is not None:
            nn.init.constant_(self.alpha, self.config.uniop_init_logit)
        if self.beta is not None:
            nn.init.constant_(self.beta, 0.5)

    def parameter_groups(self, learning_rate: float = 4e-5) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`: all parts at `learning_rate`, alpha and beta at 4e-3.

        Learnable temperatures have VCP-CLIP's rate, 0.01; fixed ones are left out.
        """
        scales = [p for p in (self.log_scale, self.post_log_scale) if p.requires_grad]
        weights = [p for p in (self.alpha, self.beta) if p is not None]
        own = {id(p) for p in (*scales, *weights)}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        groups = [
            {"params": rest, "lr": learning_rate},
            {"params": weights, "lr": 4e-3},
            {"params": scales, "lr": 0.01},
        ]
        return [{**group, "betas": (0.5, 0.999)} for group in groups if group["params"]]

    def fusion_weight(self) -> Tensor | float:
        """w, the weight of the Post-VCP branch: sigmoid(alpha), or the option without UniOp."""
        return self.config.fusion_weight if self.alpha is None else self.alpha.sigmoid()

    def loss_weights(self) -> tuple[Tensor | float, Tensor | float]:
        """Factors of the focal and of the Dice loss: b and 1 - b, or 1 and 1 without LoReb."""
        if self.beta is None:
            return 1.0, 1.0
        least = self.config.loreb_min_weight
        b = least + (1 - 2 * least) * self.beta.sigmoid()
        return b, 1 - b

    @torch.no_grad()
    def learned_scalars(self) -> dict[str, float]:
        """What a training log should show: fusion weight w, focal weight b, both temperatures."""
        return {
            "fusion_weight": float(self.fusion_weight()),
            "focal_weight": float(self.loss_weights()[0]),
            "temperature": math.exp(-float(self.log_scale)),
            "post_temperature": math.exp(-float(self.post_log_scale)),
        }

    def category_tokens(self, class_feature: Tensor) -> Tensor:
        """The vectors in place of the class name, (B, 1 or r, text width)."""
        if self.idp is not None:
            token: Tensor = self.idp(class_feature)
            return token
        vectors = self.category + self.mini_net(class_feature.to(self.category.dtype)[:, None])
        return vectors if self.class_adapter is None else self.class_adapter(vectors)

    def text_features(self, category: Tensor, trace: dict[str, Tensor] | None = None) -> Tensor:
        """Unit text features (B, 2, D), normal first, from `category_tokens`."""
        return deep_text_features(
            self.clip,
            self.templates,
            category,
            self.deep_projection(self.deep_prompts),
            self.prompt_norm,
            self.config.dropout if self.training else 0.0,
            self.activation,
            trace,
        )

    def branches(self, features: ImageFeatures) -> Branches:
        """Everything up to the logits on the patch grid."""
        text = self.text_features(self.category_tokens(features.class_feature))
        found = Branches(text, [], [], [], [])
        dtype = self.deep_prompts.dtype
        for linear, tokens in zip(self.linear, features.tokens["qk"], strict=True):
            patches = tokens[:, 1:].to(dtype)
            projected = linear(patches)
            found.projected.append(projected)
            found.base_logits.append(self.log_scale.exp() * cosine_logits(projected, text))
            unit = F.normalize(patches, dim=-1)
            post_text = self.post(text.to(dtype), unit)
            found.post_text.append(post_text)
            found.post_logits.append(self.post_log_scale.exp() * (unit @ post_text.transpose(1, 2)))
        return found

    @property
    def attention_heads(self) -> int:
        """Heads of Post-VCP."""
        return self.post.heads

    @torch.no_grad()
    def attention_maps(self, features: ImageFeatures) -> Tensor:
        """How much Post-VCP's texts look at each patch: see `blemish.types.Attends`."""
        dtype = self.deep_prompts.dtype
        text = self.text_features(self.category_tokens(features.class_feature)).to(dtype)
        patches = (F.normalize(tokens[:, 1:].to(dtype), dim=-1) for tokens in features.tokens["qk"])
        return torch.stack([self.post.maps(text, layer, features.grid) for layer in patches], dim=1)

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in `score_range`; class names are not used.

        details: "text_features" (B, 2, D), unit rows; "base_logits" and "post_logits", (B, N, 2) per layer;
        "projected" (B, N, D) and "post_text" (B, 2, W) per layer; "base_map", "post_map" and "map", the two
        branches and their fusion before smoothing.
        """
        found = self.branches(features)
        base, post = (self._join(logits, features) for logits in (found.base_logits, found.post_logits))
        # The same weight for all layers, so the fusion may follow their mean.
        weight = self.fusion_weight()
        fused = (1 - weight) * base + weight * post
        sources = (base, post) if self.config.image_score_source == "branches" else (fused,)
        score = torch.stack([top_k_mean(m, self._top_k(m)) for m in sources]).sum(dim=0)
        details = {
            "text_features": found.text,
            "base_logits": tuple(found.base_logits),
            "post_logits": tuple(found.post_logits),
            "projected": tuple(found.projected),
            "post_text": tuple(found.post_text),
            "base_map": base,
            "post_map": post,
            "map": fused,
        }
        return Prediction(gaussian_blur(fused, self.config.sigma), score, details)

    def _join(self, logits: list[Tensor], features: ImageFeatures) -> Tensor:
        """One branch's map (B, H, W): sum or mean over its layers."""
        maps = (upsample_then_probability(layer, features.grid, features.image_size) for layer in logits)
        total = reduce(torch.add, maps)
        return total / len(logits) if self.config.layer_reduction == "mean" else total

    def _top_k(self, maps: Tensor) -> int:
        return scaled_count(self.config.top_k, maps) if self.config.scale_top_k else self.config.top_k

    def training_maps(self, features: ImageFeatures) -> dict[str, list[Tensor]]:
        """Class probabilities (B, 2, H, W) per layer as the losses see them.

        "fused" with UniOp, "base" and "post" without.
        """
        found = self.branches(features)
        base, post = (
            [upsample_then_softmax(x.float(), features.grid, features.image_size) for x in logits]
            for logits in (found.base_logits, found.post_logits)
        )
        if not self.config.uniop:
            return {"base": base, "post": post}
        weight = self.fusion_weight()
        fused = [(1 - weight) * b + weight * p for b, p in zip(base, post, strict=True)]
        return {"fused": [u.softmax(dim=1) if self.config.uniop_resoftmax else u for u in fused]}

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, weighted by LoReb where it is on; their sum is the total.

        Per layer N (`layer_names`) "focal.fused.N", "dice.fused.N"; without UniOp the same of "base" and "post".
        Raises ValueError without masks: the method has no image-level loss.
        """
        if target.mask is None:
            raise ValueError("vcp_clip_plus learns from masks only; give Target.mask, or train anomaly_clip")
        mask = target.mask.float()
        focal_weight, dice_weight = self.loss_weights()
        terms = {}
        for branch, layers in self.training_maps(features).items():
            for layer, maps in zip(layer_names(self.blocks), layers, strict=True):
                terms[f"focal.{branch}.{layer}"] = focal_weight * focal(maps, mask)
                terms[f"dice.{branch}.{layer}"] = dice_weight * dice(maps[:, 1], mask)
        return terms
