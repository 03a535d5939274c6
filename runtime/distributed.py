"""Several processes as one run: how they meet, agree and end together. runtime/world.py tells who they are.

Only process 0 holds the run directory and writes. With one process nothing here does anything.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime.errors import Unfinished, UserError, leave_at_once
from runtime.world import World, world_from_environment

__all__ = [
    "ProcessLost",
    "World",
    "agree",
    "barrier",
    "broadcast",
    "device_of",
    "explained",
    "join",
    "largest",
    "world_from_environment",
]

T = TypeVar("T")

# How long a process waits for the others: longer than process 0 may need to prepare or save alone.
TIMEOUT_MINUTES = 30.0
# How long a process that cannot go on may take to end by itself once another one failed.
GRACE_SECONDS = 20.0
_POLL_SECONDS = 1.0
_FAILED, _LEAVING = "failed", "leaving"


class ProcessLost(UserError):  # noqa: N818  # said of another process, which has the error
    """Another process of the same run failed, so that this one cannot go on."""

    exit_code = 1


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
    leave_at_once()
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    _watch = _Watch(world, _connect(world, listen=False))
    try:
        with explained():
            _refuse_shared_gpu(world, device, store)
            yield
            barrier()
        _watch.stop()
        dist.destroy_process_group()
    except (Unfinished, KeyboardInterrupt):
        _watch.leave_together()
        raise
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
        """Also wait for the thread: one that is asking the store when the interpreter ends would abort the process."""
        self._stopped.set()
        self._thread.join(GRACE_SECONDS)

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
        self._let_others_read()

    def _let_others_read(self) -> None:
        """The store goes with process 0, if that hosts it."""
        if self.world.is_main and not self.world.hosted:
            time.sleep(2 * _POLL_SECONDS)

    def leave_together(self) -> None:
        """Wait until every process is about to leave: a launcher may end the others once one has left with an error
        code, and process 0 has the run's folder to give back first."""
        end = time.monotonic() + GRACE_SECONDS
        with suppress(RuntimeError):  # process 0 is gone: so it had done all
            self.store.add(_LEAVING, 1)
            while self.store.add(_LEAVING, 0) < self.world.size and time.monotonic() < end:
                time.sleep(_POLL_SECONDS / 10)
        self._let_others_read()

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
    largest(0)  # as good as torch's own, which wants to be told the GPU


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
