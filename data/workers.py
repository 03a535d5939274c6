"""Work on many steps, done ahead of time by worker processes or threads, and returned in order.

WatchedLoader is the DataLoader of every stage: whatever stops its workers is reported in one line, and none survives.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import multiprocessing.queues
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.config import WorkerKind
from runtime.errors import UserError
from runtime.progress import describe_bytes, describe_seconds
from runtime.stopping import outlive_stops

T = TypeVar("T")

_AHEAD = 2  # steps per worker, DataLoader's default
SHARED_MEMORY = "/dev/shm"  # worker processes send their batches through it
POLL_SECONDS = 5  # between two checks of workers that have made no batch
IDLE_POLLS = 120  # checks until idle workers are given up; not seconds, because the clock runs while a job is suspended
# Of shared memory, for the semaphores of a worker's queues, amply: with too little multiprocessing fails half-way.
_QUEUE_BYTES = 1 << 16
_COMPUTING = 0.01  # of a core: a waiting worker uses less


def in_order(steps: Dataset[T], numbers: Sequence[int], workers: int, kind: WorkerKind) -> Iterator[T]:
    """Yield steps[n], a function of n alone, for each n in order; with 0 workers, compute it here when requested.

    Threads share memory and start at no cost, but exclude each other where Python itself works: between the calls of
    the decoder, the resize and OpenCV, which release its lock. Processes do not, but copy through shared memory. With
    views.execution=device, two threads took half of the CPU time of two processes from a raw cache, and three quarters
    from JPEGs (two cores; on many cores it was not measured).
    """
    workers = min(workers, len(numbers))
    if workers == 0:
        return (steps[number] for number in numbers)
    if kind == "threads":
        return _by_threads(steps, numbers, workers)
    loader = WatchedLoader(
        steps,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        generator=torch.Generator(),  # by default it draws from torch's global one, which drop path uses too
        worker_init_fn=outlive_stops,
    )
    return iter(loader)


def _by_threads(steps: Dataset[T], numbers: Sequence[int], workers: int) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="views")
    waiting: deque[Future[T]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(steps.__getitem__, number))
            if len(waiting) > workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also if the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


class WatchedLoader(DataLoader[T]):
    """A DataLoader that raises a UserError if its workers die, cannot send a batch, or do nothing.

    torch's own waits forever for a batch that did not fit in shared memory, and raises a worker's death from a signal
    handler, wherever the main thread is at that moment: in the middle of saving a checkpoint, say.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # nothing here needs more than an iterator
        if self.num_workers == 0:
            return super().__iter__()
        space = _space()
        if space.f_bavail * space.f_frsize < _QUEUE_BYTES * self.num_workers:
            raise UserError(_full("there is no room for the data loader's queues", self.num_workers))
        # A pipe, because a queue would itself need shared memory, which may be what is missing.
        reports, reporter = multiprocessing.Pipe(duplex=False)
        init, others = self.worker_init_fn, multiprocessing.active_children()
        self.worker_init_fn, self.timeout = partial(_start, reporter, init), POLL_SECONDS
        try:
            with _starting():
                batches = super().__iter__()
        finally:
            self.worker_init_fn = init
        workers = [child for child in multiprocessing.active_children() if child not in others]
        return _watched(batches, workers, reports)


@contextmanager
def _starting() -> Iterator[None]:
    """Let workers start with blocked stop signals, and keep the SIGCHLD handler.

    A worker must not die of a cluster's signal before its init function (outlive_stops) handles it. torch replaces the
    SIGCHLD handler by the one that raises a worker's death anywhere; `_watched` notices it when a batch is requested.
    """
    in_main = threading.current_thread() is threading.main_thread()  # only there may handlers be set, also by torch
    former = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGCHLD, former)


def _watched(batches: Iterator[T], workers: Sequence[BaseProcess], reports: Connection) -> Iterator[T]:
    idleness = _Idleness(workers)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            failure = _failure(workers, reports)
            if failure is None and "DataLoader timed out" in str(error):
                failure = idleness.failure()
                if failure is None:
                    continue
            for worker in workers:
                worker.kill()  # the interpreter waits for them when it exits, and a blocked one would ignore TERM
            if failure is None:
                raise  # an exception from the worker's own code
            raise failure from error
        else:
            idleness = _Idleness(workers)
            yield batch


