"""ViP2-CLIP: visual-perception prompting (arXiv 2505.17692), as its published code computes it.

The prompts "[v1]..[v7] good [z1]..[z3]" and "[w1]..[w7] damaged [z1]..[z3]" have learned words before the state
and, in place of a class name, tokens made from the image (ViP-VCA: small networks over the class feature). In
each layer both texts attend to the patches (ViP-FGP); the most abnormal patches give the image score (UTPA).
Where paper and code disagree the code is followed; the preset "paper" has the paper's single head, scaled
attention, score per layer and one learning rate; "no_vca", "no_fgp" and "no_utpa" are the paper's ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..clip.layers import resolve_layers
from ..clip.model import CLIP
from ..errors import BadOption
from ..parts.attention import PatchAttention
from ..parts.layers import reset_layer
from ..parts.losses import dice, focal, layer_names
from ..parts.maps import gaussian_blur, softmax_then_upsample, to_grid, upsample
from ..parts.prompts import TextCache, fill, template
from ..types import POSITION_RESIZES, FeatureSpec, ImageFeatures, Prediction, Target
from . import check_options, option


@dataclass(frozen=True)
class ViP2CLIPConfig:
    """Options of ViP2-CLIP; the defaults are those of the authors' code, its state word apart."""

    layers: tuple[int | float, ...] = option(
        (0.25, 0.5, 0.75, 1.0), "image blocks that give maps: numbers from 1, or fractions of the depth"
    )
    n_static: int = option(7, "learned words before the state word of each prompt", least=1)
    n_dynamic: int = option(3, "tokens after the state word that follow the image", least=1)
    state_words: tuple[str, ...] = option(("good", "damaged"), "words of the normal and the abnormal prompt")
    legacy_state_word: bool = option(
        False, "the normal prompt says the abnormal word too, a defect the authors' weights were trained with"
    )
    global_ln_post: bool = option(False, "the class feature passes ln_post before the projection, as in CLIP")
    use_vca: bool = option(True, "the dynamic tokens follow the image (ViP-VCA)")
    use_fgp: bool = option(True, "the texts attend to the patches of each layer (ViP-FGP)")
    fgp_heads: int = option(
        8, "attention heads of ViP-FGP, fewer where the joint width needs it; the paper writes 1", least=1
    )
    fgp_scale: str = option(
        "none",
        "attention logits of ViP-FGP as they are, or divided by the square root of the joint width (paper)",
        ("none", "sqrt_dim"),
    )
    patch_smoothing: str = option(
        "none", "patches as they are, or averaged with their eight neighbours", ("none", "avg3")
    )
    use_utpa: bool = option(True, "image score from the most abnormal patches (UTPA), else the class feature")
    utpa_mode: str = option(
        "mean_logits",
        "mean similarity of the selected patches over all layers (code), or similarity of their mean in each"
        " layer (per_layer, paper)",
        ("mean_logits", "per_layer"),
    )
    top_k: int = option(50, "patches in the image score per layer; all of them in smaller grids", least=1)
    temperature: float = option(0.07, "divisor of the cosine similarities, image and pixel level")
    lambda_local: float = option(1.0, "weight of the map losses against the image loss (lambda)", least=0)
    sigma: float = option(8.0, "standard deviation of the map's smoothing, in pixels", least=0)
    fgp_lr_scale: float = option(
        0.01, "learning rate of ViP-FGP as a part of the prompts' rate; the paper names one rate", least=0
    )
    position_resize: str = option("bilinear", "resizing of the position table", POSITION_RESIZES)

    def __post_init__(self) -> None:
        check_options(self)
        if not self.temperature > 0:
            raise BadOption(f"option temperature is {self.temperature}; expected a number above 0")
        if len(self.state_words) != 2 or not all(word.strip() for word in self.state_words):
            raise BadOption(
                f"option state_words is {self.state_words!r}; expected two words, normal and abnormal"
            )


