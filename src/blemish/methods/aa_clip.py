"""AA-CLIP (Ma et al., CVPR 2025): anomaly-aware texts first, then patches that fit them, as its code computes it.

Two stages learn one after the other. Stage "text" puts adapters behind the first blocks of the text tower, with a
new projection, and moves the texts of normal and damaged things apart against the patches of the frozen image tower
(value-value attention). Stage "image" keeps these texts and puts adapters behind the first blocks of the image
tower, with a head for every level and one for the image score. Adapters go into the towers by argument; the frozen
CLIP stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.class_names import in_prompts
from ..parts.heads import PatchHeads
from ..parts.layers import resolve_activation
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, to_grid, upsample, upsample_then_softmax
from ..parts.prompt_bank import BANKS
from ..parts.prompts import TextCache, tokenizer_of
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option

SLOPE = 0.01  # of LeakyReLU below zero
SCALE = 100.0  # of the cosines
MILESTONES = (16_000, 32_000)  # steps after which the learning rate of stage "image" is halved


@dataclass(frozen=True)
class AACLIPConfig:
    """Options of AA-CLIP; the defaults are those of the authors' code."""

    stage: str = option(
        "image",
        "what is learned: the texts, against the frozen image tower, or the image tower's adapters after them",
        ("text", "image"),
    )
    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks whose maps are added: numbers from 1, or fractions of the depth"
    )
    stage1_levels: tuple[int | float, ...] = option(
        (1.0,), "image blocks that teach the texts; the paper adds up all four, its code uses the last alone"
    )
    vv_start: int | float = option(0.25, "first image block with value-value attention in stage text")
    text_adapters: int | float = option(0.25, "text blocks with an adapter, from the first on: 3 of 12")
    image_adapters: int | float = option(0.25, "image blocks with an adapter, from the first on: 6 of 24")
    adapter_weight: float = option(
        0.1, "share of an adapter's output in the tokens; 0 leaves the frozen tokens", least=0
    )
    head_relu: bool = option(False, "the levels' heads end in a LeakyReLU")
    apart_weight: float = option(
        0.1, "weight of the squared cosine of both texts in stage text's loss", least=0
    )
    prompts: str = option(
        "aaclip", "bank of sentences that the texts average over", ("aaclip", "april35", "ada4", "winclip")
    )
    sigma: float = option(1.0, "standard deviation of the smoothing on the patch grid, in patches", least=0)
    kernel: int = option(7, "side of that smoothing's square, an odd number of patches", least=1)
    image_score: str = option(
        "both",
        "of the image's own score and the map's maximum: the mean of both, or one alone",
        ("both", "map", "image"),
    )
    transductive_minmax: bool = option(
        False,
        "maps and scores are scaled by the least and largest of a class's test images, as in the authors' code "
        "(evaluation only, scores then depend on each other); else by those of the training images",
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
        if self.adapter_weight > 1:
            raise BadOption(f"option adapter_weight is {self.adapter_weight}; expected a number from 0 to 1")
        if self.kernel % 2 == 0:
            raise BadOption(f"option kernel is {self.kernel}; expected an odd number of patches")


class Adapter(nn.Module):
    """x -> (1 - share) x + share a, a being LeakyReLU(W x) at the length of x; token by token: (..., C) -> (..., C)."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.share = share

    def forward(self, tokens: Tensor) -> Tensor:
        x = tokens.to(self.linear.weight.dtype)
        found = F.leaky_relu(self.linear(x), SLOPE)
        length = x.norm(dim=-1, keepdim=True) / found.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return ((1 - self.share) * x + self.share * found * length).to(tokens.dtype)


class TextParts(nn.Module):
    """What stage "text" learns: adapters behind the first text blocks, and the map in place of the projection."""

    def __init__(self, blocks: int, width: int, joint: int, share: float) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(width, share) for _ in range(blocks))
        self.projection = nn.Linear(width, joint, bias=False)

    def project(self, x: Tensor) -> Tensor:
        """(B, W) -> (B, D)."""
        return F.leaky_relu(self.projection(x.to(self.projection.weight.dtype)), SLOPE)


class ImageParts(nn.Module):
    """What stage "image" learns: adapters behind the first image blocks, heads of the levels and of the score."""

    def __init__(self, blocks: int, levels: int, width: int, joint: int, share: float) -> None:
        super().__init__()
        self.adapters = nn.ModuleList(Adapter(width, share) for _ in range(blocks))
        self.heads = PatchHeads(levels, width, joint, bias=False)
        self.detection = nn.Linear(width, joint, bias=False)


class AACLIP(nn.Module):
    """Learned parts of AA-CLIP on a frozen CLIP of any size.

    ranges: (2, 2), least and largest value, of the raw map and of the raw image score, on the training images; no
    gradient changes them. Where the text tower's width differs from the joint one, the projection carries over.
    """

    config_class: ClassVar[type] = AACLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"stage1_levels": (0.25, 0.5, 0.75, 1.0)},
        "medical": {"kernel": 9, "sigma": 1.5, "image_score": "map"},
        "transductive": {"transductive_minmax": True},
    }
    stages: ClassVar[tuple[str, ...]] = ("text", "image")
    stage_recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "text": {
            "epochs": 5,
            "batch_size": 16,
            "augmentation": "none",
            "learning_rate": 1e-5,
            "cache": "on",  # its features are frozen
        }
    }
    recipe: ClassVar[dict[str, Any]] = {  # of the last stage
        "epochs": 20,
        "batch_size": 2,
        "seed": 111,
        "augmentation": "aa",
        "learning_rate": 5e-4,
    }
    learns_without_masks: ClassVar[bool] = False
    uses_class_names: ClassVar[bool] = True
    map_range = (0.0, 1.0)
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: AACLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AACLIPConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is learned, moved or saved here
        shape, text = clip.config.vision, clip.config.text
        self.activation = resolve_activation(config.activation, clip)
        self.blocks = resolve_layers(self._levels, shape.layers)
        self.needs = self._needs()
        (texts,) = resolve_layers([config.text_adapters], text.layers)
        (images,) = resolve_layers([config.image_adapters], shape.layers)
        resolve_layers([*config.layers, *config.stage1_levels, config.vv_start], shape.layers)
        joint, share = clip.config.embed_dim, config.adapter_weight
        self.text = TextParts(texts, text.width, joint, share)
        self.image = ImageParts(images, len(config.layers), shape.width, joint, share)
        self.ranges = nn.Parameter(torch.empty(2, 2), requires_grad=False)
        self.text.requires_grad_(config.stage == "text")
        self.image.requires_grad_(config.stage == "image")
        self._cache = TextCache()
        self._seen: dict[str, Tensor] = {}
        self.reset()
        self.to(clip.device)

    @property
    def _levels(self) -> tuple[int | float, ...]:
        return self.config.stage1_levels if self.config.stage == "text" else self.config.layers

    def _needs(self) -> FeatureSpec:
        common = FeatureSpec(activation=self.activation, position_resize=self.config.position_resize)
        if self.config.stage == "text":
            return replace(
                common, layers=self._levels, streams=("vv_path",), stream_start=self.config.vv_start
            )
        # The last block makes the image score, whatever the levels are.
        return replace(common, layers=(*self._levels, 1.0), projected=False, cacheable=False)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts, Xavier-uniform; ranges as wide as those of a trained method might be."""
        for parameter in (*self.text.parameters(), *self.image.parameters()):
            nn.init.xavier_uniform_(parameter, generator=generator)
        levels = len(self.blocks)
        with torch.no_grad():
            self.ranges.copy_(torch.tensor([[-9.5 * levels, 10.5 * levels], [0.0, 1.0]]))

    def train(self, mode: bool = True) -> AACLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        super().train(mode)
        self.text.train(mode and self.config.stage == "text")
        return self

    def parameter_groups(self, learning_rate: float = 5e-4) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, with the authors' betas: what the stage learns."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, "lr": learning_rate, "betas": (0.5, 0.999)}]

    def rate_factor(self, progress: float, epoch: int, step: int) -> float:
        """Factor of the learning rate: in stage "image" halved at each of MILESTONES, counted in steps."""
        return 0.5 ** sum(step >= m for m in MILESTONES) if self.config.stage == "image" else 1.0

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of B network inputs, through the image tower with its adapters unless the stage is "text"."""
        if self.config.stage == "text":
            return self.clip.encode_image(images, self.needs)
        adapters = dict(enumerate(self.image.adapters, start=1))
        return self.clip.encode_image(images, self.needs, adapters=adapters)

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
            return torch.stack(
                [self._mean(texts) for texts in BANKS[self.config.prompts].sentences(class_name)]
            )

        if self.config.stage == "text":
            return self._cache.get(self.text, class_name, encode)
        # The texts are learned no more. Tensors made in inference mode could not be used in training later.
        with torch.inference_mode(False), torch.no_grad():
            return self._cache.get(self.text, class_name, encode)

    def _mean(self, sentences: Sequence[str]) -> Tensor:
        """The unit feature (D,) that sentences average to."""
        clip = self.clip
        ids = tokenizer_of(clip)(sentences, clip.config.text.context_length, truncate=True).to(clip.device)
        found = clip.encode_embeddings(
            clip.embed(ids),
            ids.argmax(dim=-1),
            adapters=dict(enumerate(self.text.adapters, start=1)),
            projection=self.text.project,
            activation=self.activation,
        )
        return F.normalize(F.normalize(found.float(), dim=-1).mean(dim=0), dim=-1)

    def products(self, features: ImageFeatures, text: Tensor) -> tuple[list[Tensor], Tensor]:
        """Patches of every level (B, N, 2) and the image itself (B, 2) times the texts (1 or B, 2, D)."""
        texts = text.transpose(1, 2)
        if self.config.stage == "text":
            whole = F.normalize(features.class_feature.float(), dim=-1)[:, None]
            levels = [F.normalize(t[:, 1:].float(), dim=-1) + whole for t in features.tokens["vv_path"]]
        else:
            dtype = self.image.detection.weight.dtype
            normed = [self.clip.visual.ln_post(tokens).to(dtype) for tokens in features.tokens["qk"]]
            levels = [patches.float() for patches in self.image.heads(normed[:-1])]
            if self.config.head_relu:  # which keeps proportions, so unit vectors may go through it
                levels = [F.normalize(F.leaky_relu(patches, SLOPE), dim=-1) for patches in levels]
            patches = self.image.detection(normed[-1][:, 1:]).float()
            whole = F.normalize(patches, dim=-1).mean(dim=1, keepdim=True)
        return [patches @ texts for patches in levels], (whole @ texts)[:, 0]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in (0, 1). class_names: one per image, None: "object".

        Raw values on the scale of the training images, 0 to 1 (or of a class's test images, if these were surveyed
        for `transductive_minmax`), pass a logistic curve, which keeps their order beyond that scale too. details:
        "text_features" (1 or B, 2, D), unit rows; "raw_map" (B, H, W) and "raw_score" (B,), before the scale.
        """
        text = self.text_features(class_names, features.count)
        raw_map, raw_score = self._raw(features, text)
        ranges = self._ranges(class_names, features.count)
        anomaly_map = _scaled(raw_map, ranges[:, 0, :, None, None])
        parts = {"map": anomaly_map.flatten(1).amax(dim=1), "image": _scaled(raw_score, ranges[:, 1])}
        score = (
            (parts["map"] + parts["image"]) / 2
            if self.config.image_score == "both"
            else parts[self.config.image_score]
        )
        details = {"text_features": text, "raw_map": raw_map, "raw_score": raw_score}
        return Prediction(_squashed(anomaly_map), _squashed(score), details)

    def _raw(self, features: ImageFeatures, text: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, H, W), levels added, without softmax, and (cosine with the abnormal text + 1) / 2, (B,)."""
        patches, image = self.products(features, text)
        levels = torch.stack([(SCALE * (p[..., 1:] - p[..., :1]) + 1) / 2 for p in patches])
        # Smoothing and enlarging are linear: the levels are added before.
        grid = to_grid(levels.sum(dim=0), features.grid)
        if self.config.sigma:
            grid = gaussian_blur(grid, self.config.sigma, self.config.kernel // 2 / self.config.sigma)
        enlarged = upsample(
            grid.flatten(2).transpose(1, 2), features.grid, features.image_size, align_corners=True
        )
        return enlarged[:, 0], (image[:, 1] + 1) / 2

    def _ranges(self, class_names: Sequence[str] | None, count: int) -> Tensor:
        """The scale of each image's values: (1 or B, 2, 2)."""
        if not self._seen:
            return self.ranges[None]
        return torch.stack([self._seen.get(name, self.ranges) for name in in_prompts(class_names, count)])

    @torch.no_grad()
    def fit_scale(self, batches: Iterable[tuple[ImageFeatures, Sequence[str]]]) -> None:
        """Take the least and largest raw values of these images as the scale; see `blemish.types.Scaled`."""
        found: Tensor | None = None
        for features, class_names in batches:
            own = _extremes(*self._raw(features, self.text_features(class_names, features.count)))
            found = own if found is None else _joined(found, own)
        if found is not None:
            self.ranges.copy_(found)

    @property
    def surveys(self) -> bool:
        """Whether a class's test images set the scale."""
        return self.config.transductive_minmax

    @torch.no_grad()
    def survey(self, features: ImageFeatures, class_names: Sequence[str]) -> None:
        """Note the least and largest raw values of each class among B images."""
        raw_map, raw_score = self._raw(features, self.text_features(class_names, features.count))
        for i, name in enumerate(in_prompts(class_names, len(features))):
            own = _extremes(raw_map[i], raw_score[i])
            self._seen[name] = _joined(self._seen[name], own) if name in self._seen else own

    def forget_survey(self) -> None:
        """Begin anew, before another class."""
        self._seen.clear()

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the stage's loss; their sum is the total.

        Per level N (`layer_names`) "focal.N", "dice_abnormal.N", "dice_normal.N"; in stage text "apart", in stage image
        "image", cross-entropy of the plain products. Raises ValueError without masks.
        """
        if target.mask is None:
            raise ValueError("aa_clip learns from masks only; give Target.mask, or train anomaly_clip")
        mask, text = target.mask.float(), self.text_features(class_names, features.count)
        levels, image = self.products(features, text)
        terms = {}
        for name, patches in zip(layer_names(self.blocks), levels, strict=True):
            maps = upsample_then_softmax(SCALE * patches, features.grid, features.image_size)
            terms[f"focal.{name}"] = focal(maps, mask)
            terms[f"dice_abnormal.{name}"] = dice(maps[:, 1], mask)
            terms[f"dice_normal.{name}"] = dice(maps[:, 0], 1 - mask)
        if self.config.stage == "text":
            cosine = (text[:, 0] * text[:, 1]).sum(dim=-1).mean()
            return terms | {"apart": self.config.apart_weight * cosine**2}
        return terms | {"image": F.cross_entropy(image, target.label.long())}


def _scaled(values: Tensor, limits: Tensor) -> Tensor:
    """(value - least) / (largest - least), not cut. limits: (1 or B, 2), or with ones behind."""
    low, high = limits[:, 0], limits[:, 1]
    return (values - low) / (high - low).clamp_min(1e-6)


def _squashed(values: Tensor) -> Tensor:
    """Any values in order into (0, 1); 0 becomes 0.12, 1 becomes 0.88."""
    return torch.sigmoid(4 * (values - 0.5))


def _extremes(raw_map: Tensor, raw_score: Tensor) -> Tensor:
    """(2, 2): least and largest of a map's values, and of scores."""
    return torch.stack([torch.stack([values.min(), values.max()]) for values in (raw_map, raw_score)])


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([torch.minimum(a[:, 0], b[:, 0]), torch.maximum(a[:, 1], b[:, 1])], dim=1)
