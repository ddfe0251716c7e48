"""CoOp (Zhou et al., IJCV 2022) as a baseline of anomaly detection, set up as AnomalyCLIP's paper describes it.

The prompts "[V1]..[V16] normal <class>" and "[V1]..[V16] anomalous <class>" share their learned words, which are
all that is learned: from image labels, by cross-entropy on the class feature. Patches take no part in training;
their map compares CLIP's untouched last tokens with the learned pair. There is no official code for this use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.class_names import in_prompts
from ..parts.maps import gaussian_blur, softmax_then_upsample
from ..parts.prompts import Template, TextCache, fill, template
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class CoOpConfig:
    """Options of CoOp; the defaults are those of its paper, and of AnomalyCLIP's evaluation for the map."""

    n_ctx: int = option(
        16, "learned words before the state word; the paper has 16, 4 and 12 are common", least=1
    )
    state_words: tuple[str, ...] = option(("normal", "anomalous"), "words of the two states, normal first")
    trailing_period: bool = option(False, "the prompts end in a full stop, as in CoOp's code for ImageNet")
    temperature: float = option(0.01, "divisor of the class feature's cosines; 0.01 is CLIP's own")
    map_temperature: float = option(0.07, "divisor of the patches' cosines")
    sigma: float = option(4.0, "standard deviation of the map's smoothing, in pixels", least=0)
    warm_up: float = option(
        0.005, "share of the learning rate in the first epoch: 1e-5 of 2e-3; 1 for no warm-up", least=0
    )
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.state_words) != 2 or not all(word.strip() for word in self.state_words):
            raise BadOption(f"option state_words is {self.state_words!r}; expected two words, normal first")
        for name in ("temperature", "map_temperature"):
            if not getattr(self, name) > 0:
                raise BadOption(f"option {name} is {getattr(self, name)}; expected a number above 0")


class CoOp(nn.Module):
    """Learned words of CoOp on a frozen CLIP of any size. words: (n_ctx, W), W being the text tower's width."""

    config_class: ClassVar[type] = CoOpConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    # Nothing says for how many epochs the published run learned on anomalies; CoOp's own longest has 200, most 50.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 15,
        "batch_size": 32,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 2e-3,
    }
    learns_without_masks: ClassVar[bool] = True
    uses_class_names: ClassVar[bool] = True
    map_range = (0.0, 1.0)
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: CoOpConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or CoOpConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        self.needs = FeatureSpec(position_resize=config.position_resize)
        self.words = nn.Parameter(torch.empty(config.n_ctx, clip.config.text.width))
        self._cache = TextCache()
        self.templates()
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned words: N(0, 0.02^2)."""
        nn.init.normal_(self.words, std=0.02, generator=generator)

    def train(self, mode: bool = True) -> CoOp:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 2e-3) -> list[dict[str, Any]]:
        """The one group of `optimiser`."""
        return [{"params": [self.words], "lr": learning_rate}]

    def optimiser(self, learning_rate: float = 2e-3) -> torch.optim.Optimizer:
        """SGD with CoOp's momentum and weight decay."""
        return torch.optim.SGD(self.parameter_groups(learning_rate), momentum=0.9, weight_decay=5e-4)

    def rate_factor(self, progress: float, epoch: int, step: int = 0) -> float:
        """Factor of the learning rate: `warm_up` in the first epoch, then a cosine that ends at 0.

        progress: share of all steps, 0..1. epoch: from 0. step: not used.
        """
        return self.config.warm_up if epoch == 0 else (1 + math.cos(math.pi * progress)) / 2

    def templates(self, class_name: str = "object") -> list[Template]:
        """Both prompts of a class in tokens, normal first."""
        end = "." if self.config.trailing_period else ""
        words = (f"{state} {class_name}{end}" for state in self.config.state_words)
        return [template(self.clip, "", self.config.n_ctx, after) for after in words]

    def text_features(self, class_names: Sequence[str] | None, count: int) -> Tensor:
        """Unit text features of `count` images: (1, 2, D) when all show the same, else (count, 2, D).

        class_names: one per image; None: "object". Raises ValueError for another number of names.
        """
        names = in_prompts(class_names, count)
        known = {name: self._text_of(name) for name in dict.fromkeys(names)}
        if len(known) == 1:
            return known[names[0]][None]
        return torch.stack([known[name] for name in names])

    def _text_of(self, class_name: str) -> Tensor:
        def encode() -> Tensor:
            templates = self.templates(class_name)
            length = max(len(t.ids) for t in templates)
            prompts = torch.cat([fill(self.clip, t, self.words[None], length) for t in templates])
            ends = torch.tensor([t.eot for t in templates], device=prompts.device)
            return F.normalize(self.clip.encode_embeddings(prompts, ends).float(), dim=-1)

        return self._cache.get(self, class_name, encode)

    def _image_logits(self, features: ImageFeatures, text: Tensor) -> Tensor:
        return cosine_logits(features.class_feature[:, None], text)[:, 0] / self.config.temperature

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1]. class_names: one per image; None: "object".

        details: "text_features" (1 or B, 2, D), unit rows; "map", before smoothing.
        """
        text = self.text_features(class_names, features.count)
        score = self._image_logits(features, text).softmax(dim=-1)[:, 1]
        logits = cosine_logits(features.tokens["qk"][0][:, 1:], text) / self.config.map_temperature
        raw = softmax_then_upsample(logits, features.grid, features.image_size)[:, 1]
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=score,
            details={"text_features": text, "map": raw},
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """The one term "image", cross-entropy of the image labels; masks are not looked at."""
        text = self.text_features(class_names, features.count)
        return {"image": F.cross_entropy(self._image_logits(features, text), target.label.long())}
