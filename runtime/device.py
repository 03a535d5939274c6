"""Which processor a stage computes on, and with how many threads."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.config import MachineConfig
from runtime.errors import UserError
from runtime.world import World

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist


GPU_FILE = Path("/dev/nvidia0")
DRIVER_FILE = Path("/proc/driver/nvidia/version")


def choose_device(machine: MachineConfig, world: World | None = None) -> torch.device:
    """Set the number of CPU threads, and return this process's device, which on CUDA becomes torch's current one.

    Of several processes on a machine with GPUs, each takes the one of its local rank, or the only one that it sees.
    UserError where the device does not exist here, and where `auto` would leave a GPU unused.
    """
    import torch

    if machine.threads:
        torch.set_num_threads(machine.threads)
    device = _choose(machine, world)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def _choose(machine: MachineConfig, world: World | None) -> torch.device:
    import torch

    if machine.device == "auto" and not torch.cuda.is_available():
        refuse_unusable_gpu()
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(auto if machine.device == "auto" else machine.device)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"config: machine.device = {machine.device}, and this machine has {count} CUDA devices")
    if world is None or world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"config: machine.device = {device} with {world.size} processes; omit the number")
    if world.local_rank >= count > 1:
        raise UserError(f"process {world.local_rank} of this machine has no GPU of its own: it sees {count}")
    return torch.device("cuda", world.local_rank if count > 1 else 0)


def refuse_unusable_gpu() -> None:
    """Raise UserError if there is a GPU that torch cannot use: the run would silently take days on the CPU."""
    import torch

    if (sign := sign_of_gpu()) is None:
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    driver = driver_version() or "not readable, so perhaps not loaded"
    raise UserError(
        f"config: machine.device = auto, and there is a GPU here ({sign}) that torch cannot use: torch "
        f"{torch.__version__} is {built}, and NVIDIA's driver is {driver}. Update the driver, or install a torch for "
        "it (see environment.yml), or choose machine.device=cpu"
    )


def sign_of_gpu() -> str | None:
    """Return what shows that this process has an NVIDIA GPU; None without one, or where they are hidden from it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not re.match(r"\s*(\d|GPU-|MIG-)", visible):
        return None  # hidden on purpose: "", "-1", or SLURM's "NoDevFiles"
    for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "CUDA_VISIBLE_DEVICES"):
        value = os.environ.get(name, "")
        if value and (name, value) != ("SLURM_GPUS_ON_NODE", "0"):
            return f"{name}={value}"
    return str(GPU_FILE) if GPU_FILE.exists() else None


def driver_version() -> str | None:
    """Return the version of NVIDIA's kernel driver, as 535.104.05, or None where it cannot be read."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\d+(\.\d+)+", text)
    return found[0] if found else None


def refuse_shared_gpu(device: torch.device, world: World, store: dist.Store) -> None:
    """Raise UserError if another process of the run has the same GPU. Every process calls this."""
    import torch

    if device.type != "cuda":
        return
    mine = f"{torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}"
    store.set(f"gpu{world.rank}", mine)
    sharing = [rank for rank in range(world.size) if store.get(f"gpu{rank}").decode() == mine]
    if len(sharing) > 1:
        raise UserError(f"processes {sharing} share the GPU {mine}; start one process per GPU")


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16; without them it is slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def choose_convolutions(device: torch.device, deterministic: bool = False) -> None:
    """Let cuDNN time its algorithms on the first batch of each shape, or take only those that repeat their bits.

    To time them pays where shapes are few. Two runs may choose otherwise, so it is off where bits have to repeat.
    """
    import torch

    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


def memory_bytes(device: torch.device) -> int:
    """Return all the memory of a device; of the CPU, what this machine has (a job or a container may have less)."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: torch.device) -> int:
    """Return how much memory new tensors can take on a GPU: what is free, and what torch keeps of freed tensors."""
    import torch

    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def available_cores() -> int:
    """Return how many cores this process may use: a SLURM job or a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0))
