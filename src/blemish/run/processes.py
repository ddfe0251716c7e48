"""Training in several processes: who takes which images, and gradients as one process would have them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

# One process may encode a whole dataset into the feature cache while the others wait.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """This process among those that `torchrun` started; alone without it.

    rank: number of this process, from 0. count: how many there are. local_rank: its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the other processes that `torchrun` announced in the environment: gloo on a CPU, else NCCL."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if not distributed.is_initialized():
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return cls(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows progress."""
        return self.rank == 0

    def share(self, rows: list[int]) -> list[int]:
        """This process's part of a batch: contiguous, sizes differ by one at most."""
        first, last = (len(rows) * r // self.count for r in (self.rank, self.rank + 1))
        return rows[first:last]

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Part from the other processes."""
        if self.count > 1:
            distributed.destroy_process_group()

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its sum over the processes; a missing one counts as zero.

        With each process's loss weighted by its share of the batch, the sum is the gradient of the whole.
        """
        if self.count == 1:
            return
        learned = [p for p in parameters if p.requires_grad]
        flat = torch.cat([(p.new_zeros(p.shape) if p.grad is None else p.grad).flatten() for p in learned])
        distributed.all_reduce(flat)
        for parameter, gradient in zip(learned, flat.split([p.numel() for p in learned]), strict=True):
            parameter.grad = gradient.view_as(parameter)

    def add_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sum of each named value over the processes, whichever of them has it."""
        if self.count == 1:
            return dict(values)
        gathered: list[dict[str, float] | None] = [None] * self.count
        distributed.all_gather_object(gathered, dict(values))
        total: dict[str, float] = {}
        for part in gathered:
            for name, value in (part or {}).items():
                total[name] = total.get(name, 0.0) + value
        return total
