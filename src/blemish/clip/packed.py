"""Frozen weights of linear layers in the order in which the processor's products read them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import cpu_flags

# Rows of a product that the order is chosen for: the tokens of one picture of 518 pixels. Others work too.
ROWS = 1370
# PyTorch's names for packing a weight and for its product: not public ones, so they are looked for.
OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")
# Number format of weights -> the instructions of which a processor must have one.
NEEDED = {torch.float32: {"avx2"}, torch.bfloat16: {"avx512_bf16", "amx_bf16"}}


class Packable(nn.Module):
    """A layer with one product x W^T + b whose frozen weight can be packed: reordered once, for oneDNN's kernels.

    Packed its product is about 1.1 (bf16) or 1.25 times (fp32) as fast, on ViT-L/14 and a processor with AVX512-BF16,
    and the plain weight is gone: its parameter keeps shape and type on the meta device. It comes back by itself,
    exactly, for whatever needs it: gradients, autocast, compilation, `state_dict`, `load_state_dict`, `to`, copies.
    """

    # The names of its weight and bias.
    names = ("weight", "bias")
    packed: Tensor | None = None

    def product(self, x: Tensor) -> Tensor:
        """x (..., inputs) -> x W^T + b, (..., outputs)."""
        weight, bias = self.names
        packed = self.packed
        if packed is not None:
            if _plain_inference(x):
                out: Tensor = torch.ops.mkldnn._linear_pointwise(
                    x, packed, getattr(self, bias), "none", [], ""
                )
                return out
            self.unpack()
        return F.linear(x, getattr(self, weight), getattr(self, bias))

    def pack(self) -> None:
        """Pack the weight if that is possible here."""
        weight = getattr(self, self.names[0])
        if self.packed is None and can_pack(weight):
            self.take(weight.detach())

    def take(self, weight: Tensor) -> None:
        """Pack a weight, for which `can_pack`, in place of the own one; its memory is free afterwards."""
        with torch.inference_mode(False), torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        placeholder = torch.empty_like(weight, device="meta")
        setattr(self, self.names[0], nn.Parameter(placeholder, requires_grad=False))

    def unpack(self) -> None:
        """The plain weight again."""
        if self.packed is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            plain = self.packed.to_dense()
        self.packed = None
        wanted = getattr(self, self.names[0]).requires_grad
        setattr(self, self.names[0], nn.Parameter(plain, requires_grad=wanted))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As ever, with the plain weight."""
        self.unpack()
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.unpack()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__.copy()


class Linear(Packable, nn.Linear):
    """`nn.Linear` that can be packed."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return self.product(input)


class Packer:
    """Packs weights as they are read, without memory for the plain ones."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def took(self, layer: nn.Module, name: str, weight: Tensor, dtype: torch.dtype) -> bool:
        """Pack a weight, in `dtype`, into the layer whose parameter `name` it is; False if it cannot be packed."""
        if not (isinstance(layer, Packable) and name == layer.names[0] and can_pack(weight, dtype)):
            return False
        layer.take(weight if weight.dtype == dtype else self._converted(weight, dtype))
        return True

    def _converted(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy in memory that the next one uses again."""
        if self._memory.numel() < weight.numel() or self._memory.dtype != dtype:
            self._memory = torch.empty(weight.numel(), dtype=dtype)
        return self._memory[: weight.numel()].view(weight.shape).copy_(weight)


def pack(module: nn.Module) -> None:
    """Pack all layers within a frozen module that can be; `load_clip` packs weights as it reads them."""
    for part in module.modules():
        if isinstance(part, Packable):
            part.pack()


def unpack(module: nn.Module) -> None:
    """Undo `pack`."""
    for part in module.modules():
        if isinstance(part, Packable):
            part.unpack()


def can_pack(weight: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether this processor and this PyTorch pack a weight: frozen, whole, float32 or bfloat16.

    dtype: the weight's, when it will have another by then.
    """
    ready = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in OPERATORS
    )
    fast = not cpu_flags().isdisjoint(NEEDED.get(dtype or weight.dtype, set()))
    plain = weight.device.type == "cpu" and weight.is_contiguous() and not weight.requires_grad
    return bool(ready and fast and plain)


def _plain_inference(x: Tensor) -> bool:
    return not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    )
