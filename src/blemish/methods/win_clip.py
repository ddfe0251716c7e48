"""WinCLIP (Jeong et al., CVPR 2023): windows of patches against texts, each window seen by CLIP by itself.

Nothing is learned. CLIP's class feature is aligned with texts and its patches are not, so the picture is cut into
overlapping windows of patches and every window gets a class feature of its own; a patch is as anomalous as the
windows that it lies in. With a few normal images at hand (WinCLIP+) the map also says how far patches and windows
are from the nearest of theirs. The authors published no code; this follows the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..clip.windows import window_counts
from ..errors import BadOption
from ..parts.maps import upsample
from ..parts.memory import FeatureMemory
from ..parts.prompt_bank import BANKS, WINCLIP_ABNORMAL, WINCLIP_NORMAL, BankTexts
from ..parts.scores import cosine_logits
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction
from . import check_options, option

TEMPLATES = {"paper22": "winclip", "legacy21": "winclip_legacy21"}


@dataclass(frozen=True)
class WinCLIPConfig:
    """Options of WinCLIP; the defaults are the paper's."""

    scales: tuple[int, ...] = option((2, 3), "sides of the windows, in patches; each scale has its own map")
    temperature: float = option(0.07, "divides the cosines of windows and image with the texts")
    winclip_templates: str = option(
        "paper22",
        "the paper's 22 sentences, or the list of the public re-implementations, which stand in for code of the"
        " authors (full stops, one sentence missing, one twice)",
        tuple(TEMPLATES),
    )
    normal_states: tuple[str, ...] = option(WINCLIP_NORMAL, "what is said of a normal {}, {} for the class")
    abnormal_states: tuple[str, ...] = option(WINCLIP_ABNORMAL, "what is said of an abnormal {}")
    aggregation: str = option(
        "harmonic", "mean over a patch's windows and over the scales", ("harmonic", "arithmetic")
    )
    square_tiles: bool = option(
        False, "see pictures that are not square as overlapping squares of their shorter side, not squashed"
    )
    reference_layer: int | float = option(
        1.0,
        "few-shot: image block of the patches compared with those of normal images, or fraction of the depth",
    )
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.scales or min(self.scales) < 1 or len(set(self.scales)) < len(self.scales):
            raise BadOption(
                f"option scales is {self.scales!r}; expected different numbers of patches, from 1"
            )
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        for name in ("normal_states", "abnormal_states"):
            for state in getattr(self, name):
                if state.count("{}") != 1 or set("{}") & set(state.replace("{}", "")):
                    raise BadOption(
                        f"option {name} has {state!r}; expected words with one {{}} for the class"
                    )


