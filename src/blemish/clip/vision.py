"""The image tower of every ViT CLIP: tapped layers, parallel attention streams, resized positions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import FeatureSpec, ImageFeatures
from .config import VisionConfig
from .layers import Block, Transformer, resolve_layers
from .stem import LiteStem


def resize_positions(table: Tensor, grid: tuple[int, int], mode: str) -> Tensor:
    """Resize a position table to another patch grid, always from the table as trained.

    table: (1 + s*s, W), class row first. grid: (rows, columns). mode: "bilinear" (AnomalyCLIP, ViP2-CLIP),
    "bicubic", or "bicubic_antialias" (VCP-CLIP; the cubic coefficient is then -0.5, also when enlarging).
    Corners are not aligned. Returns (1 + rows*columns, W) in the table's type, computed in float32.
    """
    side = int((table.shape[0] - 1) ** 0.5)
    if side * side + 1 != table.shape[0]:
        raise ValueError(f"position table has {table.shape[0]} rows; expected 1 + a square number")
    if grid == (side, side):
        return table
    rows = table[1:].float().t().reshape(1, -1, side, side)
    rows = F.interpolate(
        rows,
        size=grid,
        mode=mode.removesuffix("_antialias"),
        align_corners=False,
        antialias=mode.endswith("_antialias"),
    )
    return torch.cat([table[:1], rows.flatten(2)[0].t().to(table.dtype)])


class VisionTower(nn.Module):
    """CLIP's vision transformer. Parameter names are OpenAI's."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        if config.stem == "lite":
            self.stem: nn.Module = LiteStem(width)
        elif config.stem == "patch":
            self.conv1 = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        else:
            raise ValueError(f"unknown stem {config.stem!r}; choose from patch, lite")
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(config.grid**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, config.layers, config.heads, config.mlp_width)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, embed_dim))
        self._resized: dict[tuple[object, ...], Tensor] = {}

    def reset_parameters(self) -> None:
        """Random weights with CLIP's own scales, from the global generator."""
        scale = self.config.width**-0.5
        for parameter in (self.class_embedding, self.positional_embedding, self.proj):
            nn.init.normal_(parameter, std=scale)
        self.transformer.reset_parameters()

    def positions(self, grid: tuple[int, int], mode: str) -> Tensor:
        """(1 + rows*columns, W); the last few resized tables are kept while the weights do not change."""
        table = self.positional_embedding
        if table.requires_grad or table.is_meta or table.is_inference():
            return resize_positions(table, grid, mode)
        key = (grid, mode, table.data_ptr(), table._version, table.dtype, table.device)
        if key not in self._resized:
            if len(self._resized) >= 8:
                self._resized.clear()
            with torch.inference_mode(False):  # usable later where gradients are recorded
                self._resized[key] = resize_positions(table, grid, mode)
        return self._resized[key]

    def embed(self, images: Tensor, mode: str) -> tuple[Tensor, tuple[int, int]]:
        """(B, 3, H, W) -> tokens after `ln_pre` (B, 1+N, W) and the patch grid.

        H and W must be multiples of the patch size (ValueError).
        """
        patch = self.config.patch_size
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % patch or images.shape[3] % patch:
            raise ValueError(
                f"images must be (B, 3, H, W) with sides divisible by {patch}, got {tuple(images.shape)}"
            )
        x = self.stem(images) if self.config.stem == "lite" else self.conv1(images)
        grid = (int(x.shape[-2]), int(x.shape[-1]))
        x = x.flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positions(grid, mode).to(x.dtype)
        return self.ln_pre(x), grid

    def forward(
        self, images: Tensor, spec: FeatureSpec, activation: Callable[[Tensor], Tensor]
    ) -> ImageFeatures:
        """Frozen features of B images as `spec` asks for them; see `CLIP.encode_image`."""
        depth = self.config.layers
        taps = resolve_layers(spec.layers, depth)
        start = resolve_layers([spec.stream_start], depth)[0]
        parallel = [s for s in spec.streams if s != "qk"]
        x, grid = self.embed(images, spec.position_resize)
        streams: dict[str, Tensor] = {}
        tapped: dict[tuple[str, int], Tensor] = {}
        for number, block in enumerate(self.transformer.blocks, start=1):
            last_rows_unused = number == depth and not ("qk" in spec.streams and depth in taps)
            if number < start or not parallel:
                x = self._ordinary(block, x, activation, last_rows_unused)
            else:
                x = self._with_streams(
                    block, x, streams, parallel, activation, spec.stream_ffn, last_rows_unused
                )
            if number in taps:
                for stream in spec.streams:
                    tapped[stream, number] = self._finish(streams.get(stream, x), spec.projected)
        cls = x[:, 0]
        if spec.class_ln_post:
            cls = self.ln_post(cls)
        return ImageFeatures(
            class_feature=cls @ self.proj,
            tokens={s: tuple(tapped[s, n] for n in taps) for s in spec.streams},
            grid=grid,
            image_size=(int(images.shape[-2]), int(images.shape[-1])),
        )

    @staticmethod
    def _ordinary(
        block: Block, x: Tensor, activation: Callable[[Tensor], Tensor], class_only: bool
    ) -> Tensor:
        if not class_only:
            out: Tensor = block(x, activation)
            return out
        query, key, value = block.attn.qkv(block.ln_1(x))
        x = x[:, :1] + block.attn.attend(query[:, :, :1], key, value)
        return block.feed_forward(x, activation)

    @staticmethod
    def _with_streams(
        block: Block,
        x: Tensor,
        streams: dict[str, Tensor],
        parallel: list[str],
        activation: Callable[[Tensor], Tensor],
        ffn: bool,
        class_only: bool,
    ) -> Tensor:
        """One block of the ordinary stream, and of each parallel stream (AnomalyCLIP's DPAM).

        A parallel stream starts as the ordinary tokens before its first block and only ever adds
        out_proj(softmax(R R^T / sqrt(d)) V), R being the queries, keys or values of the *ordinary* tokens;
        it never feeds back. With `ffn`, from its second block on, it is instead recomputed from the
        ordinary tokens and passes the MLP.
        """
        attn = block.attn
        query, key, value = attn.qkv(block.ln_1(x))
        for stream in parallel:
            same = {"vv": value, "qq": query, "kk": key}[stream]
            step = attn.attend(same, same, value)
            if ffn and stream in streams:
                streams[stream] = block.feed_forward(x + step, activation)
            else:
                streams[stream] = streams.get(stream, x) + step
        if class_only:
            x, query = x[:, :1], query[:, :, :1]
        return block.feed_forward(x + attn.attend(query, key, value), activation)

    def _finish(self, tokens: Tensor, projected: bool) -> Tensor:
        return self.ln_post(tokens) @ self.proj if projected else tokens
