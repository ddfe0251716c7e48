"""CoCoOp (Zhou et al., CVPR 2022) as a baseline of anomaly segmentation, set up as VCP-CLIP's paper describes it.

The prompts "[v1]..[v4] good <class>" and "[v1]..[v4] damaged <class>" have learned words that follow the image: a
small net adds one vector, made from the image's class feature, to all of them. Linear heads carry the patches of
several layers beside the texts, and focal and Dice losses on the maps train both. What VCP-CLIP's paper leaves open
is taken from its baseline (the map) or from CoCoOp (the prompts). There is no official code for this use.
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
from ..parts.class_names import in_prompts
from ..parts.heads import PatchHeads
from ..parts.layers import reset_layer
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, upsample_then_probability, upsample_then_softmax
from ..parts.prompts import Template, fill, template, tokenizer_of
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class CoCoOpConfig:
    """Options of CoCoOp; the defaults are those of its paper and of VCP-CLIP's baseline."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    n_ctx: int = option(4, "learned words before the state word (r)", least=1)
    init_words: str = option(
        "a photo of a", "what the learned words begin as, if they are n_ctx tokens; else noise"
    )
    state_words: tuple[str, ...] = option(("good", "damaged"), "words of the two states, normal first")
    reduction: int = option(16, "the Meta-Net's hidden width is the class feature's divided by this", least=1)
    temperature: float = option(0.07, "initial divisor of the patches' cosines, which is learned")
    image_temperature: float = option(0.01, "divisor of the class feature's cosines; 0.01 is CLIP's own")
    layer_reduction: str = option("mean", "how the maps of the layers are joined", ("mean", "sum"))
    sigma: float = option(8.0, "standard deviation of the map's smoothing, in pixels", least=0)
    head_rate: float = option(4e-5, "learning rate of the linear heads, under Adam", least=0)
    warm_up: float = option(
        0.005, "share of the learning rates in the first epoch: 1e-5 of 2e-3; 1 for no warm-up", least=0
    )
    position_resize: str = option("bicubic_antialias", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.state_words) != 2 or not all(word.strip() for word in self.state_words):
            raise BadOption(f"option state_words is {self.state_words!r}; expected two words, normal first")
        for name in ("temperature", "image_temperature"):
            if not getattr(self, name) > 0:
                raise BadOption(f"option {name} is {getattr(self, name)}; expected a number above 0")


class JointOptimiser(torch.optim.Optimizer):
    """Several optimisers, each with parameters of its own, as one: their groups in order, one state."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each part; no closure is called."""
        first = 0
        for part in self.parts:
            end = first + len(part.param_groups)
            # Shared anew in every step: loading a state replaces them.
            part.state, part.param_groups = self.state, self.param_groups[first:end]
            part.step()
            first = end