class WinCLIP(nn.Module):
    """Windows against texts on a frozen CLIP of any size; remembers normal images (`Remembers`)."""

    config_class: ClassVar[type] = WinCLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {"legacy21": {"winclip_templates": "legacy21"}}
    uses_class_names: ClassVar[bool] = True
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: WinCLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or WinCLIPConfig()
        object.__setattr__(self, "clip", clip)  # frozen: no part of what is moved or saved here
        self.needs = FeatureSpec(
            layers=(config.reference_layer,),
            projected=False,
            position_resize=config.position_resize,
            windows=config.scales,
        )
        bank = replace(
            BANKS[TEMPLATES[config.winclip_templates]],
            normal=config.normal_states,
            abnormal=config.abnormal_states,
        )
        self.texts = BankTexts(clip, bank)
        self.normals = FeatureMemory()
        (block,) = resolve_layers(self.needs.layers, clip.config.vision.layers)
        self._patches = f"patches.{block}"

    @property
    def square_tiles(self) -> bool:
        """Whether the detector shall cut pictures into squares; see `blemish.types.Method`."""
        return bool(self.config.square_tiles)

    @property
    def map_range(self) -> tuple[float, float]:
        """0 to 1; to 2 with a memory, whose map is added."""
        return (0.0, 2.0 if self.normals else 1.0)

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) in `map_range` and scores (B,) in [0, 1]; with a memory those of WinCLIP+.

        class_names: one per image, None: "object". details: "text_features" (1 or B, 2, D), unit rows, normal
        first; "text_score" (B,) and "text_map" (B, rows, columns), what the texts alone say, per patch; with a
        memory "memory_map" (B, rows, columns), what the normal images say.
        """
        text = self.texts.per_image(class_names, features.count)
        score = self._abnormal(features.class_feature[:, None], text)[:, 0]
        scales = [
            self._over_patches(self._abnormal(windows, text), features.grid, k)
            for k, windows in self._windows(features)
        ]
        image = score[:, None, None].expand_as(scales[0])
        patches = text_map = self._mean(torch.stack([image, *scales]))
        details = {"text_features": text, "text_score": score, "text_map": text_map}
        if self.normals:
            details["memory_map"] = memory_map = self.memory_map(features)
            patches = text_map + memory_map
            score = (score + memory_map.flatten(1).amax(dim=1)) / 2
        # Bilinear, every patch value at the middle of its patch.
        values = patches.flatten(1)[..., None]
        anomaly_map = upsample(values, features.grid, features.image_size, align_corners=False)[:, 0]
        return Prediction(anomaly_map, score, details)

    def memory_map(self, features: ImageFeatures) -> Tensor:
        """How far each patch is from the normal images, (B, rows, columns) in [0, 1].

        The mean over patches and scales of half of 1 - cos to the nearest remembered patch or window; windows'
        distances pass to their patches as window scores do.
        """
        nearest = self.normals.distance(self._patches, features.tokens["qk"][0][:, 1:]) / 2
        maps = [nearest.unflatten(1, features.grid)]
        for k, windows in self._windows(features):
            distances = self.normals.distance(f"windows.{k}", windows) / 2
            maps.append(self._over_patches(distances, features.grid, k))
        return torch.stack(maps).mean(dim=0)

    def _windows(self, features: ImageFeatures) -> list[tuple[int, Tensor]]:
        """(k, class features of its windows (B, M, D)) for every scale."""
        assert features.windows is not None, "features encoded for another method"
        counts = window_counts(features.grid, self.config.scales)
        return list(zip(self.config.scales, features.windows.split(counts, dim=1), strict=True))

    def _abnormal(self, features: Tensor, text: Tensor) -> Tensor:
        """Probability of the abnormal text for class features (B, M, D): (B, M)."""
        return (cosine_logits(features, text) / self.config.temperature).softmax(dim=-1)[..., 1]

    def _over_patches(self, scores: Tensor, grid: tuple[int, int], k: int) -> Tensor:
        """The mean over the k x k windows that each patch lies in: (B, M), row by row -> (B, rows, columns)."""
        scores = scores.unflatten(1, (grid[0] - k + 1, grid[1] - k + 1))
        count = _sums(torch.ones_like(scores[:1]), k)
        if self.config.aggregation == "arithmetic":
            return _sums(scores, k) / count
        return count / _sums(1 / scores, k)

    def _mean(self, maps: Tensor) -> Tensor:
        """The mean over the first dimension; harmonic: one value of 0 makes it 0."""
        return (
            maps.mean(dim=0) if self.config.aggregation == "arithmetic" else len(maps) / (1 / maps).sum(dim=0)
        )

    def remember(self, features: ImageFeatures) -> None:
        """Add B normal images to the memory: their raw patches, and their windows of every scale."""
        self.normals.add(self._patches, features.tokens["qk"][0][:, 1:])
        for k, windows in self._windows(features):
            self.normals.add(f"windows.{k}", windows)

    def memory(self) -> dict[str, Tensor]:
        """Unit vectors (M, C), float16: "patches.BLOCK" and "windows.K"; empty without normal images."""
        return self.normals.tensors()

    def recall(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember exactly this; empty: forget. Raises ValueError when it is of other scales, blocks or widths."""
        shape = self.clip.config
        widths = {f"windows.{k}": shape.embed_dim for k in self.config.scales}
        self.normals.load(tensors, widths | {self._patches: shape.vision.width}, self.clip.device)


def _sums(values: Tensor, k: int) -> Tensor:
    """Sums over the windows that a patch lies in: (B, R, C) -> (B, R+k-1, C+k-1)."""
    padded = F.pad(values[:, None], (k - 1, k - 1, k - 1, k - 1))
    return F.avg_pool2d(padded, k, stride=1, divisor_override=1)[:, 0]
