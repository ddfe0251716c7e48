"""AF-CLIP (Fang et al., ACM MM 2025), as its published code computes it.

One learned adaptor, a layer of self-attention, turns the raw tokens of four image blocks towards anomalies. Every
block is seen three times, patches alone and averaged over neighbourhoods of 3 x 3 and 5 x 5, and the logits of all
twelve sets are added. The texts "without defect." and "with defect." follow learned vectors that stand before the
start-of-text token; no class is named. With a few normal images at hand, the map also says how far each patch is
from the nearest patch of these (few-shot).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.layers import reset_layer
from ..parts.losses import layer_names
from ..parts.maps import gaussian_blur, softmax_then_upsample, upsample
from ..parts.memory import FeatureMemory
from ..parts.prompts import Template, TextCache, fill, tokenizer_of
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class AFCLIPConfig:
    """Options of AF-CLIP; the defaults are those of the authors' code."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that are compared: numbers from 1, or fractions of the depth"
    )
    neighbourhoods: tuple[int, ...] = option(
        (1, 3, 5), "sides of the squares of patches that are averaged, odd numbers; 1 is the patch alone"
    )
    neighbourhood_sigma: float = option(4.0, "standard deviation of that average's weights, in patches")
    heads: int = option(8, "attention heads of the adaptor", least=1)
    head_width: int = option(64, "channels of each of these heads", least=1)
    n_ctx: int = option(12, "learned vectors before the start-of-text token", least=1)
    states: tuple[str, ...] = option(
        ("without defect.", "with defect."), "texts of the two states, normal first"
    )
    temperature: float = option(0.07, "divisor of the cosine similarities, image and pixel level")
    gamma: float = option(4.0, "exponent of the focal losses", least=0)
    alignment_weight: float = option(
        1.0, "weight of the loss that parts normal from anomalous patches", least=0
    )
    few_shot_weight: float = option(
        0.1, "weight of the zero-shot map and score beside the few-shot ones", least=0
    )
    sigma: float = option(4.0, "standard deviation of the map's smoothing, in pixels", least=0)
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        for name in ("temperature", "neighbourhood_sigma"):
            if not getattr(self, name) > 0:
                raise BadOption(f"option {name} is {getattr(self, name)}; expected a number above 0")
        if any(side < 1 or side % 2 == 0 for side in self.neighbourhoods):
            raise BadOption(
                f"option neighbourhoods is {self.neighbourhoods!r}; expected odd numbers such as (1, 3, 5)"
            )
        if len(self.states) != 2 or not all(state.strip() for state in self.states):
            raise BadOption(f"option states is {self.states!r}; expected two texts, normal first")


