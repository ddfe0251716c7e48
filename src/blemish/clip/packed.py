"""Frozen weights of linear layers in the order in which the processor's products read them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..machine import cpu_flags
from .mapped import MappedFiles

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

    def pack(self, files: MappedFiles) -> None:
        """Pack the weight if that is possible here. files: gives back the pages of a weight that was mapped."""
        weight = getattr(self, self.names[0])
        if self.packed is not None or not can_pack(weight):
            return
        with torch.inference_mode(False), torch.no_grad():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        placeholder = torch.empty_like(weight, device="meta")
        setattr(self, self.names[0], nn.Parameter(placeholder, requires_grad=False))
        files.release(weight)

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


def pack(module: nn.Module) -> None:
    """Pack all layers within a frozen module that can be."""
    files = MappedFiles()
    for part in module.modules():
        if isinstance(part, Packable):
            part.pack(files)


def unpack(module: nn.Module) -> None:
    """Undo `pack`."""
    for part in module.modules():
        if isinstance(part, Packable):
            part.unpack()


def can_pack(weight: Tensor) -> bool:
    """Whether this processor and this PyTorch pack a weight: frozen, whole, float32 or bfloat16."""
    ready = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in OPERATORS
    )
    fast = not cpu_flags().isdisjoint(NEEDED.get(weight.dtype, set()))
    plain = weight.device.type == "cpu" and weight.is_contiguous() and not weight.requires_grad
    return bool(ready and fast and plain)


def _plain_inference(x: Tensor) -> bool:
    return not (
        torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type)
    )
