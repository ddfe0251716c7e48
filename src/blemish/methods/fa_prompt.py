"""FAPrompt: fine-grained abnormality prompts (Zhu et al., ICCV 2025), on AnomalyCLIP's image features.

One normal prompt, "[N1]..[N5] object.", and ten abnormal ones, "[N1]..[N5][Ak1][Ak2] damaged object.", that take
over its words and whose mean is the abnormal text. A first pass compares patches with these texts; a small network
turns the most suspicious patches into a vector that is added to every A word, and a second pass compares with the
texts of this image. The published code takes the first ten patches in place of the most suspicious: `fap_prior`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.model import CLIP, DeepPrompts
from ..errors import BadOption
from ..parts.losses import dice, focal
from ..parts.maps import gaussian_blur, softmax_then_upsample
from ..parts.prompts import TextCache, fill, template
from ..parts.scores import cosine_logits, maximum
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option

# The prior network narrows 7680 numbers (ten patches) to 480.
NARROWING = 16


@dataclass(frozen=True)
class FAPromptConfig:
    """Options of FAPrompt; the defaults are those of the authors' scripts, but for the two defects of their code."""

    n_ctx: int = option(5, "learned words of the normal prompt, which all abnormal prompts share", least=1)
    abnormal_prompts: int = option(10, "abnormal prompts; their mean is the abnormal text", least=1)
    abnormal_words: int = option(2, "further learned words of each abnormal prompt", least=1)
    depth: int = option(9, "text blocks with learned tokens: before blocks 2..depth", least=1)
    t_n_ctx: int = option(4, "learned tokens before each of these text blocks", least=1)
    fap_prior: str = option(
        "top",
        "patches that make the prior: the most abnormal (top), or the first of the grid as in the published"
        " code (first10)",
        ("top", "first10"),
    )
    prior_patches: int = option(10, "how many patches make the prior", least=1)
    fap_double_sigmoid: bool = option(
        False, "the image focal loss takes the image score for a logit, as in the published code"
    )
    second_weight: float = option(0.5, "weight of the map losses of the second pass", least=0)
    orthogonal_weight: float = option(
        0.1, "weight of the abnormal texts' absolute cosines, summed over pairs", least=0
    )
    prior_weight: float = option(
        8.0, "weight of the prior's mean square on normal images; the authors sum batches of 8", least=0
    )
    stream_start: int | float = option(0.25, "first image block of the value-value attention")
    temperature: float = option(0.07, "divisor of the cosine similarities, image and pixel level")
    sigma: float = option(10.0, "standard deviation of the map's smoothing, in pixels", least=0)
    class_ln_post: bool = option(False, "the class feature passes ln_post before the projection, as in CLIP")
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        if self.t_n_ctx > self.n_ctx:
            raise BadOption(f"option t_n_ctx is {self.t_n_ctx}; expected at most n_ctx = {self.n_ctx}")


@dataclass
class Passes:
    """What both passes compute from B images.

    static_text (1, 2, D) and text (B, 2, D): unit rows, normal first, of the first and the second pass.
    abnormal: (K, D), the static abnormal texts one by one, not normalised. prior: (B, W), W the text width.
    image_logits: (B, 2), of the second pass. maps: (B, 2, H, W) class probabilities of each pass.
    """

    static_text: Tensor
    text: Tensor
    abnormal: Tensor
    prior: Tensor
    image_logits: Tensor
    maps: tuple[Tensor, Tensor]

    def score(self) -> Tensor:
        """Image scores (B,) in [0, 1]: half the class feature's, half the maps' maxima, the first counting twice."""
        first, second = (maximum(m[:, 1]) for m in self.maps)
        return (self.image_logits.softmax(dim=-1)[:, 1] + (2 * first + second) / 3) / 2


