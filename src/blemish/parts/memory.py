"""Features of a few normal images, and how far other images' features are from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# Numbers in one block of similarities: 64 MB, whatever the batch and the memory.
BLOCK = 16_000_000


class FeatureMemory:
    """Banks of unit feature vectors by name, such as one per layer; no part of what a method learns.

    Vectors are kept in half precision, in which files hold them too, so that a memory read from a file gives the
    very numbers of the memory that was written. Cosines are off by at most 0.0005 for that.
    """

    def __init__(self) -> None:
        self._banks: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether anything is remembered."""
        return bool(self._banks)

    def clear(self) -> None:
        """Forget everything."""
        self._banks = {}

    def add(self, name: str, features: Tensor) -> None:
        """Remember vectors (..., C), of any length but zero, behind those that the bank has."""
        unit = F.normalize(features.detach().float(), dim=-1).flatten(0, -2).half()
        have = self._banks.get(name)
        self._banks[name] = unit if have is None else torch.cat([have, unit])

    def distance(self, name: str, features: Tensor) -> Tensor:
        """1 - cos to the nearest remembered vector: (..., C), of any length -> (...) in [0, 2], float32.

        Raises KeyError when nothing is remembered under the name.
        """
        bank = self._banks[name]
        unit = F.normalize(features.float(), dim=-1)
        rows = unit.flatten(0, -2)
        nearest = rows.new_full((rows.shape[0],), -1.0)
        # Of one image where a graph is traced, whose batch cannot be counted.
        at_once = unit.shape[-2] if torch.compiler.is_exporting() else len(rows)
        for part in bank.split(max(1, BLOCK // max(1, at_once))):
            nearest = torch.maximum(nearest, (rows @ part.to(rows.device).float().T).amax(dim=1))
        return (1 - nearest).clamp(0, 2).unflatten(0, unit.shape[:-1])

    def tensors(self) -> dict[str, Tensor]:
        """Name -> vectors (M, C), float16: what a file holds."""
        return dict(self._banks)

    def load(self, tensors: Mapping[str, Tensor], widths: Mapping[str, int], device: torch.device) -> None:
        """Remember exactly these banks; none at all forgets everything.

        widths: name -> C of the banks that the method needs. Raises ValueError for other names or widths.
        """
        if tensors and tensors.keys() != widths.keys():
            raise ValueError(
                f"the memory has {', '.join(sorted(tensors))}; needed are {', '.join(sorted(widths))}"
            )
        for name, bank in tensors.items():
            if bank.ndim != 2 or bank.shape[1] != widths[name] or not len(bank):
                raise ValueError(
                    f"{name} of the memory is {tuple(bank.shape)}; expected vectors (M, {widths[name]})"
                )
        self._banks = {name: bank.to(device, torch.float16) for name, bank in tensors.items()}