def _failure(workers: Sequence[BaseProcess], reports: Connection) -> Exception | None:
    """Return what a worker reported, or an error if one has exited; None if all are running."""
    if reports.poll():
        return cast(Exception, reports.recv())
    code = next((worker.exitcode for worker in workers if worker.exitcode is not None), None)
    if code is None:
        return None
    if code == -signal.SIGBUS:  # a write to a page of shared memory that could not be allocated
        return UserError(_full("a worker process of the data loader got SIGBUS", len(workers)))
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    usual = "; usual reason: the machine or the job ran out of memory" if code == -signal.SIGKILL else ""
    return UserError(
        f"a worker process of the data loader exited unexpectedly ({name}){usual}; repeat the command, with fewer "
        "machine.workers if it happens again"
    )


class _Idleness:
    """Counts, since the last batch, how many checks in a row saw workers that do not compute."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self.polls = 0
        self.seconds = self._processor_seconds()

    def failure(self) -> UserError | None:
        """Check once more; return an error after IDLE_POLLS idle checks."""
        before, self.seconds = self.seconds, self._processor_seconds()
        idle = self.seconds < before + _COMPUTING * POLL_SECONDS
        self.polls = self.polls + 1 if idle and math.isfinite(self.seconds) else 0
        if self.polls < IDLE_POLLS:
            return None
        return UserError(
            f"the data loader's {len(self.workers)} worker processes have made no batch and computed nothing for "
            f"{describe_seconds(IDLE_POLLS * POLL_SECONDS)}: they are waiting, perhaps for a file system that does "
            f"not respond; {SHARED_MEMORY} has {_free()} free. Check both and repeat the command, or set "
            "machine.workers=0"
        )

    def _processor_seconds(self) -> float:
        """Return the CPU time of all workers; infinite while one waits for a disk, which is work."""
        total = 0.0
        for worker in self.workers:
            try:
                stat = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            fields = stat.rpartition(")")[2].split()  # from the third field (state); utime and stime are 14 and 15
            total += math.inf if fields[0] == "D" else int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


def _start(reporter: Connection, init: Callable[[int], None] | None, number: int) -> None:
    """Initialise a worker: let it report a batch that cannot be sent, which multiprocessing only prints and drops."""
    hook = staticmethod(partial(_report, reporter))
    multiprocessing.queues.Queue._on_queue_feeder_error = hook  # type: ignore[attr-defined]  # meant to be overridden
    if init is not None:
        init(number)


def _report(reporter: Connection, error: Exception, batch: Any) -> None:
    if "No space left" not in str(error):
        reporter.send(RuntimeError(f"a worker process of the data loader cannot send its batch: {error!r}"))
        return
    info, size = get_worker_info(), _TensorBytes.of(batch)
    workers = 1 if info is None else info.num_workers
    what = f"a worker process of the data loader has no room for a batch of {describe_bytes(size)}"
    most = f" ({workers} workers hold up to {describe_bytes(size * workers * _AHEAD)} there)"
    reporter.send(UserError(_full(what + most, workers)))


def _full(what: str, workers: int) -> str:
    fewer = f"fewer machine.workers than {workers}, or machine.workers=0" if workers > 1 else "machine.workers=0"
    return (
        f"shared memory is full: {what}, and {SHARED_MEMORY} has {_free()} free. Make it larger (mount -o "
        f"remount,size=8G {SHARED_MEMORY}; in a container: --shm-size=8g), delete what is left there, or set {fewer}"
    )


def _free() -> str:
    """As "188.4 kB of 1.0 MB"."""
    space = _space()
    return f"{describe_bytes(space.f_bavail * space.f_frsize)} of {describe_bytes(space.f_blocks * space.f_frsize)}"


def _space() -> os.statvfs_result:
    try:
        return os.statvfs(SHARED_MEMORY)
    except OSError as error:
        raise UserError(f"{SHARED_MEMORY} is missing ({error.strerror}), and worker processes need it") from error


class _TensorBytes(pickle.Pickler):
    """Adds up the bytes of the tensors in any object: pickling visits them all."""

    total = 0

    @classmethod
    def of(cls, batch: Any) -> int:
        pickler = cls(io.BytesIO())
        pickler.dump(batch)
        return pickler.total

    def persistent_id(self, value: Any) -> str | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.total += value.untyped_storage().nbytes()
        return "tensor"
