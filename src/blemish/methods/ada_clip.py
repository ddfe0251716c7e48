"""AdaCLIP: hybrid learnable prompts (Cao et al., ECCV 2024), as its published code computes it.

Learned tokens enter both towers: behind the patches of the first image blocks, in place of the first words before
the first text blocks. Each is the sum of a static part and one made from the image (dynamic). Linear heads carry
patches and class feature beside the averaged texts of 48 sentences. The image score looks at the class feature
mixed with the centres of clusters of the most abnormal patches (hybrid semantic fusion). Where paper and code
disagree the code is followed; the preset "paper" has the paper's fusion.
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
from ..parts.class_names import in_prompts
from ..parts.heads import PatchHeads
from ..parts.layers import reset_layer, resolve_activation
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, upsample_then_probability, upsample_then_softmax
from ..parts.prompt_bank import BANKS
from ..parts.prompts import tokenizer_of
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option

K_MEANS_STEPS = 10


@dataclass(frozen=True)
class AdaCLIPConfig:
    """Options of AdaCLIP; the defaults are those of the authors' code."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    depth: int = option(
        4,
        "prompts before image blocks 1..depth and text blocks 2..depth, as far as there are any (J)",
        least=2,
    )
    length: int = option(5, "learned tokens before each of these blocks (M)", least=1)
    fusion: str = option(
        "code",
        "what joins the class feature in the image score: all clusters of the most abnormal patches (code), the"
        " most abnormal cluster of all patches (paper), or nothing (off)",
        ("code", "paper", "off"),
    )
    clusters: int = option(20, "clusters of patches in the fusion (K)", least=1)
    abnormal_patches: int = option(
        100, "patches that the code's fusion looks at; all of them on smaller grids", least=1
    )
    fusion_weight: float = option(0.2, "weight of the clusters in the image feature", least=0)
    temperature: float = option(0.01, "divisor of all cosines; 0.01 is CLIP's own")
    sigma: float = option(4.0, "standard deviation of the map's smoothing, in pixels", least=0)
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
        if not self.fusion_weight <= 1:
            raise BadOption(f"option fusion_weight is {self.fusion_weight}; expected a number from 0 to 1")


