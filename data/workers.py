"""Work of many steps, done ahead of time by processes or threads and handed over in order.

WatchedLoader is the DataLoader of every stage: what stops its workers is said in one line, and none of them is left.
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
from typing import Any, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data.config import WORKER_KINDS
from runtime.config import require
from runtime.errors import UserError
from runtime.progress import describe_bytes, describe_seconds
from runtime.stopping import outlive_stops

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_AHEAD = 2  # steps a worker, as DataLoader's default
SHARED_MEMORY = "/dev/shm"  # through which a worker process hands its batches over
POLL_SECONDS = 5  # between two looks at workers that have made nothing
IDLE_POLLS = 120  # then they are given up; counted, because the clock goes on while a job is suspended
_QUEUES = 1 << 16  # bytes of a worker's semaphores there, amply: multiprocessing fails half-way without
_COMPUTING = 0.01  # of a core: a worker that waits uses less


class Steps(Protocol[T_co]):
    """What a step gives, as a function of the step alone."""

    def __getitem__(self, step: int) -> T_co: ...


def in_order(steps: Steps[T], numbers: Sequence[int], workers: int, kind: str) -> Iterator[T]:
    """steps[n] for each n, in order; with 0 workers when it is asked for.

    Threads share memory and cost nothing to start, and wait for each other where Python itself works: between the
    decoder's, the resize's and OpenCV's calls, which release its lock. Processes never wait, and send by shared memory.
    """
    require(kind in WORKER_KINDS, "machine.worker_kind", kind, ", ".join(WORKER_KINDS))
    workers = min(workers, len(numbers))
    if workers == 0:
        return (steps[number] for number in numbers)
    if kind == "threads":
        return _by_threads(steps, numbers, workers)
    dataset = cast("Dataset[T]", steps)  # of which no more than __getitem__ is asked
    loader = WatchedLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        generator=torch.Generator(),  # else it draws from torch's own, and drop path depends on the workers
        worker_init_fn=outlive_stops,
    )
    return iter(loader)


def _by_threads(steps: Steps[T], numbers: Sequence[int], workers: int) -> Iterator[T]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="views")
    waiting: deque[Future[T]] = deque()
    try:
        for number in numbers:
            waiting.append(pool.submit(steps.__getitem__, number))
            if len(waiting) > workers * _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also where the caller stops early
        pool.shutdown(wait=True, cancel_futures=True)


class WatchedLoader(DataLoader[T]):
    """A DataLoader whose batches end in a UserError where its workers died, cannot hand over a batch, or do nothing.

    torch's own waits for ever for a batch that found no room in shared memory, and raises a worker's death in a signal
    handler, wherever the main thread is.
    """

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # nobody here asks it for more than batches
        if self.num_workers == 0:
            return super().__iter__()
        if _space().f_bavail * _space().f_frsize < _QUEUES * self.num_workers:
            raise UserError(_full("the data loader finds no room for its queues", self.num_workers))
        reports, reporter = multiprocessing.Pipe(duplex=False)  # not a queue, which needs shared memory itself
        given, others = self.worker_init_fn, multiprocessing.active_children()
        self.worker_init_fn, self.timeout = partial(_start, reporter, given), POLL_SECONDS
        try:
            with _starting():
                batches = super().__iter__()
        finally:
            self.worker_init_fn = given
        workers = [child for child in multiprocessing.active_children() if child not in others]
        return _watched(batches, workers, reports)


@contextmanager
def _starting() -> Iterator[None]:
    """Start workers that inherit blocked stop signals, until their own start says what these do; and keep the handler
    of SIGCHLD, which torch sets: the watch sees dead workers where their batch is asked for."""
    in_main = threading.current_thread() is threading.main_thread()  # no other may set handlers, nor does torch there
    former = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if in_main:
            signal.signal(signal.SIGCHLD, former)


def _watched(batches: Iterator[T], workers: Sequence[BaseProcess], reports: Connection) -> Iterator[T]:
    idle = _Idleness(workers)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            failure = _failure(workers, reports)
            if failure is None and "DataLoader timed out" in str(error):
                failure = idle.failure()
                if failure is None:
                    continue
            for worker in workers:
                worker.kill()  # the interpreter waits for them at its end, and they may hear nothing else
            if failure is None:
                raise  # what a worker raised
            raise failure from error
        else:
            idle = _Idleness(workers)
            yield batch


def _failure(workers: Sequence[BaseProcess], reports: Connection) -> Exception | None:
    """What a worker reported, or that one has ended; None where all of them are at work."""
    if reports.poll():
        return cast(Exception, reports.recv())
    code = next((worker.exitcode for worker in workers if worker.exitcode is not None), None)
    if code is None:
        return None
    if code == -signal.SIGBUS:
        return UserError(_full("a worker process of the data loader got SIGBUS", len(workers)))
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
    usual = "; usual reason: the machine or the job ran out of memory" if code == -signal.SIGKILL else ""
    return UserError(
        f"a worker process of the data loader exited unexpectedly ({name}){usual}; repeat the command, with fewer "
        "machine.workers if it happens again"
    )


class _Idleness:
    """Since the last batch: how many looks found workers that do not compute."""

    def __init__(self, workers: Sequence[BaseProcess]) -> None:
        self.workers = workers
        self.polls = 0
        self.seconds = self._processor_seconds()

    def failure(self) -> UserError | None:
        """One more look; an error after IDLE_POLLS of them."""
        before, self.seconds = self.seconds, self._processor_seconds()
        waited = self.seconds < before + _COMPUTING * POLL_SECONDS
        self.polls = self.polls + 1 if waited and math.isfinite(self.seconds) else 0
        if self.polls < IDLE_POLLS:
            return None
        return UserError(
            f"the data loader's {len(self.workers)} worker processes have made no batch and computed nothing for "
            f"{describe_seconds(IDLE_POLLS * POLL_SECONDS)}: they wait for something, as a file system that does not "
            f"answer; {SHARED_MEMORY} has {_free()} free. Look at that, and repeat the command; machine.workers=0 "
            "does without them"
        )

    def _processor_seconds(self) -> float:
        """Of all workers; infinite while one waits for a disk, which is work."""
        total = 0.0
        for worker in self.workers:
            try:
                stat = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            fields = stat.rpartition(")")[2].split()  # from the third on: its state; utime and stime are 14 and 15
            total += math.inf if fields[0] == "D" else int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


def _start(reporter: Connection, start: Callable[[int], None] | None, number: int) -> None:
    """In a new worker: report a batch that cannot be sent; multiprocessing's own thread prints that and drops it."""
    hook = staticmethod(partial(_report, reporter))
    multiprocessing.queues.Queue._on_queue_feeder_error = hook  # type: ignore[attr-defined]  # made for such use
    if start is not None:
        start(number)


