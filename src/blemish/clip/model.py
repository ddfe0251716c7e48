"""CLIP: one image tower and one text tower for every ViT variant, driven by configuration.

Parameter names and shapes are those of OpenAI's state dict, so weights load without renaming.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import FeatureSpec, ImageFeatures
from . import views
from .config import CLIPConfig
from .layers import ACTIVATION_FUNCTIONS, Transformer
from .vision import Adapters, VisionTower

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class DeepPrompts:
    """Learned tokens given to the text tower before its blocks.

    tokens: one entry per block, block 1 first: a tensor (n, W) shared by the batch, or (B, n, W), or None
        to leave the sequence as it is before that block. Missing entries at the end count as None.
    insert: False overwrites positions start..start+n-1 (AnomalyCLIP). True inserts the first entry at
        `start` before block 1, without position embedding, overwrites it before later blocks, and takes the
        n tokens out again after the last block (VCP-CLIP).
    """

    tokens: Sequence[Tensor | None]
    insert: bool = False
    start: int = 1

    def __post_init__(self) -> None:
        if self.insert and (not self.tokens or self.tokens[0] is None):
            raise ValueError("inserted deep prompts need tokens for block 1")

    @property
    def inserted(self) -> int:
        """How many positions the sequence grows by."""
        first = self.tokens[0] if self.insert else None
        return 0 if first is None else int(first.shape[-2])


def resize_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Network inputs (B, 3, H, W) at another size, (B, 3, *size), in float32.

    Bicubic with antialiasing, the kernel of PIL's resize. Resizing is linear, so it may follow the
    normalisation; but a picture of another size has then been resized twice, first to the network's size, and
    values are neither rounded nor clipped: this is near, and not equal to, preparing the file anew.
    """
    if tuple(images.shape[-2:]) == size:
        return images
    # Autocast and half-precision inputs would lose what the antialiasing sums up.
    return F.interpolate(images.float(), size=size, mode="bicubic", align_corners=False, antialias=True)