class FAPrompt(nn.Module):
    """Learned parts of FAPrompt on a frozen CLIP of any size.

    words: (n_ctx, W); abnormal_words: (K, m, W); deep_tokens: (depth - 1, t_n_ctx, W), W being the text tower's
    width, `depth` at most its number of blocks; prior_net: from `prior_patches` patches of joint width D to W.
    """

    config_class: ClassVar[type] = FAPromptConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "published": {"fap_prior": "first10", "fap_double_sigmoid": True}
    }
    former_names: ClassVar[dict[str, str]] = {"prior": "fap_prior", "double_sigmoid": "fap_double_sigmoid"}
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 15,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 1e-3,
    }
    learns_without_masks: ClassVar[bool] = True
    map_range = (0.0, 1.0)
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: FAPromptConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FAPromptConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        self.needs = FeatureSpec(
            streams=("vv",),
            stream_start=config.stream_start,
            class_ln_post=config.class_ln_post,
            position_resize=config.position_resize,
        )
        text, joint = clip.config.text, clip.config.embed_dim
        self.words = nn.Parameter(torch.empty(config.n_ctx, text.width))
        self.abnormal_words = nn.Parameter(
            torch.empty(config.abnormal_prompts, config.abnormal_words, text.width)
        )
        depth = min(config.depth, text.layers)
        deep_tokens = torch.empty(depth - 1, config.t_n_ctx, text.width)
        self.deep_tokens = nn.Parameter(deep_tokens, requires_grad=depth > 1)
        into = config.prior_patches * joint
        hidden = max(1, into // NARROWING)
        self.prior_net = nn.Sequential(nn.Linear(into, hidden), nn.ReLU(), nn.Linear(hidden, text.width))
        self.normal = template(clip, "", config.n_ctx, "object.")
        self.damaged = template(clip, "", config.n_ctx + config.abnormal_words, "damaged object.")
        self._cache = TextCache()
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts: words and tokens N(0, 0.02^2), the network as `nn.Linear` does."""
        for parameter in (self.words, self.abnormal_words, self.deep_tokens):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        for layer in self.prior_net:
            if isinstance(layer, nn.Linear):
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
                nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def train(self, mode: bool = True) -> FAPrompt:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 1e-3) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, with the authors' rate and betas."""
        learned = [p for p in self.parameters() if p.requires_grad]
        return [{"params": learned, "lr": learning_rate, "betas": (0.5, 0.999)}]

    def normal_text(self) -> Tensor:
        """Feature of the normal prompt, not normalised: (1, D)."""
        length = len(self.normal.ids)
        return self._cache.get(
            self, "normal", lambda: self._encode(fill(self.clip, self.normal, self.words[None], length))
        )

    def abnormal_texts(self, prior: Tensor | None = None) -> Tensor:
        """Features of the K abnormal prompts, not normalised: (B, K, D) with priors (B, W); else (1, K, D)."""
        if prior is None:
            return self._cache.get(self, "abnormal", lambda: self._abnormal(self.abnormal_words[None]))
        return self._abnormal(self.abnormal_words + prior[:, None, None])

    def _abnormal(self, own: Tensor) -> Tensor:
        """Texts (B, K, D) of the abnormal words (B, K, m, W)."""
        shared = self.words.expand(*own.shape[:2], -1, -1)
        vectors = torch.cat([shared.to(own.dtype), own], dim=2).flatten(0, 1)
        prompts = fill(self.clip, self.damaged, vectors, len(self.damaged.ids))
        return self._encode(prompts).unflatten(0, own.shape[:2])

    def _encode(self, prompts: Tensor) -> Tensor:
        """Prompts (P, T, W) that end at their last word -> features (P, D), float32."""
        deep = DeepPrompts([None, *self.deep_tokens])
        return self.clip.encode_embeddings(prompts, prompts.shape[1] - 1, deep=deep).float()

    def prior(self, patches: Tensor, abnormal: Tensor) -> Tensor:
        """What is added to the abnormal words, (B, W).

        patches: (B, N, D), unit rows. abnormal: (B, N), their probabilities of the first pass. The chosen
        patches are put one behind the other, the most abnormal first; with fewer patches than
        `prior_patches`, zeros follow.
        """
        wanted, (batch, count, joint) = self.config.prior_patches, patches.shape
        used = min(wanted, count)
        if self.config.fap_prior == "top":
            rows = abnormal.topk(used, dim=1).indices
            chosen = patches.gather(1, rows[..., None].expand(-1, -1, joint))
        else:
            chosen = patches[:, :used]
        chosen = F.pad(chosen, (0, 0, 0, wanted - used)).reshape(batch, -1)
        out: Tensor = self.prior_net(chosen.to(self.words.dtype))
        return out

    def passes(self, features: ImageFeatures) -> Passes:
        """Both passes over B images."""
        patches = F.normalize(features.tokens["vv"][-1][:, 1:].float(), dim=-1)
        normal, abnormal = self.normal_text(), self.abnormal_texts()
        static_text = _pair(normal, abnormal)
        first = cosine_logits(patches, static_text) / self.config.temperature
        prior = self.prior(patches, first.softmax(dim=-1)[..., 1])
        text = _pair(normal, self.abnormal_texts(prior))
        second = cosine_logits(patches, text) / self.config.temperature
        image = cosine_logits(features.class_feature[:, None], text)[:, 0] / self.config.temperature
        grid, size = features.grid, features.image_size
        maps = softmax_then_upsample(first, grid, size), softmax_then_upsample(second, grid, size)
        return Passes(static_text, text, abnormal[0], prior.float(), image, maps)

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1]; class names are not used.

        details: "text_features" (B, 2, D) of the second pass and "static_text_features" (1, 2, D), unit rows;
        "prior" (B, W); "first_map" and "second_map", abnormal probabilities of the passes; "map", their mean
        before smoothing.
        """
        found = self.passes(features)
        first, second = (m[:, 1] for m in found.maps)
        # Two classes: 1 - P(normal) is P(abnormal), so the authors' mean of four maps is the mean of two.
        raw = (first + second) / 2
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=found.score(),
            details={
                "text_features": found.text,
                "static_text_features": found.static_text,
                "prior": found.prior,
                "first_map": first,
                "second_map": second,
                "map": raw,
            },
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, weights included; their sum is the total.

        "image", cross-entropy of the class feature; "image_focal", of the image score; "image_orthogonal";
        "image_prior"; and with masks, for "first" and "second" pass, "focal", "dice_abnormal", "dice_normal".
        """
        found, label, config = self.passes(features), target.label, self.config
        normal = (label == 0).to(found.prior.dtype)
        terms = {
            "image": F.cross_entropy(found.image_logits, label.long()),
            "image_focal": _binary_focal(found.score(), label, config.fap_double_sigmoid),
            "image_orthogonal": config.orthogonal_weight * _overlap(found.abnormal),
            "image_prior": config.prior_weight * (normal * found.prior.square().mean(dim=1)).mean(),
        }
        if target.mask is None:
            return terms
        mask = target.mask.float()
        weights = {"first": 1.0, "second": config.second_weight}
        for (name, weight), maps in zip(weights.items(), found.maps, strict=True):
            terms[f"focal.{name}"] = weight * focal(maps, mask)
            terms[f"dice_abnormal.{name}"] = weight * dice(maps[:, 1], mask)
            terms[f"dice_normal.{name}"] = weight * dice(maps[:, 0], 1 - mask)
        return terms


def _pair(normal: Tensor, abnormal: Tensor) -> Tensor:
    """Unit texts (B, 2, D) from the normal text (1, D) and the abnormal ones (B, K, D), averaged as they are."""
    prototype = abnormal.mean(dim=1)
    return F.normalize(torch.stack([normal.expand_as(prototype), prototype], dim=1), dim=-1)


def _overlap(texts: Tensor) -> Tensor:
    """Sum of the absolute cosines of all pairs of K texts (K, D)."""
    unit = F.normalize(texts, dim=-1)
    return (unit @ unit.T).abs().triu(diagonal=1).sum()


def _binary_focal(score: Tensor, label: Tensor, as_logit: bool) -> Tensor:
    """Mean focal loss (gamma 2) of scores (B,) in [0, 1], taken for probabilities or for logits."""
    probability = score.sigmoid() if as_logit else score
    of_label = torch.where(label == 1, probability, 1 - probability).clamp_min(1e-5)
    return -((1 - of_label) ** 2 * of_label.log()).mean()