class CoCoOp(nn.Module):
    """Learned parts of CoCoOp on a frozen CLIP of any size.

    words: (n_ctx, W), W being the text tower's width; meta_net: class feature D -> W; heads: one per layer.
    """

    config_class: ClassVar[type] = CoCoOpConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    # CoCoOp's own, but for the batch: 1 in its code, where every image has prompts of its own.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 10,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 2e-3,
    }
    learns_without_masks: ClassVar[bool] = False
    uses_class_names: ClassVar[bool] = True
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: CoCoOpConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CoCoOpConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        shape = clip.config
        self.blocks = resolve_layers(config.layers, shape.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers, projected=False, position_resize=config.position_resize
        )
        self.map_range = (0.0, float(len(self.blocks)) if config.layer_reduction == "sum" else 1.0)
        self.words = nn.Parameter(torch.empty(config.n_ctx, shape.text.width))
        hidden = max(1, shape.embed_dim // config.reduction)
        self.meta_net = nn.Sequential(
            nn.Linear(shape.embed_dim, hidden), nn.ReLU(), nn.Linear(hidden, shape.text.width)
        )
        self.heads = PatchHeads(len(self.blocks), shape.vision.width, shape.embed_dim)
        self.log_scale = nn.Parameter(torch.empty(()))
        self.templates()
        self.to(clip.device)
        self.reset()

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts: words as `init_words` or N(0, 0.02^2), nets as `nn.Linear` does."""
        ids = tokenizer_of(self.clip).encode(self.config.init_words)
        if len(ids) == len(self.words):
            with torch.no_grad():
                self.words.copy_(self.clip.embed(torch.tensor(ids, device=self.clip.device)))
        else:
            nn.init.normal_(self.words, std=0.02, generator=generator)
        for layer in (m for m in self.meta_net if isinstance(m, nn.Linear)):
            reset_layer(layer, generator)
        self.heads.reset(generator)
        nn.init.constant_(self.log_scale, math.log(1 / self.config.temperature))

    @torch.no_grad()
    def learned_scalars(self) -> dict[str, float]:
        """What a training log should show: the temperature."""
        return {"temperature": math.exp(-float(self.log_scale))}

    def parameter_groups(self, learning_rate: float = 2e-3) -> list[dict[str, Any]]:
        """The prompts at `learning_rate`, the heads at `head_rate`, the temperature at 0.01 as in VCP-CLIP."""
        rest: list[dict[str, Any]] = [
            {"params": list(self.heads.parameters()), "lr": self.config.head_rate},
            {"params": [self.log_scale], "lr": 0.01},
        ]
        prompts = {"params": [self.words, *self.meta_net.parameters()], "lr": learning_rate}
        return [prompts, *({**group, "betas": (0.5, 0.999)} for group in rest)]

    def optimiser(self, learning_rate: float = 2e-3) -> torch.optim.Optimizer:
        """CoCoOp's SGD for the prompts, with Adam for the rest."""
        prompts, *rest = self.parameter_groups(learning_rate)
        return JointOptimiser(
            torch.optim.SGD([prompts], momentum=0.9, weight_decay=5e-4), torch.optim.Adam(rest)
        )

    def rate_factor(self, progress: float, epoch: int, step: int = 0) -> float:
        """Factor of all learning rates: `warm_up` in the first epoch, then a cosine that ends at 0.

        progress: share of all steps, 0..1. epoch: from 0. step: not used.
        """
        return self.config.warm_up if epoch == 0 else (1 + math.cos(math.pi * progress)) / 2

    def templates(self, class_name: str = "object") -> list[Template]:
        """Both prompts of a class in tokens, normal first."""
        words = (f"{state} {class_name}" for state in self.config.state_words)
        return [template(self.clip, "", self.config.n_ctx, after) for after in words]

    def text_features(self, class_feature: Tensor, class_names: Sequence[str] | None = None) -> Tensor:
        """Unit text features (B, 2, D) of B images, normal first.

        class_feature: (B, D), of any length but zero. class_names: one per image; None: "object". Raises ValueError
        for another number of names.
        """
        names = in_prompts(class_names, class_feature.shape[0])
        known = {name: self.templates(name) for name in dict.fromkeys(names)}
        length = max(len(t.ids) for templates in known.values() for t in templates)
        unit = F.normalize(class_feature.to(self.words.dtype), dim=-1)
        vectors = self.words + self.meta_net(unit)[:, None]
        if len(known) == 1:
            both = known[names[0]]
            prompts = torch.stack([fill(self.clip, t, vectors, length) for t in both], dim=1).flatten(0, 1)
            ends = torch.tensor([t.eot for t in both], device=vectors.device).repeat(vectors.shape[0])
        else:
            pairs = [(i, t) for i, name in enumerate(names) for t in known[name]]
            prompts = torch.cat([fill(self.clip, t, vectors[i : i + 1], length) for i, t in pairs])
            ends = torch.tensor([t.eot for _, t in pairs], device=vectors.device)
        found = self.clip.encode_embeddings(prompts, ends)
        return F.normalize(found.float(), dim=-1).unflatten(0, (-1, 2))

    def patch_logits(self, features: ImageFeatures, text: Tensor) -> list[Tensor]:
        """Cosines of the patches with both texts over the learned temperature: per layer (B, N, 2)."""
        patches = self.heads(features.tokens["qk"])
        return [self.log_scale.exp() * cosine_logits(layer, text) for layer in patches]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range`, scores (B,) in [0, 1]. class_names: one per image; None: "object".

        details: "text_features" (B, 2, D), unit rows; "map", before smoothing.
        """
        text = self.text_features(features.class_feature, class_names)
        image = cosine_logits(features.class_feature[:, None], text)[:, 0] / self.config.image_temperature
        logits = self.patch_logits(features, text)
        total = reduce(
            torch.add,
            (upsample_then_probability(layer, features.grid, features.image_size) for layer in logits),
        )
        raw = total / len(logits) if self.config.layer_reduction == "mean" else total
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=image.softmax(dim=-1)[:, 1],
            details={"text_features": text, "map": raw},
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, per layer N (`layer_names`) "focal.N" and "dice.N"; their sum is the total.

        Raises ValueError without masks: the method has no image-level loss.
        """
        if target.mask is None:
            raise ValueError("cocoop learns from masks only; give Target.mask, or train coop")
        mask = target.mask.float()
        text = self.text_features(features.class_feature, class_names)
        terms = {}
        for name, logits in zip(layer_names(self.blocks), self.patch_logits(features, text), strict=True):
            maps = upsample_then_softmax(logits, features.grid, features.image_size)
            terms[f"focal.{name}"] = focal(maps, mask)
            terms[f"dice.{name}"] = dice(maps[:, 1], mask)
        return terms