class AdaCLIP(nn.Module):
    """Learned parts of AdaCLIP on a frozen CLIP of any size.

    static_visual: (J, M, image width), static_text: (J, M, text width), whose first row nothing uses, as in the
    authors' code; dynamic_visual, dynamic_text: class feature D -> M tokens, the same before every block; heads: one
    per layer; class_head: D -> D.
    """

    config_class: ClassVar[type] = AdaCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"paper": {"fusion": "paper"}}
    # The authors train on two datasets (MVTec AD and ColonDB, or VisA and ClinicDB). Their rate is unstable and
    # they kept the best of several runs by the target's F1; here the last epoch is the result, whatever it is.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 5,
        "batch_size": 1,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 0.01,
    }
    learns_without_masks: ClassVar[bool] = True
    uses_class_names: ClassVar[bool] = True
    map_range = (0.0, 1.0)
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: AdaCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AdaCLIPConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        shape = clip.config
        self.activation = resolve_activation(config.activation, clip)
        self.blocks = resolve_layers(config.layers, shape.vision.layers)
        resize = config.position_resize
        self.needs = FeatureSpec(
            layers=config.layers,
            projected=False,
            position_resize=resize,
            activation=self.activation,
            cacheable=False,
        )
        # Of the pass without prompts the class feature alone is used; block 1's tokens cost nothing.
        self._plain = FeatureSpec(layers=(1,), position_resize=resize, activation=self.activation)
        joint, vision, text = shape.embed_dim, shape.vision, shape.text
        count = config.length
        self.static_visual = nn.Parameter(torch.empty(min(config.depth, vision.layers), count, vision.width))
        self.static_text = nn.Parameter(torch.empty(min(config.depth, text.layers), count, text.width))
        self.dynamic_visual = nn.Linear(joint, count * vision.width)
        self.dynamic_text = nn.Linear(joint, count * text.width)
        self.heads = PatchHeads(len(self.blocks), vision.width, joint)
        self.class_head = nn.Linear(joint, joint)
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts: static prompts N(0, 0.02^2), the rest as `nn.Linear` does."""
        nn.init.normal_(self.static_visual, std=0.02, generator=generator)
        nn.init.normal_(self.static_text, std=0.02, generator=generator)
        for linear in (self.dynamic_visual, self.dynamic_text, self.class_head):
            reset_layer(linear, generator)
        self.heads.reset(generator)

    def parameter_groups(self, learning_rate: float = 0.01) -> list[dict[str, Any]]:
        """The one group of `optimiser`."""
        return [{"params": list(self.parameters()), "lr": learning_rate, "betas": (0.5, 0.999)}]

    def optimiser(self, learning_rate: float = 0.01) -> torch.optim.Optimizer:
        """AdamW with the authors' betas and its usual weight decay."""
        return torch.optim.AdamW(self.parameter_groups(learning_rate), weight_decay=0.01)

    def encode(self, images: Tensor) -> ImageFeatures:
        """Features of B network inputs (B, 3, H, W) with the prompts in the image tower.

        `plain_class_feature` is the frozen tower's, of a first pass without prompts; the prompts follow from it.
        """
        with torch.no_grad():
            plain = self.clip.encode_image(images, self._plain).class_feature
        features = self.clip.encode_image(images, self.needs, self.visual_prompts(plain))
        features.plain_class_feature = plain
        return features

    def visual_prompts(self, plain: Tensor) -> list[Tensor]:
        """Tokens (B, M, W) for each image block from 1. plain: (B, D), the class feature without prompts."""
        return self._hybrid(self.static_visual, self.dynamic_visual, plain)

    def _hybrid(self, static: Tensor, dynamic: nn.Linear, plain: Tensor) -> list[Tensor]:
        found = dynamic(plain.to(static.dtype)).unflatten(1, static.shape[1:])
        return [tokens + found for tokens in static]

    def sentences(self, class_name: str) -> tuple[list[str], list[str]]:
        """The normal (28) and the abnormal (20) sentences of a class; hyphens and underscores count as spaces."""
        (name,) = in_prompts([class_name.replace("-", " ")], 1)
        return BANKS["ada4"].sentences(name)

    def text_features(self, plain: Tensor, class_names: Sequence[str] | None = None) -> Tensor:
        """Unit text features (B, 2, D) of B images, normal first.

        plain: as for `visual_prompts`. class_names: one per image; None: "object". Raises ValueError for another
        number of names.
        """
        names = in_prompts(class_names, plain.shape[0])
        prompts = self._hybrid(self.static_text, self.dynamic_text, plain)[1:]
        context, tokenizer = self.clip.config.text.context_length, tokenizer_of(self.clip)
        known = {}
        for name in dict.fromkeys(names):
            normal, abnormal = self.sentences(name)
            ids = tokenizer([*normal, *abnormal], context, truncate=True).to(self.clip.device)
            known[name] = ids, [len(normal), len(abnormal)]
        if torch.compiler.is_exporting():  # one name, and images that cannot be counted
            return self._texts_of(*known[names[0]], prompts)
        rows = [
            self._texts_of(*known[name], [tokens[i : i + 1] for tokens in prompts])
            for i, name in enumerate(names)
        ]
        return torch.cat(rows)

    def _texts_of(self, ids: Tensor, counts: list[int], prompts: list[Tensor]) -> Tensor:
        """Unit text features (B, 2, D) of a class's sentences (S, T) with the prompts (B, M, W) of B images."""
        count, sentences = prompts[0].shape[0] if prompts else 1, ids.shape[0]
        deep = DeepPrompts([None, *(tokens.repeat_interleave(sentences, dim=0) for tokens in prompts)])
        found = self.clip.encode_embeddings(
            self.clip.embed(ids).repeat(count, 1, 1),
            ids.argmax(dim=-1).repeat(count),
            deep=deep,
            activation=self.activation,
        )
        unit = F.normalize(found.float(), dim=-1).unflatten(0, (count, sentences))
        means = [part.mean(dim=1) for part in unit.split(counts, dim=1)]
        return F.normalize(torch.stack(means, dim=1), dim=-1)

    def compare(
        self, features: ImageFeatures, class_names: Sequence[str] | None
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Text features (B, 2, D), patch logits (B, N, 2) per layer, and image logits (B, 2).

        Raises ValueError for features that `encode` has not made.
        """
        if features.plain_class_feature is None:
            raise ValueError("these features were made without AdaCLIP's prompts; make them by its encode()")
        text = self.text_features(features.plain_class_feature, class_names)
        patches = self.heads(features.tokens["qk"])
        logits = [cosine_logits(layer, text) / self.config.temperature for layer in patches]
        image = F.normalize(self.class_head(features.class_feature.to(self.class_head.weight.dtype)), dim=-1)
        weight = self.config.fusion_weight
        if self.config.fusion != "off":
            image = weight * self._cluster_feature(patches, logits) + (1 - weight) * image
        return text, logits, cosine_logits(image[:, None], text)[:, 0] / self.config.temperature

    def _cluster_feature(self, patches: list[Tensor], logits: list[Tensor]) -> Tensor:
        """Hybrid semantic fusion's unit vector (B, D). patches: (B, N, D) per layer, unit; logits: (B, N, 2)."""
        config = self.config
        abnormal = torch.stack(logits).detach().mean(dim=0).softmax(dim=-1)[..., 1]
        wanted = config.abnormal_patches if config.fusion == "code" else abnormal.shape[1]
        # In falling order: the first centre is the most abnormal patch.
        abnormal, chosen = abnormal.topk(min(wanted, abnormal.shape[1]), dim=1)
        rows = torch.arange(chosen.shape[0], device=chosen.device)[:, None]
        layers = torch.stack(patches, dim=2)[rows, chosen]
        clusters = k_means(layers.detach().flatten(2), config.clusters)
        member = F.one_hot(clusters, config.clusters).to(layers.dtype).transpose(1, 2)
        sizes = member.sum(dim=2)
        centres = member @ layers.mean(dim=2) / sizes.clamp_min(1)[..., None]
        if config.fusion == "code":
            weights = (sizes > 0).to(layers.dtype)
        else:
            means = (member @ abnormal.to(layers.dtype)[..., None])[..., 0] / sizes.clamp_min(1)
            weights = F.one_hot(means.argmax(dim=1), config.clusters).to(layers.dtype)
        return F.normalize((weights[:, None] @ centres)[:, 0], dim=-1)

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1] from the features of `encode`.

        class_names: one per image; None: "object". details: "text_features" (B, 2, D), unit rows; "map", before
        smoothing.
        """
        text, logits, image = self.compare(features, class_names)
        mean = torch.stack(logits).mean(dim=0)
        raw = upsample_then_probability(mean, features.grid, features.image_size)
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=image.softmax(dim=-1)[:, 1],
            details={"text_features": text, "map": raw},
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss; their sum is the total.

        "image", focal; per layer N (`layer_names`) "focal.N", "dice_abnormal.N", "dice_normal.N"; without masks
        only "image".
        """
        _, layers, image = self.compare(features, class_names)
        probabilities = image.softmax(dim=-1)[:, :, None, None]
        terms = {"image": focal(probabilities, target.label[:, None, None].float())}
        if target.mask is None:
            return terms
        mask = target.mask.float()
        for name, logits in zip(layer_names(self.blocks), layers, strict=True):
            maps = upsample_then_softmax(logits, features.grid, features.image_size)
            terms[f"focal.{name}"] = focal(maps, mask)
            terms[f"dice_abnormal.{name}"] = dice(maps[:, 1], mask)
            terms[f"dice_normal.{name}"] = dice(maps[:, 0], 1 - mask)
        return terms


