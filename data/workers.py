"""Work of many steps, done ahead of time by processes or threads and handed over in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from data.config import WORKER_KINDS
from runtime.config import require
from runtime.stopping import outlive_stops

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

_AHEAD = 2  # steps a worker, as DataLoader's default


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
    loader = DataLoader(
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