@dataclass
class Alignment:
    """What the method computes from B images before maps and scores.

    text: (1 or B, 2, D), unit rows, normal first; patches: (B, N, D) per layer, unit rows; layer_text: (1 or
    B, 2, D) per layer, unit rows; cosines: (B, N, 2) per layer; selected: (B, K) patch indices per layer, none
    without UTPA; image_cosines: (B, S, 2), one row for each of the S image-level decisions.
    """

    text: Tensor
    patches: list[Tensor]
    layer_text: list[Tensor]
    cosines: list[Tensor]
    selected: list[Tensor]
    image_cosines: Tensor


class ViP2CLIP(nn.Module):
    """Learned parts of ViP2-CLIP on a frozen CLIP of any size.

    normal_context, abnormal_context: (n_static, W), object_tokens: (n_dynamic, W), W being the text tower's
    width; meta_bias: (D,), meta_nets: one D -> D/2 -> W network per dynamic token; fgp: shared by all layers.
    """

    config_class: ClassVar[type] = ViP2CLIPConfig
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"fgp_heads": 1, "fgp_scale": "sqrt_dim", "utpa_mode": "per_layer", "fgp_lr_scale": 1.0},
        "no_vca": {"use_vca": False},
        "no_fgp": {"use_fgp": False},
        "no_utpa": {"use_utpa": False},
    }
    # The published recipe, on VisA and on MVTec AD; the last epoch is the result.
    recipe: ClassVar[dict[str, Any]] = {
        "epochs": 10,
        "batch_size": 8,
        "seed": 111,
        "augmentation": "none",
        "learning_rate": 1e-3,
    }
    learns_without_masks: ClassVar[bool] = True
    map_range = (0.0, 1.0)
    score_range = (0.0, 1.0)
    clip: CLIP

    def __init__(self, clip: CLIP, config: ViP2CLIPConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ViP2CLIPConfig()
        # The frozen CLIP is no part of what is learned, moved or saved here.
        object.__setattr__(self, "clip", clip)
        width, joint = clip.config.text.width, clip.config.embed_dim
        self.blocks = resolve_layers(config.layers, clip.config.vision.layers)
        self.needs = FeatureSpec(
            layers=config.layers,
            projected=True,
            class_ln_post=config.global_ln_post,
            position_resize=config.position_resize,
        )
        self.normal_context = nn.Parameter(torch.empty(config.n_static, width))
        self.abnormal_context = nn.Parameter(torch.empty(config.n_static, width))
        self.object_tokens = nn.Parameter(torch.empty(config.n_dynamic, width))
        if config.use_vca:
            hidden = max(1, joint // 2)
            self.meta_bias = nn.Parameter(torch.empty(joint))
            self.meta_nets = nn.ModuleList(
                nn.Sequential(nn.Linear(joint, hidden), nn.ReLU(), nn.Linear(hidden, width))
                for _ in range(config.n_dynamic)
            )
        if config.use_fgp:
            scale = joint**-0.5 if config.fgp_scale == "sqrt_dim" else 1.0
            self.fgp = PatchAttention(joint, joint, config.fgp_heads, scale)
        words = config.state_words[1:] * 2 if config.legacy_state_word else config.state_words
        self.templates = [template(clip, word, config.n_dynamic, "") for word in words]
        self.eot = tuple(t.eot + config.n_static for t in self.templates)
        context = clip.config.text.context_length
        if max(self.eot) >= context:
            raise ValueError(
                f"a prompt of {max(self.eot) + 1} tokens and vectors is longer than the context of {context}"
            )
        self._cache = TextCache()
        self.reset()
        self.to(clip.device)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Initialise the learned parts as the authors do: words N(0, 0.02^2), layers U(+-1/sqrt(inputs))."""
        words = [self.normal_context, self.abnormal_context, self.object_tokens]
        for parameter in [*words, self.meta_bias] if self.config.use_vca else words:
            nn.init.normal_(parameter, std=0.02, generator=generator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                reset_layer(module, generator)

    def train(self, mode: bool = True) -> ViP2CLIP:
        """Training or evaluation mode; kept text features are forgotten."""
        self._cache.clear()
        return super().train(mode)

    def parameter_groups(self, learning_rate: float = 1e-3) -> list[dict[str, Any]]:
        """Groups for `torch.optim.Adam`: the prompts at `learning_rate`, ViP-FGP at `fgp_lr_scale` of it."""
        fgp = list(self.fgp.parameters()) if self.config.use_fgp else []
        prompts = [p for name, p in self.named_parameters() if not name.startswith("fgp.")]
        rates = (learning_rate, learning_rate * self.config.fgp_lr_scale)
        return [{"params": p, "lr": lr} for p, lr in zip((prompts, fgp), rates, strict=True) if p]

    def dynamic_tokens(self, class_feature: Tensor) -> Tensor:
        """ViP-VCA: the tokens z that describe the image, (B, n_dynamic, W), from class features (B, D)."""
        shifted = F.normalize(class_feature.to(self.meta_bias.dtype), dim=-1) + self.meta_bias
        return self.object_tokens + torch.stack([net(shifted) for net in self.meta_nets], dim=1)

    def prompts(self, dynamic: Tensor, length: int | None = None) -> Tensor:
        """Both prompts as word embeddings (B, 2, length, W), normal first, from dynamic tokens.

        dynamic: (B, n_dynamic, W). length: padded with token 0; to the longer prompt when None.
        """
        room = (length or max(self.eot) + 1) - self.config.n_static
        rows = []
        for prompt, context in zip(self.templates, (self.normal_context, self.abnormal_context), strict=True):
            words = fill(self.clip, prompt, dynamic, room)
            static = context.to(words.dtype).expand(dynamic.shape[0], -1, -1)
            rows.append(torch.cat([words[:, :1], static, words[:, 1:]], dim=1))
        return torch.stack(rows, dim=1)

    def text_features(self, dynamic: Tensor) -> Tensor:
        """Features of both prompts (B, 2, D), not normalised, normal first, from dynamic tokens."""
        prompts = self.prompts(dynamic).flatten(0, 1)
        eot = torch.tensor(self.eot, device=prompts.device).repeat(dynamic.shape[0])
        return self.clip.encode_embeddings(prompts, eot).float().unflatten(0, (-1, 2))

    def _text(self, class_feature: Tensor) -> Tensor:
        if self.config.use_vca:
            return self.text_features(self.dynamic_tokens(class_feature))
        return self._cache.get(self, "text", lambda: self.text_features(self.object_tokens[None]))

    def _patches(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Projected tokens (B, 1+N, D) -> unit patches (B, N, D), smoothed when asked for."""
        patches = F.normalize(tokens[:, 1:].float(), dim=-1)
        if self.config.patch_smoothing == "none":
            return patches
        # At the border zeros are averaged in; normalising afterwards makes that the mean of the real ones.
        smoothed = F.avg_pool2d(to_grid(patches, grid), 3, stride=1, padding=1)
        return F.normalize(smoothed.flatten(2).transpose(1, 2), dim=-1)

    @property
    def attention_heads(self) -> int:
        """Heads of ViP-FGP; 0 without it."""
        return self.fgp.heads if self.config.use_fgp else 0

    @torch.no_grad()
    def attention_maps(self, features: ImageFeatures) -> Tensor:
        """How much ViP-FGP's texts look at each patch: see `blemish.types.Attends`."""
        text = F.normalize(self._text(features.class_feature), dim=-1).expand(features.count, -1, -1)
        patches = (self._patches(tokens, features.grid) for tokens in features.tokens["qk"])
        return torch.stack([self.fgp.maps(text, layer, features.grid) for layer in patches], dim=1)

    def align(self, features: ImageFeatures) -> Alignment:
        """Everything up to the cosines of patches and texts, and those that decide on the image."""
        text = F.normalize(self._text(features.class_feature), dim=-1)
        found = Alignment(text, [], [], [], [], text)
        for tokens in features.tokens["qk"]:
            patches = self._patches(tokens, features.grid)
            layer_text = text
            if self.config.use_fgp:
                layer_text = self.fgp(text.expand(features.count, -1, -1), patches).float()
            found.patches.append(patches)
            found.layer_text.append(layer_text)
            found.cosines.append((patches @ layer_text.transpose(1, 2)).float())
        if self.config.use_utpa:
            self._pool(found)
        else:
            unit = F.normalize(features.class_feature.float(), dim=-1)
            found.image_cosines = (unit[:, None] @ text.transpose(1, 2)).float()
        return found

    def _pool(self, found: Alignment) -> None:
        """UTPA: select the K most abnormal patches of each layer and let them decide on the image."""
        decisions = []
        for patches, text, cosines in zip(found.patches, found.layer_text, found.cosines, strict=True):
            # The order of the abnormal probabilities, which would be equal where they saturate.
            margin = cosines[..., 1] - cosines[..., 0]
            chosen = margin.topk(min(self.config.top_k, margin.shape[1]), dim=1).indices
            found.selected.append(chosen)
            if self.config.utpa_mode == "mean_logits":
                decisions.append(_rows(cosines, chosen).mean(dim=1))
            else:
                pooled = F.normalize(_rows(patches, chosen).mean(dim=1, keepdim=True), dim=-1)
                decisions.append((pooled @ text.transpose(1, 2))[:, 0].float())
        image_cosines = torch.stack(decisions, dim=1)
        if self.config.utpa_mode == "mean_logits":
            image_cosines = image_cosines.mean(dim=1, keepdim=True)
        found.image_cosines = image_cosines

    def forward(self, features: ImageFeatures, class_names: Sequence[str] | None = None) -> Prediction:
        """Maps (B, H, W) and scores (B,), both in [0, 1]; class names are not used.

        details: "text_features" (1 or B, 2, D), unit rows; "layer_text" (1 or B, 2, D), "patches" (B, N, D),
        "cosines" (B, N, 2) and "selected" (B, K) per layer; "image_cosines" (B, S, 2) with S = 1, or the
        number of layers with utpa_mode "per_layer"; "map", before smoothing.
        """
        found = self.align(features)
        probabilities = [(c / self.config.temperature).softmax(dim=-1) for c in found.cosines]
        # Enlarging is linear, and 1 - P(normal) is P(abnormal): the layers are joined before one enlargement.
        abnormal = torch.stack([p[..., 1:] for p in probabilities]).mean(dim=0)
        raw = upsample(abnormal, features.grid, features.image_size, align_corners=False)[:, 0]
        decisions = (found.image_cosines / self.config.temperature).softmax(dim=-1)[..., 1]
        return Prediction(
            map=gaussian_blur(raw, self.config.sigma),
            score=decisions.mean(dim=1),
            details={
                "text_features": found.text,
                "layer_text": tuple(found.layer_text),
                "patches": tuple(found.patches),
                "cosines": tuple(found.cosines),
                "selected": tuple(found.selected),
                "image_cosines": found.image_cosines,
                "map": raw,
            },
        )

    def loss(
        self, features: ImageFeatures, target: Target, class_names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Terms of the training loss, weights included; their sum is the total.

        "image", and per layer N (`layer_names`) "focal.N", "dice_abnormal.N", "dice_normal.N"; without masks
        only "image", which UTPA carries to every learned part. Raises ValueError without masks where it does
        not, so that the maps would stay those of random weights.
        """
        if target.mask is None and self.config.use_fgp and not self.config.use_utpa:
            raise ValueError("vip2_clip without use_utpa learns ViP-FGP from masks only; give Target.mask")
        found = self.align(features)
        logits = found.image_cosines / self.config.temperature
        image = [F.cross_entropy(decision, target.label.long()) for decision in logits.unbind(dim=1)]
        terms = {"image": torch.stack(image).sum()}
        if target.mask is None:
            return terms
        mask = target.mask.float()
        for layer, cosines in zip(layer_names(self.blocks), found.cosines, strict=True):
            maps = softmax_then_upsample(
                cosines / self.config.temperature, features.grid, features.image_size
            )
            parts = {
                "focal": focal(maps, mask),
                "dice_abnormal": dice(maps[:, 1], mask),
                "dice_normal": dice(maps[:, 0], 1 - mask),
            }
            terms |= {f"{name}.{layer}": self.config.lambda_local * value for name, value in parts.items()}
        return terms


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, N, C) named by (B, K): (B, K, C)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
