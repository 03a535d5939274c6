"""Several processes as one run: who they are (torchrun, submitit or srun tells), how they meet, agree and end together.

Only process 0 holds the run directory and writes. With one process nothing here does anything.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime.errors import Unfinished, UserError

T = TypeVar("T")

# How long a process waits for the others: longer than process 0 may need to prepare or save alone.
TIMEOUT_MINUTES = 30.0
# How long a process that cannot go on may take to end by itself once another one failed.
GRACE_SECONDS = 20.0
_POLL_SECONDS = 1.0
_FAILED = "failed"
_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class ProcessLost(UserError):  # noqa: N818  # said of another process, which has the error
    """Another process of the same run failed, so that this one cannot go on."""

    exit_code = 1


@dataclass(frozen=True)
class World:
    """The processes of this run, and which of them this one is."""

    rank: int = 0
    local_rank: int = 0  # among those on this machine
    size: int = 1
    node: int = 0  # number of this machine
    address: str = ""  # host:port where they meet
    hosted: bool = False  # by the launcher; else by process 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def world_from_environment(environment: Mapping[str, str] | None = None) -> World:
    """What torchrun (or submitit's TorchDistributedEnvironment) or, in a step of several tasks, srun says; else one
    process. UserError where the variables contradict each other or some are missing."""
    variables = os.environ if environment is None else environment
    if "WORLD_SIZE" in variables or "RANK" in variables:
        return _from_torchrun(variables)
    # A batch script has SLURM_NTASKS too, and is one process: only a step (srun) has a number.
    tasks = variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1"))
    if "SLURM_STEP_ID" in variables and _number("SLURM_NTASKS", tasks) > 1:
        return _from_slurm(variables, int(tasks))
    return World()


def _from_torchrun(variables: Mapping[str, str]) -> World:
    if variables.get("WORLD_SIZE") == "1":
        return World()
    missing = [name for name in _TORCHRUN if name not in variables]
    if missing:
        raise UserError(
            f"the environment has some of torchrun's variables ({', '.join(_TORCHRUN)}) and not {', '.join(missing)}; "
            "start by torchrun or srun, or unset them for one process"
        )
    rank, size = _number("RANK", variables["RANK"]), _number("WORLD_SIZE", variables["WORLD_SIZE"])
    if not 0 <= rank < size:
        raise UserError(f"the environment says RANK={rank} of WORLD_SIZE={size}; expected 0 to {size - 1}")
    return World(
        rank,
        _number("LOCAL_RANK", variables.get("LOCAL_RANK", str(rank))),
        size,
        _number("GROUP_RANK", variables.get("GROUP_RANK", variables.get("SLURM_NODEID", "0"))),
        f"{variables['MASTER_ADDR']}:{variables['MASTER_PORT']}",
        hosted=variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(variables: Mapping[str, str], size: int) -> World:
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST", "127.0.0.1")
    job, step = _number("SLURM_JOB_ID", variables["SLURM_JOB_ID"]), _number("SLURM_STEP_ID", variables["SLURM_STEP_ID"])
    host = variables.get("MASTER_ADDR") or first_host(nodes)
    # Below the ports that the kernel gives to outgoing connections; steps of one job may share a machine.
    port = variables.get("MASTER_PORT") or str(10000 + (job * 16 + step) % 20000)
    return World(
        _number("SLURM_PROCID", variables["SLURM_PROCID"]),
        _number("SLURM_LOCALID", variables["SLURM_LOCALID"]),
        size,
        _number("SLURM_NODEID", variables.get("SLURM_NODEID", "0")),
        f"{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list: "gpu[07-09,12],cpu1" -> "gpu07"."""
    first = re.match(r"([^,\[]*)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    assert first is not None  # every part may be empty
    return "".join(part or "" for part in first.groups())


def _number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"the environment says {name}={text!r}; expected a whole number") from error


def device_of(device: torch.device, world: World) -> torch.device:
    """The device of this process: the GPU of its number on this machine, or the only one that it sees."""
    if world.size == 1 or device.type != "cuda":
        return device
    if device.index is not None:
        raise UserError(f"config: machine.device = {device} with {world.size} processes; leave the number away")
    count = torch.cuda.device_count()
    if world.local_rank >= count > 1:
        raise UserError(f"process {world.local_rank} of this machine has no GPU of its own: it sees {count}")
    return torch.device("cuda", world.local_rank if count > 1 else 0)


@contextmanager
def join(world: World, device: torch.device) -> Iterator[None]:
    """The processes meet (NCCL on CUDA, gloo on the CPU), and part when the block ends.

    Where one of them fails the others end too, with ProcessLost, instead of waiting for it: what it said is passed on,
    and a process that does not come to know within GRACE_SECONDS (it hangs in a collective, say) is ended.
    """
    global _watch
    if world.size == 1:
        yield
        return
    # Its successor is not in every torch that this runs with.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.*deprecated", FutureWarning)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = _connect(world, listen=not world.hosted and world.is_main)
    timeout = timedelta(minutes=TIMEOUT_MINUTES)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    _watch = _Watch(world, _connect(world, listen=False))
    try:
        with explained():
            _refuse_shared_gpu(world, device, store)
            yield
            dist.barrier()
        _watch.stop()
        dist.destroy_process_group()
    finally:
        _watch.stop()
        _watch = None


def _connect(world: World, listen: bool) -> dist.Store:
    host, _, port = world.address.rpartition(":")
    timeout = timedelta(minutes=TIMEOUT_MINUTES)
    # wait_for_workers would make process 0 wait here while the others are still importing, without a timeout message.
    store = dist.TCPStore(host, int(port), world.size, is_master=listen, timeout=timeout, wait_for_workers=False)
    # torchrun starts all processes anew after a failure, in the same store.
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _refuse_shared_gpu(world: World, device: torch.device, store: dist.Store) -> None:
    if device.type != "cuda":
        return
    mine = f"{torch.cuda.get_device_properties(device).uuid} of {socket.gethostname()}"
    store.set(f"gpu{world.rank}", mine)
    others = [rank for rank in range(world.size) if store.get(f"gpu{rank}").decode() == mine]
    if len(others) > 1:
        raise UserError(f"processes {others} share the GPU {mine}; start one process a GPU")


class _Watch:
    """Asks every second, in a thread, whether another process failed, and ends this one if it does not end itself."""

    def __init__(self, world: World, store: dist.Store) -> None:
        self.world = world
        self.store = store  # a connection of its own: one that waits for a key lets nobody else ask
        self.lost: list[Callable[[ProcessLost], None]] = []  # told before this process is ended from outside
        self._stopped = threading.Event()
        self._told = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def tell(self, error: BaseException) -> None:
        """Let the others know, in one line, unless one of them was first."""
        self._told = True
        if self.failure() is not None:
            return
        said = (str(error) or repr(error)).strip().partition("\n")[0]
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        who = f"process {self.world.rank} of {self.world.size} on {socket.gethostname()}"
        with suppress(RuntimeError):  # process 0, which hosts the store, is gone: the others see that
            self.store.set(_FAILED, f"{who} failed: {name}{said}")
        if self.world.is_main and not self.world.hosted:
            time.sleep(2 * _POLL_SECONDS)  # the store goes with this process, and the others are to read it first

    def failure(self) -> str | None:
        """What another process said, or that process 0, where they meet, is gone."""
        try:
            return self.store.get(_FAILED).decode() if self.store.check([_FAILED]) else None
        except RuntimeError:
            return "process 0 is gone"

    def wait_for_failure(self, seconds: float) -> str | None:
        end = time.monotonic() + seconds
        while (text := self.failure()) is None and time.monotonic() < end:
            time.sleep(_POLL_SECONDS / 5)
        return text

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            if (text := self.failure()) is None:
                continue
            if self._stopped.wait(GRACE_SECONDS):
                return
            error = ProcessLost(text)
            for callback in self.lost:
                callback(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(ProcessLost.exit_code)


_watch: _Watch | None = None


@contextmanager
def explained(lost: Callable[[ProcessLost], None] | None = None) -> Iterator[None]:
    """Within `join`: tell the others of an exception here, and say ProcessLost where it is one of theirs.

    `lost` is called (in another thread) where this process hangs and has to be ended because another one failed.
    """
    if _watch is None:
        yield
        return
    if lost is not None:
        _watch.lost.append(lost)
    try:
        yield
    except (Unfinished, KeyboardInterrupt, ProcessLost):  # all of them stop, or know already
        raise
    except Exception as error:
        # When a process goes, the others' collectives fail at once: its own words are the reason, if it left any.
        text = None if _watch._told else _watch.wait_for_failure(2.0 if _is_connection(error) else 0.0)
        if text is None and _is_connection(error):
            text = "another process ended without a word: killed, or out of memory?"
        if text is not None and not isinstance(error, UserError):
            raise ProcessLost(f"{text} (this process {_watch.world.rank} cannot go on alone)") from error
        _watch.tell(error)
        raise
    finally:
        if lost is not None and _watch is not None:
            _watch.lost.remove(lost)


def _is_connection(error: Exception) -> bool:
    """Whether a collective failed because of another process; gloo says so by a plain RuntimeError."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if not _several():
        return number
    values = torch.tensor([number], dtype=torch.int64, device=_device())
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)


def agree(flag: bool) -> bool:
    """Whether any process says so."""
    return bool(largest(int(flag)))


def broadcast(value: T) -> T:
    """Process 0's value, pickled."""
    if not _several():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def barrier() -> None:
    """Wait for every process."""
    if _several():
        dist.barrier()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