class Adaptor(nn.Module):
    """out(self-attention(norm(x))) with heads of a fixed width and without a residual: (B, M, W) -> (B, M, W)."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(inner, width)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise as PyTorch does: linear maps uniform within 1 / sqrt(their inputs), the norm as identity."""
        self.norm.reset_parameters()
        for linear in (self.query, self.key, self.value, self.out):
            reset_layer(linear, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        found: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return found


class AFCLIP(nn.Module):
    """Learned parts of AF-CLIP on a frozen CLIP of any size; remembers normal images (`Remembers`).

    adaptor: see `Adaptor`. words: (n_ctx, W), W being the text tower's width, shared by both texts.
    """

    config_class: ClassVar[type] = AFCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "single_patches": {"neighbourhoods": (1,)},
        "no_alignment": {"alignment_weight": 0.0},
    }
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 2,
        "batch_size": 8,
        "seed": 122,
        "augmentation": "none",
        "learning_rate": 1e-4,
    }
    learns_without_masks: ClassVar[bool] = True
    clip: CLIP

    def __init__(self, clip: CLIP, config: AFCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AFCLIPConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is learned, moved or saved here
        width = clip.config.vision.width
        self.blocks = resolve_layers(config.layers, clip.config.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers, projected=False, position_resize=config.position_resize
        )
        self.adaptor = Adaptor(width, config.heads, config.head_width)
        self.words = nn.Parameter(torch.empty(config.n_ctx, clip.config.text.width))
        self.normals = FeatureMemory()
        self._cache = TextCache()
        self.templates = [self._template(state) for state in config.states]
        self.reset()
        self.to(clip.device)

    def _template(self, state: str) -> Template:
        """The prompt "<n_ctx vectors> <start of text> <state> <end of text>"."""
        tokenizer, context = tokenizer_of(self.clip), self.clip.config.text.context_length
        count = self.config.n_ctx
        ids = (*[0] * count, tokenizer.sot, *tokenizer.encode(state), tokenizer.eot)
        if len(ids) > context:
            raise ValueError(
                f"a prompt of {len(ids)} tokens and vectors is longer than the context of {context}"
            )
        return Template(ids, 0, count)

    @property
    def map_range(self) -> tuple[float, float]:
        """(0, 1); with a memory the distances' (0, 1) and the weighted zero-shot map."""
        return (0.0, 1.0 + self.config.few_shot_weight if self.normals else 1.0)

    @property
    def score_range(self) -> tuple[float, float]:
        """As `map_range`."""
        return self.map_range

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts; words N(0, 0.01^2)."""
        self.adaptor.reset(generator)
        nn.init.normal_(self.words, std=0.01, generator=generator)

    def train(self, mode: bool = True) -> AFCLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 1e-4) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`, with the authors' rate and betas."""
        return [{"params": list(self.parameters()), "lr": learning_rate, "betas": (0.5, 0.999)}]

    def text_features(self) -> Tensor:
        """Unit features (2, D) of both texts, normal first."""

        def encode() -> Tensor:
            length = max(len(t.ids) for t in self.templates)
            prompts = torch.cat([fill(self.clip, t, self.words[None], length) for t in self.templates])
            ends = torch.tensor([t.eot for t in self.templates], device=prompts.device)
            with torch.autocast(prompts.device.type, enabled=False):  # as in `adapted`
                return F.normalize(self.clip.encode_embeddings(prompts, ends).float(), dim=-1)

        return self._cache.get(self, "text", encode)

    def token_sets(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Raw tokens (B, 1+N, W) by block and neighbourhood, "6.3" for block 6 and 3 x 3; class token first."""
        sigma = self.config.neighbourhood_sigma
        return {
            f"{name}.{side}": over_neighbourhoods(tokens.to(self.words.dtype), features.grid, side, sigma)
            for name, tokens in zip(layer_names(self.blocks), features.tokens["qk"], strict=True)
            for side in self.config.neighbourhoods
        }

    def adapted(self, tokens: Tensor) -> Tensor:
        """Tokens (B, 1+N, W) through the adaptor and CLIP's own last norm and projection: (B, 1+N, D), unit rows."""
        norm, projection = self.clip.visual.ln_post, self.clip.visual.proj
        turned: Tensor = self.adaptor(tokens).float()
        # In float32 whatever the precision elsewhere: the errors of all sets add up over a small temperature.
        with torch.autocast(turned.device.type, enabled=False):
            shape, weight, bias = norm.normalized_shape, norm.weight.float(), norm.bias.float()
            normed = F.layer_norm(turned, shape, weight, bias, norm.eps)
            return F.normalize(normed @ projection.float(), dim=-1)

    def _logits(self, sets: Sequence[Tensor], text: Tensor) -> Tensor:
        """(B, 1+N, 2) of adapted token sets: the sum of their cosines over the temperature."""
        with torch.autocast(text.device.type, enabled=False):
            cosines = torch.stack([cosine_logits(tokens, text) for tokens in sets])
        return cosines.sum(dim=0) / self.config.temperature

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in `score_range`; with a memory the few-shot ones.

        Class names are not used. details: "text_features" (1, 2, D), unit rows; "similarity", class probabilities
        per token (B, 1+N, 2); "text_map" (B, H, W), the zero-shot map, and with a memory "memory_map", half the
        distances to the nearest normal patches, both before smoothing.
        """
        sets, text = self.token_sets(features), self.text_features()
        logits = self._logits([self.adapted(tokens) for tokens in sets.values()], text)
        score = logits[:, 0].softmax(dim=-1)[:, 1]
        text_map = softmax_then_upsample(logits[:, 1:], features.grid, features.image_size)[:, 1]
        details = {
            "text_features": text[None],
            "similarity": logits.softmax(dim=-1),
            "text_map": text_map,
        }
        anomaly_map = text_map
        if self.normals:
            near = [self.normals.distance(name, tokens[:, 1:]) for name, tokens in sets.items()]
            distance = torch.stack(near).mean(dim=0) / 2
            details["memory_map"] = upsample(
                distance[..., None], features.grid, features.image_size, align_corners=False
            )[:, 0]
            anomaly_map = details["memory_map"] + self.config.few_shot_weight * text_map
            score = distance.amax(dim=1) + self.config.few_shot_weight * score
        return Prediction(gaussian_blur(anomaly_map, self.config.sigma), score, details)

    def remember(self, features: ImageFeatures) -> None:
        """Add B normal images to the memory: their raw patches of every block and neighbourhood."""
        for name, tokens in self.token_sets(features).items():
            self.normals.add(name, tokens[:, 1:])

    def memory(self) -> dict[str, Tensor]:
        """What is remembered: per block and neighbourhood unit patches (M, W), float16; empty without any."""
        return self.normals.tensors()

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember exactly this; empty: forget. Raises ValueError when it is of other layers or widths."""
        names = [f"{n}.{side}" for n in layer_names(self.blocks) for side in self.config.neighbourhoods]
        self.normals.load(tensors, dict.fromkeys(names, self.clip.config.vision.width), self.clip.device)

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss; their sum is the total: "image"; with masks "focal", "l1", "alignment".

        Maps are compared on the patch grid, with masks resized bilinearly to it and cut at one half.
        """
        sets = [self.adapted(tokens) for tokens in self.token_sets(features).values()]
        logits = self._logits(sets, self.text_features())
        terms = {"image": self._focal(logits[:, 0], target.label > 0.5)}
        if target.mask is None:
            return terms
        small = F.interpolate(target.mask.float()[:, None], size=features.grid, mode="bilinear")
        mask = small.flatten(1) > 0.5
        terms["focal"] = self._focal(logits[:, 1:], mask)
        terms["l1"] = (logits[:, 1:].softmax(dim=-1)[..., 1] - mask.float()).abs().mean()
        apart = torch.stack([patch_alignment(tokens[:, 1:], mask) for tokens in sets]).mean()
        return terms | {"alignment": self.config.alignment_weight * apart}

    def _focal(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Mean of -(1 - p)^gamma ln p, p being the probability of the true class; logits (..., 2)."""
        towards = torch.where(truth, 1.0, -1.0) * (logits[..., 1] - logits[..., 0])
        return -(torch.sigmoid(-towards) ** self.config.gamma * F.logsigmoid(towards)).mean()


def over_neighbourhoods(tokens: Tensor, grid: tuple[int, int], side: int, sigma: float) -> Tensor:
    """Every patch replaced by a Gaussian-weighted mean over the square of `side` patches around it.

    tokens: (B, 1+N, W), the class token, which stays as it is, and N = rows * columns patches. Weights sum to 1
    over a whole square; outside the grid there are zeros. Returns the same shape, for side 1 the same tensor.
    """
    if side == 1:
        return tokens
    rows, columns = (_window(length, side, sigma).to(tokens) for length in grid)
    patches = tokens[:, 1:].unflatten(1, grid)
    # The Gaussian is the product of one along the rows and one along the columns.
    mixed = torch.einsum("ij,bjkc->bikc", rows, torch.einsum("kl,bjlc->bjkc", columns, patches))
    return torch.cat([tokens[:, :1], mixed.flatten(1, 2)], dim=1)


def _window(length: int, side: int, sigma: float) -> Tensor:
    """(length, length): row i holds the weights of i's neighbours on a line."""
    offsets = torch.arange(length, dtype=torch.float64)[:, None] - torch.arange(length, dtype=torch.float64)
    reach = torch.arange(-(side // 2), side // 2 + 1, dtype=torch.float64)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2) / torch.exp(-((reach / sigma) ** 2) / 2).sum()
    return torch.where(offsets.abs() <= side // 2, weights, 0.0)


def patch_alignment(patches: Tensor, mask: Tensor) -> Tensor:
    """max(0, mean cosine of normal-anomalous pairs - mean cosine of pairs of one kind) of each image.

    patches: (B, N, D), unit rows. mask: bool (B, N). A patch makes a pair with itself too. Returns (B,), 0 for images
    whose patches are all of one kind.
    """
    kinds = torch.stack([~mask, mask], dim=1).to(patches.dtype)
    # The cosines of all pairs of two groups add up to the product of the groups' sums.
    with torch.autocast(patches.device.type, enabled=False):
        sums = kinds @ patches
        products = sums @ sums.transpose(1, 2)
    counts = kinds.sum(dim=-1)
    pairs = counts[:, :, None] * counts[:, None]
    unlike = products[:, 0, 1] / pairs[:, 0, 1].clamp_min(1)
    alike = (products[:, 0, 0] + products[:, 1, 1]) / (pairs[:, 0, 0] + pairs[:, 1, 1])
    return torch.where(pairs[:, 0, 1] > 0, (unlike - alike).clamp_min(0), torch.zeros_like(unlike))