def _report(reporter: Connection, error: Exception, batch: Any) -> None:
    if "No space left" not in str(error):
        reporter.send(RuntimeError(f"a worker process of the data loader cannot send its batch: {error!r}"))
        return
    info, needs = get_worker_info(), _Sizes.of(batch)
    workers = 1 if info is None else info.num_workers
    what = f"a worker process of the data loader finds no room for a batch of {describe_bytes(needs)}"
    most = f" ({workers} workers hold up to {describe_bytes(needs * workers * _AHEAD)} there)"
    reporter.send(UserError(_full(what + most, workers)))


def _full(what: str, workers: int) -> str:
    less = f"fewer machine.workers than {workers}, or machine.workers=0" if workers > 1 else "machine.workers=0"
    return (
        f"shared memory is full: {what}, and {SHARED_MEMORY} has {_free()} free. Make it larger (mount -o "
        f"remount,size=8G {SHARED_MEMORY}; in a container: --shm-size=8g), remove what is left there, or take {less}"
    )


def _free() -> str:
    """Of shared memory, as "188.4 kB of 1.0 MB"."""
    space = _space()
    return f"{describe_bytes(space.f_bavail * space.f_frsize)} of {describe_bytes(space.f_blocks * space.f_frsize)}"


def _space() -> os.statvfs_result:
    try:
        return os.statvfs(SHARED_MEMORY)
    except OSError as error:
        raise UserError(f"{SHARED_MEMORY} is not there ({error.strerror}), and worker processes need it") from error


class _Sizes(pickle.Pickler):
    """Adds up the bytes of the tensors in any object: pickling visits them all."""

    total = 0

    @classmethod
    def of(cls, batch: Any) -> int:
        sizes = cls(io.BytesIO())
        sizes.dump(batch)
        return sizes.total

    def persistent_id(self, value: Any) -> str | None:
        if not isinstance(value, torch.Tensor):
            return None
        self.total += value.untyped_storage().nbytes()
        return "tensor"
