"""APRIL-GAN (Chen et al., VAND workshop challenge at CVPR 2023), as its published code computes it.

Patches of four layers, each through a learned linear head, are compared with texts that average over a large
bank of sentences; the image score is CLIP's own, nothing learned goes into it. With a few normal images at hand
the map also says how far each patch is from the nearest patch of these (few-shot).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.heads import PatchHeads
from ..parts.layers import resolve_activation
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, upsample, upsample_then_probability, upsample_then_softmax
from ..parts.memory import FeatureMemory
from ..parts.prompt_bank import BANKS, BankTexts
from ..parts.scores import cosine_logits, maximum
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class AprilGANConfig:
    """Options of APRIL-GAN; the defaults are those of the authors' code."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    prompts: str = option(
        "april35",
        "bank of sentences that the texts average over; april35 has 245 normal and 175 abnormal ones",
        ("april35", "ada4", "winclip", "aaclip"),
    )
    temperature: float = option(0.01, "divides the cosines of image and patches")
    layer_reduction: str = option("sum", "how the maps of the layers are joined", ("sum", "mean"))
    sigma: float = option(0.0, "standard deviation of the map's smoothing, in pixels", least=0)
    few_shot_score: str = option(
        "fixed",
        "scale of the map's maximum in the few-shot image score: the map's range, or the least and largest "
        "maximum of a class's test images (the authors'; evaluation only, scores then depend on each other)",
        ("fixed", "minmax"),
    )
    activation: str = option(
        "auto",
        "MLP activation of both towers; auto: exact GELU on OpenAI's weights, as the authors trained, else"
        " the backbone's own",
        ("auto", "native", "gelu", "quick_gelu"),
    )
    position_resize: str = option("bicubic_antialias", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")


class AprilGAN(nn.Module):
    """Learned heads of APRIL-GAN on a frozen CLIP of any size; remembers normal images (`Remembers`)."""

    config_class: ClassVar[type] = AprilGANConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"transductive": {"few_shot_score": "minmax"}}
    # The published recipe on VisA; on MVTec AD 3 epochs with mosaics ("mosaic").
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 15,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 1e-3,
    }
    learns_without_masks: ClassVar[bool] = False
    uses_class_names: ClassVar[bool] = True
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: AprilGANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AprilGANConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is learned, moved or saved here
        shape = clip.config
        activation = resolve_activation(config.activation, clip)
        self.blocks = resolve_layers(config.layers, shape.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers,
            projected=False,
            position_resize=config.position_resize,
            activation=activation,
        )
        self.heads = PatchHeads(len(self.blocks), shape.vision.width, shape.embed_dim)
        self.texts = BankTexts(clip, BANKS[config.prompts], activation)
        self.normals = FeatureMemory()
        self._seen: tuple[float, float] | None = None
        self.reset()
        self.to(clip.device)

    @property
    def map_range(self) -> tuple[float, float]:
        """0 to the number of layers (1 for their mean), twice as much with a memory."""
        top = float(len(self.blocks)) if self.config.layer_reduction == "sum" else 1.0
        return (0.0, 2 * top if self.normals else top)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the heads as `nn.Linear` does."""
        self.heads.reset(generator)

    def parameter_groups(self, learning_rate: float = 1e-3) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, with the authors' rate and betas."""
        return [{"params": list(self.parameters()), "lr": learning_rate, "betas": (0.5, 0.999)}]

    def patch_logits(self, features: ImageFeatures, text: Tensor) -> list[Tensor]:
        """Cosines of every layer's projected patches with both texts, over the temperature: (B, N, 2)."""
        patches = self.heads(features.tokens["qk"])
        return [cosine_logits(layer, text) / self.config.temperature for layer in patches]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in [0, 1]; with a memory the few-shot ones.

        class_names: one per image, None: "object". details: "text_features" (1 or B, 2, D), unit rows;
        "text_score" (B,) and "text_map" (B, H, W), what the texts alone say, and with a memory "memory_map",
        what the normal images say, all before smoothing.
        """
        text = self.texts.per_image(class_names, features.count)
        logits = cosine_logits(features.class_feature[:, None], text)[:, 0] / self.config.temperature
        score = logits.softmax(dim=-1)[:, 1]
        text_map = self._join(
            upsample_then_probability(layer, features.grid, features.image_size)
            for layer in self.patch_logits(features, text)
        )
        details = {"text_features": text, "text_score": score, "text_map": text_map}
        if not self.normals:
            return Prediction(gaussian_blur(text_map, self.config.sigma), score, details)
        details["memory_map"] = memory_map = self.memory_map(features)
        anomaly_map = gaussian_blur(text_map + memory_map, self.config.sigma)
        return Prediction(anomaly_map, (score + self._scaled(maximum(anomaly_map))) / 2, details)

    def memory_map(self, features: ImageFeatures) -> Tensor:
        """Distances 1 - cos of raw patches to the nearest remembered ones, joined over the layers: (B, H, W).

        A distance counts at most 1: further than a right angle nothing resembles a normal patch any less.
        """
        return self._join(
            upsample(
                self.normals.distance(name, tokens[:, 1:]).clamp(max=1)[..., None],
                features.grid,
                features.image_size,
                align_corners=True,
            )[:, 0]
            for name, tokens in self._named(features)
        )

    def _named(self, features: ImageFeatures) -> list[tuple[str, Tensor]]:
        return list(zip(layer_names(self.blocks), features.tokens["qk"], strict=True))

    def _join(self, maps: Iterable[Tensor]) -> Tensor:
        """The layers' maps in one: their sum or mean."""
        total = torch.stack(list(maps)).sum(dim=0)
        return total / len(self.blocks) if self.config.layer_reduction == "mean" else total

    def _scaled(self, maxima: Tensor) -> Tensor:
        """Largest map values (B,) in [0, 1]: over the map's range, or between those of the images surveyed."""
        low, high = self._seen if self._seen is not None else self.map_range
        return ((maxima - low) / max(high - low, 1e-12)).clamp(0, 1)

    def remember(self, features: ImageFeatures) -> None:
        """Add B normal images to the memory: their raw patches of every layer."""
        for name, tokens in self._named(features):
            self.normals.add(name, tokens[:, 1:])

    def memory(self) -> dict[str, Tensor]:
        """What is remembered: per block the unit patches (M, W), float16; empty without normal images."""
        return self.normals.tensors()

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember exactly this; empty: forget. Raises ValueError when it is of other layers or widths."""
        width = self.clip.config.vision.width
        self.normals.load(tensors, dict.fromkeys(layer_names(self.blocks), width), self.clip.device)
        self.forget_survey()

    @property
    def surveys(self) -> bool:
        """Whether few-shot scores are scaled by all test images of a class."""
        return self.config.few_shot_score == "minmax" and bool(self.normals)

    def survey(self, features: ImageFeatures, class_names: Sequence[str]) -> None:
        """Note the least and largest map maximum of a class's images."""
        found, before = maximum(self(features, class_names).map), self._seen
        low, high = float(found.min()), float(found.max())
        self._seen = (low, high) if before is None else (min(low, before[0]), max(high, before[1]))

    def forget_survey(self) -> None:
        """Begin anew, before another class or memory."""
        self._seen = None

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss; their sum is the total: per layer N (`layer_names`) "focal.N", "dice.N".

        Raises ValueError without masks: the method has no image-level loss.
        """
        if target.mask is None:
            raise ValueError("april_gan learns from masks only; give Target.mask, or train anomaly_clip")
        mask = target.mask.float()
        text = self.texts.per_image(class_names, features.count)
        terms = {}
        for layer, logits in zip(layer_names(self.blocks), self.patch_logits(features, text), strict=True):
            maps = upsample_then_softmax(logits, features.grid, features.image_size)
            terms[f"focal.{layer}"] = focal(maps, mask)
            terms[f"dice.{layer}"] = dice(maps[:, 1], mask)
        return terms
