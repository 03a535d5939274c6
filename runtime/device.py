"""Which processor a stage computes on, and with how many threads."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from runtime.config import MachineConfig
from runtime.errors import UserError

if TYPE_CHECKING:
    import torch


def prepare(machine: MachineConfig) -> torch.device:
    """Set the number of CPU threads and return the device; UserError where it does not exist here."""
    import torch

    if machine.threads:
        torch.set_num_threads(machine.threads)
    if machine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(machine.device)
    except RuntimeError as error:
        raise UserError(f"config: machine.device = {machine.device!r}; allowed: auto, cpu, cuda, cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise UserError(f"config: machine.device = {machine.device}, and this machine has {found} CUDA devices")
    return device


def available_cores() -> int:
    """Cores this process may use (a SLURM job or a container may have fewer than the machine)."""
    return len(os.sched_getaffinity(0))