@torch.no_grad()
def k_means(points: Tensor, clusters: int, steps: int = K_MEANS_STEPS) -> Tensor:
    """The cluster of each point, (B, N) in 0..clusters-1, from Lloyd's algorithm; nothing in it is random.

    points: (B, N, C), clustered set by set. The first centre is the first point, each further one the point farthest
    from all centres so far; then `steps` rounds. A cluster without points keeps its centre and may stay empty, as
    it must where there are fewer distinct points than clusters.
    """
    points = points.float()
    rows = torch.arange(points.shape[0], device=points.device)
    centres = points[:, :1]
    nearest = _distances(points, centres)[..., 0]
    for _ in range(1, clusters):
        farthest = points[rows, nearest.argmax(dim=1)][:, None]
        centres = torch.cat([centres, farthest], dim=1)
        nearest = torch.minimum(nearest, _distances(points, farthest)[..., 0])
    for _ in range(steps):
        member = F.one_hot(_distances(points, centres).argmin(dim=2), clusters).to(points.dtype)
        sizes = member.sum(dim=1)[..., None]
        centres = torch.where(sizes > 0, member.transpose(1, 2) @ points / sizes.clamp_min(1), centres)
    return _distances(points, centres).argmin(dim=2)


def _distances(points: Tensor, centres: Tensor) -> Tensor:
    """(B, N, C), (B, K, C) -> (B, N, K); differences are taken, since products of near points cancel."""
    if torch.compiler.is_exporting():  # ONNX has no such operator
        return (points[:, :, None] - centres[:, None]).square().sum(dim=-1).sqrt()
    return torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
