"""Features of one image as a record of bytes: half precision or 8 bits, with one scale per token."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..types import ImageFeatures

STORAGES = {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}
_ALIGN = 64
_INT8_MAX = 127


def quantise(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows as `dtype`, and the float32 scale by which each must be multiplied.

    values: (..., C), finite. int8: the largest magnitude of a row becomes 127, and every value is off by at
    most 1/254 of it. float16, bfloat16: scale 1, rounded as always, except for rows with values beyond the
    type's range, which are divided by a power of two that brings them into it, so that nothing becomes infinite.
    Returns values (..., C) and scales (...,). Raises ValueError for NaN and infinity.
    """
    values = values.float()
    peak = values.abs().amax(dim=-1)
    if not torch.isfinite(peak).all():
        raise ValueError("NaN or infinity among the features")
    if dtype == torch.int8:
        scale = (peak / _INT8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        return (values / scale[..., None]).round_().to(dtype), scale
    excess = peak / torch.finfo(dtype).max
    scale = torch.where(excess > 1, excess.clamp_min(1).log2().ceil().exp2(), 1.0)
    return (values / scale[..., None]).to(dtype), scale


def dequantise_into(out: Tensor, values: Tensor, scale: Tensor) -> None:
    """The reverse of `quantise`, into `out` of the same shape and any floating type, on any device."""
    out.copy_(values.to(out.device))
    if not bool((scale == 1).all()):
        out.mul_(scale.to(out.device, out.dtype)[..., None])


@dataclass(frozen=True)
class Array:
    """One tensor of a record. shape: for one image. offset, scales: where values and scales begin, in bytes.

    Tensors of more than one row are quantised; vectors are small and kept in float32, without scales (None).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    scales: int | None

    @property
    def count(self) -> int:
        """Values for one image."""
        return int(np.prod(self.shape))

    @property
    def rows(self) -> int:
        """Tokens for one image."""
        return self.count // self.shape[-1]


class Layout:
    """Where each tensor of one image's features lies in its record.

    features: any of the kind that will be stored, of which only shapes count (tensors on the meta device will
    do). page: records are filled up to a multiple of so many bytes.
    """

    def __init__(self, features: ImageFeatures, storage: str, page: int) -> None:
        self._template = replace(features, tokens={})
        self.arrays: dict[str, Array] = {}
        end = 0
        for name, tensor in _tensors(features):
            shape = tuple(tensor.shape[1:])
            quantised = len(shape) > 1
            dtype = STORAGES[storage] if quantised else torch.float32
            array = Array(shape, dtype, end, None)
            end = _aligned(end + array.count * dtype.itemsize)
            if quantised:
                array = replace(array, scales=end)
                end = _aligned(end + array.rows * torch.float32.itemsize)
            self.arrays[name] = array
        self.record = end + -end % page

    def pack(self, features: ImageFeatures) -> np.ndarray:
        """Records of B images: uint8 (B, record). Raises ValueError for NaN and infinity, or other shapes."""
        records = np.zeros((len(features), self.record), np.uint8)
        found = dict(_tensors(features))
        if {name: tuple(t.shape[1:]) for name, t in found.items()} != {
            name: array.shape for name, array in self.arrays.items()
        }:
            raise ValueError("the features have other shapes than those this cache was made for")
        for name, array in self.arrays.items():
            if array.scales is None:
                values = found[name].float()
                if not torch.isfinite(values).all():
                    raise ValueError("NaN or infinity among the features")
            else:
                values, scales = quantise(found[name], array.dtype)
                _put(records, array.scales, scales)
            _put(records, array.offset, values)
        return records

    def unpack(
        self,
        places: Sequence[tuple[mmap.mmap, int]],
        tokens: dict[str, tuple[int, ...]],
        dtype: torch.dtype,
        device: torch.device,
    ) -> ImageFeatures:
        """Features of B images from their records; `tokens` says which stored tensors each stream is made of."""
        names = {stream: [f"tokens/{stream}/{i}" for i in which] for stream, which in tokens.items()}
        wanted = {name for group in names.values() for name in group}
        read = {
            name: self._read(array, places, dtype, device)
            for name, array in self.arrays.items()
            if name in wanted or not name.startswith("tokens/")
        }
        streams = {stream: tuple(read[name] for name in group) for stream, group in names.items()}
        others: dict[str, Any] = {name: tensor for name, tensor in read.items() if name not in wanted}
        return replace(self._template, tokens=streams, **others)

    def _read(
        self, array: Array, places: Sequence[tuple[mmap.mmap, int]], dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        out = torch.empty((len(places), *array.shape), dtype=dtype, device=device)
        for row, (mapped, start) in zip(out, places, strict=True):
            stored = torch.frombuffer(
                mapped, dtype=array.dtype, count=array.count, offset=start + array.offset
            )
            if array.scales is None:
                row.copy_(stored.view(array.shape))
            else:
                where = start + array.scales
                scale = torch.frombuffer(mapped, dtype=torch.float32, count=array.rows, offset=where)
                dequantise_into(row, stored.view(array.shape), scale.view(array.shape[:-1]))
        return out


def _tensors(features: ImageFeatures) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the features by a name of its own: a field's, or tokens/STREAM/INDEX."""
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, Tensor):
            yield field.name, value
    for stream, layers in features.tokens.items():
        for index, tokens in enumerate(layers):
            yield f"tokens/{stream}/{index}", tokens


def _put(records: np.ndarray, offset: int, values: Tensor) -> None:
    flat = values.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    records[:, offset : offset + flat.shape[1]] = flat


def _aligned(size: int) -> int:
    return size + -size % _ALIGN
