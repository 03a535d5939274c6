"""Which processor a stage computes on, and with how many threads."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from runtime.config import MachineConfig
from runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from runtime.distributed import World


def prepare(machine: MachineConfig, world: World | None = None) -> torch.device:
    """Set the number of CPU threads and return this process's device; UserError where it does not exist here.

    Of several processes on a machine with GPUs, each takes the one of its local rank, or the only one that it sees.
    """
    import torch

    if machine.threads:
        torch.set_num_threads(machine.threads)
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if machine.device == "auto" else machine.device)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"config: machine.device = {machine.device}, and this machine has {count} CUDA devices")
    if world is None or world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"config: machine.device = {device} with {world.size} processes; leave the number away")
    if world.local_rank >= count > 1:
        raise UserError(f"process {world.local_rank} of this machine has no GPU of its own: it sees {count}")
    return torch.device("cuda", world.local_rank if count > 1 else 0)


def refuse_shared_gpu(device: torch.device, world: World, store: dist.Store) -> None:
    """UserError where another process of the run has the same GPU. Every process calls this."""
    import torch

    if device.type != "cuda":
        return
    mine = f"{torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}"
    store.set(f"gpu{world.rank}", mine)
    sharing = [rank for rank in range(world.size) if store.get(f"gpu{rank}").decode() == mine]
    if len(sharing) > 1:
        raise UserError(f"processes {sharing} share the GPU {mine}; start one process a GPU")


def memory_bytes(device: torch.device) -> int:
    """Return all the memory of a device; of the CPU, what this machine has (a job or a container may have less)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_cores() -> int:
    """Return how many cores this process may use: a SLURM job or a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0))
