"""The image tower of every ViT CLIP: tapped layers, parallel attention streams, resized positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..types import FeatureSpec, ImageFeatures
from .config import VisionConfig
from .layers import Block, Transformer, resolve_layers
from .stem import LiteStem
from .windows import window_class_tokens


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


class Stream(NamedTuple):
    """A parallel attention stream. name: "vv", "qq", "kk" or "vv_path". start: its first block.

    ffn: passes the MLP; "vv_path" always does.
    """

    name: str
    start: int
    ffn: bool


# Block number, from 1 -> what is applied to its output tokens (..., W), token by token.
Adapters = Mapping[int, Callable[[Tensor], Tensor]]

# (stream, None for the ordinary tokens; block; projected or not) -> tokens
Tapped = dict[tuple[Stream | None, int, bool], Tensor]


@dataclass(frozen=True)
class Request:
    """A specification in the terms of one tower.

    taps: its blocks, from 1. streams: each stream's name -> the stream, None for the ordinary tokens. whole: it
    taps ordinary tokens of the last block; of the others only the class row is computed there.
    """

    spec: FeatureSpec
    taps: tuple[int, ...]
    streams: dict[str, Stream | None]
    whole: bool

    @classmethod
    def of(cls, spec: FeatureSpec, depth: int) -> Request:
        """Raises ValueError for layers that a tower of `depth` blocks does not have."""
        taps = resolve_layers(spec.layers, depth)
        start = resolve_layers([spec.stream_start], depth)[0]
        streams = {
            name: None if name == "qk" else Stream(name, start, spec.stream_ffn) for name in spec.streams
        }
        return cls(spec, taps, streams, "qk" in streams and depth in taps)

    def collect(self, tapped: Tapped) -> dict[str, tuple[Tensor, ...]]:
        """Its tokens, in the order it names layers."""
        projected = self.spec.projected
        return {
            name: tuple(tapped[key, n, projected] for n in self.taps) for name, key in self.streams.items()
        }


class Rows(NamedTuple):
    """Which ordinary tokens a block has to compute: all of them, the class token alone, or either way."""

    all: bool
    class_only: bool


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
        lite = self.config.stem == "lite"
        x = self.stem(images).to(self.proj.dtype) if lite else self.conv1(images.to(self.proj.dtype))
        grid = (int(x.shape[-2]), int(x.shape[-1]))
        x = x.flatten(2).transpose(1, 2)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls, x], dim=1) + self.positions(grid, mode).to(x.dtype)
        return self.ln_pre(x), grid

    def forward(
        self,
        images: Tensor,
        spec: FeatureSpec,
        activation: Callable[[Tensor], Tensor],
        visual_prompts: Sequence[Tensor] = (),
        adapters: Adapters | None = None,
    ) -> ImageFeatures:
        """Frozen features of B images as `spec` asks for them; see `CLIP.encode_image`."""
        return self.forward_shared(images, [spec], activation, visual_prompts, adapters)[0]

    def forward_shared(
        self,
        images: Tensor,
        specs: Sequence[FeatureSpec],
        activation: Callable[[Tensor], Tensor],
        visual_prompts: Sequence[Tensor] = (),
        adapters: Adapters | None = None,
    ) -> list[ImageFeatures]:
        """Features for several specifications from one pass, each as `forward` alone would give them.

        Positions are resized as the first specification says, and `activation` serves all: the caller sees to
        it that they agree in both (`blemish.clip.shared`). visual_prompts and adapters serve all too.
        """
        depth = self.config.layers
        if len(visual_prompts) > depth:
            raise ValueError(f"{len(visual_prompts)} visual prompts for an image tower of {depth} blocks")
        requests = [Request.of(spec, depth) for spec in specs]
        parallel = dict.fromkeys(key for request in requests for key in request.streams.values() if key)
        whole = [request.whole for request in requests]
        x, grid = self.embed(images, specs[0].position_resize)
        windows = self._window_tokens(x, grid, specs, activation)
        count = x.shape[1]
        class_row = x[:, :1]
        streams: dict[Stream, Tensor] = {}
        tapped: Tapped = {}
        for number, block in enumerate(self.transformer.blocks, start=1):
            if number <= len(visual_prompts):
                prompt = visual_prompts[number - 1].to(x.dtype).expand(x.shape[0], -1, -1)
                x = torch.cat([x[:, :count], prompt], dim=1)
            active = [stream for stream in parallel if number >= stream.start]
            rows = Rows(number < depth or any(whole), number == depth and not all(whole))
            x, class_row = self._block(block, x, streams, active, activation, rows)
            if adapters is not None and number in adapters:
                x, class_row = adapters[number](x), adapters[number](class_row)
            self._tap(tapped, requests, number, x, streams, count)
        size = int(images.shape[-2]), int(images.shape[-1])
        return [
            ImageFeatures(
                class_feature=self._class_feature((x if request.whole else class_row)[:, 0], request.spec),
                tokens=request.collect(tapped),
                grid=grid,
                image_size=size,
                windows=self._windows(windows, request.spec),
            )
            for request in requests
        ]

    def _window_tokens(
        self,
        x: Tensor,
        grid: tuple[int, int],
        specs: Sequence[FeatureSpec],
        activation: Callable[[Tensor], Tensor],
    ) -> dict[int, Tensor]:
        """Side of a window, in patches -> class tokens of the windows; of every side that is asked for."""
        # Norms see one token at a time, so windows of what has passed `ln_pre` are those of what has not, normed.
        return {
            k: window_class_tokens(x, grid, k, self.transformer.blocks, activation)
            for k in dict.fromkeys(k for spec in specs for k in spec.windows)
        }

    def _tap(
        self,
        tapped: Tapped,
        requests: Sequence[Request],
        number: int,
        x: Tensor,
        streams: Mapping[Stream, Tensor],
        count: int,
    ) -> None:
        """Keep what the requests want of the block `number`: the first `count` tokens, those before visual prompts."""
        for request in requests:
            for key in request.streams.values() if number in request.taps else ():
                place = key, number, request.spec.projected
                if place not in tapped:
                    tokens = x if key is None else streams.get(key, x)
                    tapped[place] = self._finish(tokens[:, :count], request.spec.projected)

    def _class_feature(self, tokens: Tensor, spec: FeatureSpec) -> Tensor:
        out: Tensor = (self.ln_post(tokens) if spec.class_ln_post else tokens) @ self.proj
        return out

    def _windows(self, tokens: Mapping[int, Tensor], spec: FeatureSpec) -> Tensor | None:
        found = [self._class_feature(tokens[k], spec) for k in spec.windows]
        return torch.cat(found, dim=1) if found else None

    @staticmethod
    def _block(
        block: Block,
        x: Tensor,
        streams: dict[Stream, Tensor],
        active: Sequence[Stream],
        activation: Callable[[Tensor], Tensor],
        rows: Rows,
    ) -> tuple[Tensor, Tensor]:
        """One block of the ordinary tokens, and of each active parallel stream (AnomalyCLIP's DPAM).

        A parallel stream starts as the ordinary tokens before its first block and only ever adds
        out_proj(softmax(R R^T / sqrt(d)) V), R being the queries, keys or values of the *ordinary* tokens;
        it never feeds back. With `ffn`, from its second block on, it is instead recomputed from the
        ordinary tokens and passes the MLP. "vv_path" is a tower of its own from its first block on: R and V are
        the values of its own tokens, which pass the MLP (AA-CLIP).
        """
        attn = block.attn
        query, key, value = attn.qkv(block.ln_1(x))
        for stream in active:
            if stream.name == "vv_path":
                own = streams.get(stream, x)
                same = value if stream not in streams else attn.qkv(block.ln_1(own))[2]
                streams[stream] = block.feed_forward(own + attn.attend(same, same, same), activation)
                continue
            same = {"vv": value, "qq": query, "kk": key}[stream.name]
            step = attn.attend(same, same, value)
            if stream.ffn and stream in streams:
                streams[stream] = block.feed_forward(x + step, activation)
            else:
                streams[stream] = streams.get(stream, x) + step
        class_row = x[:, :1]
        if rows.class_only:
            class_row = class_row + attn.attend(query[:, :, :1], key, value)
            class_row = block.feed_forward(class_row, activation)
        if rows.all:
            x = block.feed_forward(x + attn.attend(query, key, value), activation)
        return x, class_row

    def _finish(self, tokens: Tensor, projected: bool) -> Tensor:
        return self.ln_post(tokens) @ self.proj if projected else tokens
