"""The batch of all processes: how statistics use the samples of other processes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from vicregl.errors import InvalidInputError


@dataclass(frozen=True)
class ProcessBatch:
    """`processes` processes with `size` samples each; this one is number `rank`.

    Collectives here have no gradient of their own: the criterion computes the whole derivative of the loss with
    respect to this process's samples itself, times `processes`, because DDP averages the processes' gradients.
    """

    size: int
    processes: int = 1
    rank: int = 0

    @property
    def total(self) -> int:
        return self.size * self.processes

    @classmethod
    def from_group(cls, size: int, device: torch.device) -> ProcessBatch:
        """Ask the default process group. InvalidInputError where the processes' sizes differ."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return cls(size)
        # Over the CPU where the group can: to read them from a GPU would wait for all work that the GPU was given.
        sizes = torch.tensor([size, -size], device="cpu" if "cpu:" in dist.get_backend_config() else device)
        dist.all_reduce(sizes, op=dist.ReduceOp.MAX)
        largest, smallest = int(sizes[0]), -int(sizes[1])
        if largest != smallest:
            raise InvalidInputError(
                f"the criterion got {size} samples in this process, and the processes have {smallest} to {largest}; "
                "every process needs the same number. Drop the last, uneven batch (drop_last=True)"
            )
        return cls(size, dist.get_world_size(), dist.get_rank())

    def gather(self, rows: Tensor) -> Tensor:
        """Gather (size, ...) of every process into (total, ...), in order of rank."""
        if self.processes == 1:
            return rows
        gathered = rows.new_empty((self.total, *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows.detach().contiguous())
        return gathered

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.processes > 1:
            dist.all_reduce(values)
        return values
