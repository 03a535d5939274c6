"""Batches brought to a CUDA device while it computes: pinned, copied on a stream of their own, one batch ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor


class Batch(Protocol):
    def tensors(self) -> Iterable[Tensor]:
        """Every tensor of the batch that lies on the device."""


R = TypeVar("R")
B = TypeVar("B", bound=Batch)

_DEPTH = 1  # finished batches that wait; another one is in the making, a third in use


class _End:
    """Closes the queue; carries the exception that ended the work, if one did."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def prefetched(raws: Iterator[R], finish: Callable[[R], B], device: torch.device) -> Iterator[B]:
    """finish(raw) for each raw, in order, by a thread that works ahead on a side stream of `device`.

    `finish` moves what it needs to the device (pinned and non-blocking) and computes there. The caller's stream waits
    for the batch that it gets, the caller itself does not.
    """
    ahead = _Ahead(raws, finish, device)
    ahead.thread.start()
    try:
        while not isinstance(item := ahead.ready.get(), _End):
            batch, event = item
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in batch.tensors():
                tensor.record_stream(current)  # its memory was taken on the side stream
            yield batch
        if item.error is not None:
            raise item.error
    finally:  # also where the caller stops early
        ahead.stopped.set()
        ahead.thread.join()


class _Ahead(Generic[R, B]):
    """The thread that makes batches and the queue that it fills."""

    def __init__(self, raws: Iterator[R], finish: Callable[[R], B], device: torch.device) -> None:
        self.raws = raws
        self.finish = finish
        self.device = device
        self.ready: queue.Queue[tuple[B, torch.cuda.Event] | _End] = queue.Queue(maxsize=_DEPTH)
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._run, name="prefetch", daemon=True)

    def _run(self) -> None:
        try:
            self._make_all()
            self._put(_End())
        except BaseException as error:
            self._put(_End(error))

    def _make_all(self) -> None:
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(stream):
            for raw in self.raws:
                batch = self.finish(raw)
                event = torch.cuda.Event()
                event.record(stream)
                self._put((batch, event))
                if self.stopped.is_set():
                    return

    def _put(self, item: tuple[B, torch.cuda.Event] | _End) -> None:
        """Waits for room in the queue, but not for a caller that has gone."""
        while not self.stopped.is_set():
            try:
                self.ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
