"""Several processes as one run: how they meet, agree and end together.

Only process 0 holds the run directory and writes. With one process nothing here does anything.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from runtime.device import refuse_shared_gpu
from runtime.errors import Unfinished, UserError, exit_without_cleanup
from runtime.stopping import StopRequest
from runtime.world import World

T = TypeVar("T")

# How long a process waits for the others: longer than process 0 may need to prepare or save alone.
TIMEOUT = timedelta(minutes=30)
# How long a process may take to end by itself once another one failed.
GRACE_SECONDS = 20.0
_POLL_SECONDS = 1.0
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}  # by the device that a process computes on
_FAILED, _LEAVING = "failed", "leaving"  # keys of the store


class ProcessLost(UserError):  # noqa: N818  # raised here for an error in another process
    """Another process of the same run failed, so that this one cannot go on."""

    exit_code = 1


@contextmanager
def join(world: World, device: torch.device) -> Iterator[None]:
    """Connect the processes (by NCCL for tensors on CUDA, by gloo for those on the CPU) while the block works.

    Where one of them fails the others end too, with ProcessLost and its message, instead of waiting for it. A process
    that cannot notice within GRACE_SECONDS (it hangs in a collective, say) is ended by its watch thread.
    """
    global _watch
    if world.size == 1:
        yield
        return
    # Its successor is not in every torch that this runs with.
    warnings.filterwarnings("ignore", ".*all_gather_into_tensor.*deprecated", FutureWarning)
    store = _connect(world, listen=not world.hosted and world.is_main)
    exit_without_cleanup()
    dist.init_process_group(BACKENDS[device.type], store=store, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    _watch = _Watch(world, _connect(world, listen=False))
    try:
        with report_failures():
            refuse_shared_gpu(device, world, store)
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
    # wait_for_workers would make process 0 wait here while the others are still importing, without a timeout message.
    store = dist.TCPStore(host, int(port), world.size, is_master=listen, timeout=TIMEOUT, wait_for_workers=False)
    # After a failure torchrun restarts all processes with the same store: keys of the failed attempt must not be read.
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class _Watch:
    """Polls the store in a thread for another process's failure, and ends this process if it does not end itself.

    A thread is needed because the main thread may be blocked in a collective that never returns.
    """

    def __init__(self, world: World, store: dist.Store) -> None:
        self.world = world
        self.store = store  # a connection of its own: a blocking wait would block every other call on it
        self.on_lost: list[Callable[[ProcessLost], None]] = []  # called before this thread ends the process
        self.announced = False  # this process has failed
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and wait for it: a call to the store at interpreter shutdown would abort the process."""
        self._stopped.set()
        self._thread.join(GRACE_SECONDS)

    def announce(self, error: BaseException) -> None:
        """Send the others the first line of the error's message, unless another process failed first."""
        self.announced = True
        if self.failure() is not None:
            return
        message = (str(error) or repr(error)).strip().partition("\n")[0]
        name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        process = f"process {self.world.rank} of {self.world.size} on {socket.gethostname()}"
        with suppress(RuntimeError):  # process 0, which hosts the store, is gone: the others notice that themselves
            self.store.set(_FAILED, f"{process} failed: {name}{message}")
        self._let_others_read()

    def _let_others_read(self) -> None:
        """Keep the store alive for two polls where this process hosts it."""
        if self.world.is_main and not self.world.hosted:
            time.sleep(2 * _POLL_SECONDS)

    def leave_together(self) -> None:
        """Wait until every process is about to leave: a launcher may kill the others once one has left with an error
        code, and process 0 has to release the run directory first."""
        end = time.monotonic() + GRACE_SECONDS
        with suppress(RuntimeError):  # process 0 is gone, and so has released it
            self.store.add(_LEAVING, 1)
            while self.store.add(_LEAVING, 0) < self.world.size and time.monotonic() < end:
                time.sleep(_POLL_SECONDS / 10)
        self._let_others_read()

    def failure(self, wait_seconds: float = 0.0) -> str | None:
        """Return another process's message, or that process 0, which hosts the store, is gone."""
        end = time.monotonic() + wait_seconds
        try:
            while not self.store.check([_FAILED]):
                if time.monotonic() >= end:
                    return None
                time.sleep(_POLL_SECONDS / 5)
            return self.store.get(_FAILED).decode()
        except RuntimeError:
            return "process 0 is gone"

    def _run(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            if (text := self.failure()) is None:
                continue
            # The main thread usually fails in its next collective and stops this thread on its way out.
            if self._stopped.wait(GRACE_SECONDS):
                return
            error = ProcessLost(text)
            for callback in self.on_lost:
                callback(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(ProcessLost.exit_code)  # sys.exit would end this thread alone


_watch: _Watch | None = None


@contextmanager
def report_failures(on_lost: Callable[[ProcessLost], None] | None = None) -> Iterator[None]:
    """Within `join`: announce an exception of this process, and raise ProcessLost for one that another one caused.

    `on_lost` is called, in the watch thread, where this process hangs and has to be ended.
    """
    if _watch is None:
        yield
        return
    if on_lost is not None:
        _watch.on_lost.append(on_lost)
    try:
        yield
    except (Unfinished, KeyboardInterrupt, ProcessLost):  # every process stops, or is informed already
        raise
    except Exception as error:
        # When a process dies, collectives of the others fail at once. Its message, if it left one, is the real cause;
        # it may arrive after the broken connection.
        text = None if _watch.announced else _watch.failure(2.0 if _is_connection(error) else 0.0)
        if text is None and _is_connection(error):
            text = "another process ended without a word: killed, or out of memory?"
        if text is not None and not isinstance(error, UserError):
            raise ProcessLost(f"{text} (this process {_watch.world.rank} cannot go on alone)") from error
        _watch.announce(error)
        raise
    finally:
        if on_lost is not None and _watch is not None:
            _watch.on_lost.remove(on_lost)


def _is_connection(error: Exception) -> bool:
    """Return whether a collective failed because of another process; gloo raises a plain RuntimeError."""
    words = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def largest(number: int) -> int:
    """Return the maximum over the processes."""
    if not _several():
        return number
    # On the CPU: to read it from a GPU would wait for all work that the GPU was given.
    values = torch.tensor([number], dtype=torch.int64)
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return int(values)


def any_stop(stop: StopRequest) -> bool:
    """Return whether any process was asked to stop. Then all were: each leaves by the same signal."""
    stop.signal = largest(stop.signal or 0) or None
    return bool(stop)


def broadcast(value: T) -> T:
    """Return process 0's value in every process; it is pickled."""
    if not _several():
        return value
    values: list[Any] = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def gather_objects(value: T, world: World) -> list[T]:
    """Gather a value of every process at process 0, in order of rank; elsewhere return an empty list. It is pickled."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values, dst=0)
    return values or []


def gather_rows(rows: torch.Tensor, world: World) -> torch.Tensor:
    """Gather (n, ...) of every process into (world size * n, ...), in order of rank; without gradient."""
    if world.size == 1:
        return rows
    gathered = [torch.empty_like(rows) for _ in range(world.size)]
    dist.all_gather(gathered, rows.detach().contiguous())
    return torch.cat(gathered)


def add_up(tensors: Sequence[torch.Tensor], world: World) -> None:
    """Replace each tensor by its sum over the processes, in one message; all are of one dtype and device.

    The sums are the same bits in every process. One contiguous tensor is summed without a copy.
    """
    if world.size == 1:
        return
    if len(tensors) == 1:
        dist.all_reduce(tensors[0])
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, total in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view_as(tensor))


@contextmanager
def only_main_prints(world: World) -> Iterator[None]:
    """Drop what other processes than 0 print during the block; errors (stderr) stay."""
    if world.is_main:
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nothing, redirect_stdout(nothing):
        yield


def barrier() -> None:
    """Wait for every process."""
    largest(0)  # as good as torch's own, which would be over the GPUs


def _several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
