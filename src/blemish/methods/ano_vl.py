"""AnoVL (Deng et al., 2023): domain-aware prompts, value-value attention in all blocks, adaptation to each image.

Nothing is learned beforehand. Local features come from a path beside the tower's own that only adds value-value
attention, from the first block on; 462 sentences a state speak of industrial pictures. With `tta_steps` above 0 a
small adapter learns from each image's own patches and is thrown away after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.model import CLIP
from ..clip.views import COUNT
from ..errors import BadOption
from ..parts.class_names import in_prompts
from ..parts.maps import to_grid, upsample
from ..parts.prompt_bank import BANKS, TEXTURES, BankTexts, encode_sentences
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction
from . import check_options, option

# Names of which the authors' prompts leave a number out.
RENAMED = {"macaroni1": "macaroni", "macaroni2": "macaroni"}
# Classes whose 924 sentences are kept one by one, for the adapter: 2.4 MB each.
KEPT = 16


@dataclass(frozen=True)
class AnoVLConfig:
    """Options of AnoVL; the defaults are its variant without adaptation."""

    tta_steps: int = option(0, "steps of adaptation to each image; 0 for none, the authors have 5", least=0)
    adapter: str = option(
        "text",
        "what is adapted: a mix of all sentences (text), or a linear map (linear), as in the authors' script"
        " for VisA",
        ("text", "linear"),
    )
    adapter_weight: float = option(0.5, "share of the adapter's output in the adapted patches", least=0)
    tta_learning_rate: float = option(1e-3, "learning rate of the adaptation (AdamW)", least=0)
    noise: float = option(0.055, "standard deviation of the noise that makes abnormal patches", least=0)
    noise_weight: float = option(
        0.5, "weight of telling clean patches from noisy ones, against the entropy", least=0
    )
    tta_seed: int = option(
        0, "seed of the adapter's start and of the noise, the same for every image", least=0
    )
    views: int = option(
        22,
        "copies of an image (turned, shifted, flipped, grey) over which its score is averaged, each one more pass"
        " of the image tower; 1: the image alone",
        (1, COUNT + 1),
    )
    domain: str = option(
        "auto",
        "words of the prompts: for textures, for objects, or by the class name",
        ("auto", "object", "texture"),
    )
    square_tiles: bool = option(
        False,
        "see pictures that are not square as overlapping squares of their shorter side, as in the authors' script for"
        " VisA, not squashed",
    )
    smoothing: int = option(3, "side of the window of patches over which the map is averaged, odd", least=1)
    temperature: float = option(1.0, "divisor of the cosine similarities; the authors divide by nothing")
    stream_start: int | float = option(1, "first image block of the value-value attention")
    position_resize: str = option("bicubic", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        if self.adapter_weight > 1:
            raise BadOption(f"option adapter_weight is {self.adapter_weight}; expected a number from 0 to 1")
        if self.smoothing % 2 == 0:
            raise BadOption(f"option smoothing is {self.smoothing}; expected an odd number of patches")


class AnoVL(nn.Module):
    """`ano_vl` on a frozen CLIP of any size. There is nothing to learn, to save or to load."""

    config_class: ClassVar[type] = AnoVLConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"tta_steps": 5},
        "paper_visa": {"tta_steps": 5, "adapter": "linear", "square_tiles": True},
        "fast": {"views": 1},
    }
    uses_class_names: ClassVar[bool] = True
    map_range = score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: AnoVLConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AnoVLConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is moved or saved here
        self.needs = FeatureSpec(
            streams=("vv",),
            stream_start=config.stream_start,
            position_resize=config.position_resize,
            views=config.views > 1,
        )
        self._prototypes = {name: BankTexts(clip, BANKS[name]) for name in ("anovl", "anovl_texture")}
        self._sentences: dict[tuple[object, ...], Tensor] = {}

    @property
    def square_tiles(self) -> bool:
        """Whether the detector shall cut pictures into squares; see `blemish.types.Method`."""
        return bool(self.config.square_tiles)

    @property
    def exportable(self) -> str:
        """Why the method cannot be exported as one graph; empty when it can."""
        if self.config.tta_steps:
            return (
                f"ano_vl with tta_steps={self.config.tta_steps} takes gradient steps on every image, which no "
                "exported graph can hold; export it with tta_steps=0"
            )
        return ""

    def bank_of(self, class_name: str) -> str:
        """Which of `parts.prompt_bank.BANKS` speaks of a class."""
        texture = (
            class_name.lower() in TEXTURES
            if self.config.domain == "auto"
            else self.config.domain == "texture"
        )
        return "anovl_texture" if texture else "anovl"

    def prototypes(self, class_name: str) -> Tensor:
        """Unit texts (2, D) of a class, normal first: the mean of its sentences."""
        if not self.config.tta_steps:
            return self._prototypes[self.bank_of(class_name)].of(class_name)
        return F.normalize(self.sentences(class_name).unflatten(0, (2, -1)).mean(dim=1), dim=-1)

    def sentences(self, class_name: str) -> Tensor:
        """Unit text features of all sentences of a class, the normal ones first: (924, D); kept."""
        clip = self.clip
        key = (class_name, clip.device, clip.dtype)
        if key not in self._sentences:
            both = BANKS[self.bank_of(class_name)].sentences(class_name)
            with torch.inference_mode(False), torch.no_grad():
                found = [F.normalize(encode_sentences(clip, part), dim=-1) for part in both]
                self._sentences[key] = torch.cat(found)
            if len(self._sentences) > KEPT:
                del self._sentences[next(iter(self._sentences))]
        return self._sentences[key]

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,) in [0, 1]. class_names: one per image; None: "object".

        details: "text_features" (1 or B, 2, D), unit rows; "view_scores" (B, views), of the image first;
        "patch_scores" (B, N), abnormal probabilities before smoothing.
        """
        names = [RENAMED.get(name, name) for name in in_prompts(class_names, features.count)]
        known = {name: self.prototypes(name) for name in dict.fromkeys(names)}
        text = torch.stack([known[name] for name in (names if len(known) > 1 else names[:1])])
        patches = F.normalize(features.tokens["vv"][-1][:, 1:].float(), dim=-1)
        if self.config.tta_steps:
            pairs = text.expand(len(names), -1, -1)
            patches = torch.stack(
                [
                    self.adapted(own, pair, self.sentences(name))
                    for own, pair, name in zip(patches, pairs, names, strict=True)
                ]
            )
        values = self._probability(patches, text)
        views = features.class_feature[:, None]
        if features.view_class_features is not None:
            views = torch.cat([views, features.view_class_features], dim=1)
        scores = self._probability(views, text)
        smooth = _mean_of_neighbours(values, features.grid, self.config.smoothing)
        return Prediction(
            map=upsample(smooth, features.grid, features.image_size, align_corners=False)[:, 0],
            score=scores.mean(dim=1),
            details={"text_features": text, "view_scores": scores, "patch_scores": values},
        )

    def _probability(self, features: Tensor, text: Tensor) -> Tensor:
        """Abnormal probabilities (B, M) of features (B, M, D)."""
        return (cosine_logits(features, text) / self.config.temperature).softmax(dim=-1)[..., 1]

    def adapted(self, patches: Tensor, text: Tensor, sentences: Tensor) -> Tensor:
        """An image's patches after an adapter has learned from them alone: (N, D), not of unit length.

        patches: (N, D), unit rows. text: (2, D), normal first. sentences: (S, D). The adapter starts anew from
        `tta_seed` and is fitted by AdamW: patches should be clearly one or the other (entropy), clean ones
        normal and noisy ones abnormal. Nothing that existed before is changed; works under
        `torch.inference_mode` too, and is the same for an image in whatever batch.
        """
        config = self.config
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(patches.device.type, enabled=False),
        ):
            # Tensors of inference mode take no part in gradients; their copies do.
            patches, text, sentences = (t.detach().clone() for t in (patches, text, sentences))
            adapter = _Adapter(patches.shape[1], sentences if config.adapter == "text" else None)
            # On the CPU, so that every device starts alike.
            generator = torch.Generator().manual_seed(config.tta_seed)
            adapter.reset(generator)
            adapter.to(patches.device)
            optimiser = torch.optim.AdamW(adapter.parameters(), lr=config.tta_learning_rate)
            truth = torch.arange(2, device=patches.device).repeat_interleave(len(patches))
            for _ in range(config.tta_steps):
                noise = config.noise * torch.randn(patches.shape, generator=generator)
                both = torch.cat([patches, patches + noise.to(patches.device)])
                logits = cosine_logits(self._mixed(adapter, both), text) / config.temperature
                chance = logits[: len(patches)].log_softmax(dim=-1)
                entropy = -(chance.exp() * chance).sum(dim=-1).mean()
                loss = entropy + config.noise_weight * F.cross_entropy(logits, truth)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            return self._mixed(adapter, patches).detach()

    def _mixed(self, adapter: _Adapter, patches: Tensor) -> Tensor:
        share = self.config.adapter_weight
        out: Tensor = (1 - share) * patches + share * adapter(patches)
        return out


class _Adapter(nn.Module):
    """What is fitted to one image: tanh(W n(x) + b) times all sentences (S, D), or W n(x) + b without any."""

    def __init__(self, width: int, sentences: Tensor | None) -> None:
        super().__init__()
        self.sentences = sentences
        outputs = width if sentences is None else len(sentences)
        self.weight = nn.Parameter(torch.empty(outputs, width))
        self.bias = nn.Parameter(torch.empty(outputs))

    def reset(self, generator: torch.Generator) -> None:
        """Initialise as `nn.Linear` does."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, patches: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        linear = F.linear(F.normalize(patches, dim=-1), self.weight, self.bias)
        return linear if self.sentences is None else linear.tanh() @ self.sentences


def _mean_of_neighbours(values: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """Patch values (B, N) averaged over side x side patches, the border repeated outwards: (B, N, 1)."""
    picture = F.pad(to_grid(values[..., None], grid), (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(picture, side, stride=1).flatten(2).transpose(1, 2)