class CLIP(nn.Module):
    """A CLIP with random or zero weights; see `blemish.clip.weights.load_clip` for pretrained ones."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        text = config.text
        self.visual = VisionTower(config.vision, config.embed_dim)
        self.transformer = Transformer(text.width, text.layers, text.heads, text.mlp_width)
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.positional_embedding = nn.Parameter(torch.zeros(text.context_length, text.width))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.zeros(text.width, config.embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.tokenizer: Tokenizer | None = None
        self.fingerprint = ""

    def reset_parameters(self) -> CLIP:
        """Random weights with CLIP's own scales, from the global generator; returns self."""
        self.visual.reset_parameters()
        self.transformer.reset_parameters()
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=self.config.text.width**-0.5)
        return self

    def freeze(self) -> CLIP:
        """Evaluation mode, no gradients for any weight; returns self."""
        return self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return self.text_projection.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_projection.device

    def encode_image(
        self,
        images: Tensor,
        spec: FeatureSpec | None = None,
        visual_prompts: Sequence[Tensor] = (),
        adapters: Adapters | None = None,
    ) -> ImageFeatures:
        """Features of B images as `spec` asks for them (default: CLIP's own class feature and last tokens).

        images: (B, 3, H, W), normalised, sides multiples of the patch size. The position table is resized to
        the grid. visual_prompts: learned tokens, (n, W) or (B, n, W) per block from block 1 on: the first ones
        are appended behind the patches, the others take the place of those before; after them the last ones
        pass through the tower like any token. No feature holds them. adapters: block number, from 1 -> what
        changes that block's output tokens, each by itself; parallel streams go on from tokens as changed. Raises
        ValueError for other shapes and for layers or prompts of blocks that the tower does not have.
        """
        spec = spec or FeatureSpec()
        activation = self._activation(spec.activation)
        features: ImageFeatures = self.visual(images, spec, activation, visual_prompts, adapters)
        features.plain_class_feature = self.plain_class_feature(images, spec)
        features.view_class_features = self.view_class_features(images, spec)
        return features

    def plain_class_feature(self, images: Tensor, spec: FeatureSpec) -> Tensor | None:
        """The second class feature that `spec` asks for, (B, D), not normalised; None when it asks for none.

        images: as for `encode_image`; resized to `spec.class_size` and seen by the tower without any change.
        """
        if spec.class_size is None:
            return None
        second = resize_images(images, (spec.class_size, spec.class_size))
        own = FeatureSpec(position_resize=spec.position_resize)
        return self.encode_image(second, own).class_feature

    def view_class_features(self, images: Tensor, spec: FeatureSpec) -> Tensor | None:
        """Class features (B, V, D) of V transformed copies, not normalised; None when `spec` asks for none."""
        if not spec.views:
            return None
        own = replace(spec, layers=(1.0,), streams=(), class_size=None, windows=(), views=False)
        return views.class_features(
            images,
            self.config.mean,
            self.config.std,
            lambda copy: self.encode_image(copy, own).class_feature,
        )

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings without positions: (..., T) ids -> (..., T, W)."""
        out: Tensor = self.token_embedding(ids)
        return out

    def encode_text(self, ids: Tensor, activation: str = "native") -> Tensor:
        """Text features of B tokenised texts: (B, T) ids -> (B, D), not normalised.

        The end-of-text token is the largest id of each row, as in CLIP.
        """
        return self.encode_embeddings(self.embed(ids), ids.argmax(dim=-1), activation=activation)

    def encode_embeddings(
        self,
        embeddings: Tensor,
        eot: Tensor | int,
        *,
        deep: DeepPrompts | None = None,
        final_norm: nn.Module | None = None,
        adapters: Adapters | None = None,
        projection: Callable[[Tensor], Tensor] | None = None,
        activation: str = "native",
        crop: bool = True,
        trace: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Text features from word embeddings, some of which a method has replaced.

        embeddings: (B, T, W), without positions, T at most the context length. eot: index of the end-of-text
        token, one for all or (B,). deep: tokens given before blocks. final_norm: a norm applied before
        `ln_final` (VCP-CLIP's `prompt_norm`). adapters: as in `encode_image`. projection: in place of the tower's
        own, (B, W) -> (B, D). crop: cut the sequence after the last end-of-text token; exact, since attention is
        causal (not where a graph is traced, whose values cannot be looked at). trace, when given, receives
        "block1_input", "last_block" and "final_norm".
        Returns (B, D), not normalised.
        """
        batch, length, _ = embeddings.shape
        index = torch.as_tensor(eot, device=embeddings.device).expand(batch)
        if crop and not torch.compiler.is_exporting():
            length = (int(eot) if isinstance(eot, int) else int(index.max())) + 1
        x = embeddings[:, :length].to(self.dtype) + self.positional_embedding[:length]
        x = self._run_text(x, deep, adapters or {}, self._activation(activation), trace)
        if trace is not None:
            trace["final_norm"] = x if final_norm is None else final_norm(x)
        x = x[torch.arange(batch, device=x.device), index]
        if final_norm is not None:
            x = final_norm(x).to(x.dtype)
        x = self.ln_final(x)
        features: Tensor = x @ self.text_projection if projection is None else projection(x)
        return features

    def _run_text(
        self,
        x: Tensor,
        deep: DeepPrompts | None,
        adapters: Adapters,
        activation: Callable[[Tensor], Tensor],
        trace: dict[str, Tensor] | None,
    ) -> Tensor:
        prompts = list(deep.tokens) if deep is not None else []
        if len(prompts) > self.config.text.layers:
            raise ValueError(
                f"{len(prompts)} deep prompts for a text tower of {self.config.text.layers} blocks"
            )
        inserted = deep.inserted if deep is not None else 0
        start = deep.start if deep is not None else 0
        for number, block in enumerate(self.transformer.blocks):
            prompt = prompts[number] if number < len(prompts) else None
            if prompt is not None:
                skip = 0 if inserted and number == 0 else prompt.shape[-2]
                x = _put(x, prompt, start, skip)
            if number == 0 and trace is not None:
                trace["block1_input"] = x
            x = block(x, activation, causal=True)
            if number + 1 in adapters:
                x = adapters[number + 1](x)
        if trace is not None:
            trace["last_block"] = x
        return torch.cat([x[:, :start], x[:, start + inserted :]], dim=1) if inserted else x

    def _activation(self, kind: str) -> Callable[[Tensor], Tensor]:
        return ACTIVATION_FUNCTIONS[self.config.activation if kind == "native" else kind]


def _put(x: Tensor, prompt: Tensor, start: int, skip: int) -> Tensor:
    """x with `prompt` at `start` in place of the next `skip` positions; what passes a cropped end is cut."""
    prompt = prompt.to(x.dtype).expand(x.shape[0], -1, -1)
    if skip:
        prompt = prompt[:, : x.shape[1] - start]
    return torch.cat([x[:, :start], prompt, x[:, start + skip :]], dim=1)
