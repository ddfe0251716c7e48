"""Features of one image as a record of bytes: half precision or 8 bits, with one scale per token."""

from __future__ import annotations

import math
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
    # Both ends rather than abs() or isfinite(): those make another tensor, and take ten times as long.
    peak = torch.maximum(values.amax(dim=-1), -values.amin(dim=-1)).float()
    if not bool(torch.isfinite(peak).all()):
        raise ValueError("NaN or infinity among the features")
    if dtype == torch.int8:
        scale = (peak / _INT8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        return (values / scale[..., None]).round_().to(dtype), scale
    inside = torch.isfinite(peak.to(dtype))
    if bool(inside.all()):
        return values.to(dtype), torch.ones_like(peak)
    scale = (peak / torch.finfo(dtype).max).clamp_min(1).log2().ceil().exp2()
    scale = torch.where(inside, 1.0, scale)
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
        return math.prod(self.shape)

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

    def pack(self, features: ImageFeatures) -> Iterator[np.ndarray]:
        """The record of each image: uint8 (record,), good until the next one is asked for.

        Raises ValueError for NaN and infinity, or other shapes.
        """
        found = dict(_tensors(features))
        if {name: tuple(t.shape[1:]) for name, t in found.items()} != {
            name: array.shape for name, array in self.arrays.items()
        }:
            raise ValueError("the features have other shapes than those this cache was made for")
        record = torch.zeros(self.record, dtype=torch.uint8)
        # One image at a time: memory of this size is used again, that for a batch is asked of the system anew.
        for row in range(len(features)):
            for name, array in self.arrays.items():
                values = found[name][row].detach()
                if array.scales is None:
                    if not torch.isfinite(values).all():
                        raise ValueError("NaN or infinity among the features")
                else:
                    values, scales = quantise(values, array.dtype)
                    _view(record, torch.float32, scales.shape, array.scales).copy_(scales)
                _view(record, array.dtype, array.shape, array.offset).copy_(values)
            yield record.numpy()

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
            record = torch.frombuffer(mapped, dtype=torch.uint8, count=self.record, offset=start)
            stored = _view(record, array.dtype, array.shape, array.offset)
            if array.scales is None:
                row.copy_(stored)
            else:
                dequantise_into(row, stored, _view(record, torch.float32, array.shape[:-1], array.scales))
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


def _view(record: Tensor, dtype: torch.dtype, shape: Sequence[int], offset: int) -> Tensor:
    """The tensor that lies in a record from byte `offset` on."""
    return record[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).view(shape)


def _aligned(size: int) -> int:
    return size + -size % _ALIGN
