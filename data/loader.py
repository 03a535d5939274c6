"""Batches of views for pretraining, the same for any number of workers and after any interruption."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from data.batch_colour import BatchPlan, mirror_and_colour, normalise_batch, plan_batch
from data.cache import open_store
from data.catalog import Dataset
from data.config import ViewsConfig, WorkerKind
from data.images import normalise
from data.store import ImageStore
from data.views import GridSize, Purpose, SampleStreams, ViewMaker, sample_generator
from data.workers import in_order
from runtime.config import require


@dataclass
class ViewBatch:
    """One step's input, on the loader's device. V views of B images."""

    images: list[torch.Tensor]  # V x (B, 3, S, S) float32, normalised
    locations: list[torch.Tensor]  # V x (B, H, W, 2) float32, (row, column) in pixels of the original image
    labels: torch.Tensor | None  # (B,) int64; None for a dataset without classes
    step: int
    epoch: int

    def tensors(self) -> list[torch.Tensor]:
        return self.images + self.locations + ([] if self.labels is None else [self.labels])


@dataclass
class WorkerBatch:
    """What a worker sends: uint8 views, a quarter of the bytes, which the training process finishes."""

    views: list[torch.Tensor]  # V x (B, S, S, 3) uint8
    plans: list[BatchPlan] | None  # V: colour that is left to the device; None: nothing is
    locations: list[torch.Tensor]
    labels: torch.Tensor | None
    step: int
    skipped: set[int]  # all that the worker could not read so far


class BufferPool:
    """Reuses large arrays once nothing refers to them any more.

    A batch of float views at 224 pixels has some hundred megabytes. The kernel provides fresh memory of that size page
    by page, zeroed, which takes longer than to fill it.
    """

    _KEPT = 12  # arrays at most: a few batches, of a few sizes of views
    # References to an array that only the pool holds: its list, the loop's variable, getrefcount's argument.
    _FREE = 3

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrays: list[npt.NDArray[Any]] = []

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()  # another process starts with an empty pool

    def take(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array of arbitrary content.

        It counts as used as long as a tensor shares its memory: torch.from_numpy keeps a reference to its array.
        """
        with self._lock:
            for array in self._arrays:
                if array.shape == shape and array.dtype == dtype and sys.getrefcount(array) == self._FREE:
                    return array
            array = np.empty(shape, dtype)
            self._arrays = [*self._arrays[-self._KEPT + 1 :], array]
            return array


@lru_cache(maxsize=2)
def _epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    return sample_generator(seed, epoch, 0, Purpose.EPOCH_ORDER).permutation(count).tolist()


class BatchMaker(torch.utils.data.Dataset[WorkerBatch]):
    """Makes the batch of a step; runs in the workers.

    The random numbers of a sample depend on (seed, epoch, sample number) alone, never on the worker or on what was
    drawn before. So the batch is a function of the step: neither workers nor a restart have any state to restore.
    """

    def __init__(self, store: ImageStore, maker: ViewMaker, batch_size: int, seed: int, share: tuple[int, int]) -> None:
        self.store = store
        self.maker = maker
        self.batch_size = batch_size
        rank, processes = share
        size = batch_size // processes
        self.own = slice(rank * size, (rank + 1) * size)  # the part of each batch that this process makes
        self.seed = seed
        self.steps_per_epoch = len(store) // batch_size
        self._pool = BufferPool()

    def __getitem__(self, step: int) -> WorkerBatch:
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _epoch_order(len(self.store), self.seed, epoch)
        samples = order[position * self.batch_size : (position + 1) * self.batch_size][self.own]
        maker = self.maker
        on_device = maker.config.execution == "device"
        render = maker.crop if on_device else maker.render
        views = [self._pool.take((len(samples), side, side, 3), np.uint8) for side in maker.sides]
        streams = SampleStreams(self.seed, epoch, Purpose.VIEWS)
        plans, numbers = [], []
        for row, sample in enumerate(samples):
            number, image = self.store.read(sample)
            numbers.append(number)
            plans.append(maker.draw(image.shape[0], image.shape[1], streams.at(sample)))
            for view, plan in enumerate(plans[-1]):
                render(image, plan, maker.sides[view], out=views[view][row])
        labels = self.store.images.labels
        by_view = list(zip(*plans, strict=True))
        return WorkerBatch(
            [torch.from_numpy(view) for view in views],
            [plan_batch(plans_of_view) for plans_of_view in by_view] if on_device else None,
            [maker.locations(plans_of_view, view) for view, plans_of_view in enumerate(by_view)],
            None if labels is None else torch.tensor([labels[number] for number in numbers]),
            step,
            self.store.skipped,
        )


class PretrainLoader:
    """Batches of views of a dataset's train split, by step number.

    Any number of workers gives the same batches, and so does a run that starts at a later step. The last, incomplete
    batch of an epoch is left out.

    `share` is (rank, processes): this process makes that part of each batch of `batch_size`, in order of rank, so
    that together they make what one process would make.

    Batches are on `device`; for CUDA they are copied ahead of time, on a separate stream. `wait_seconds` is how long
    the caller has waited for them. `compiled`: what the device does to colours is compiled.

    Raises UserError if the dataset is smaller than one batch, and for an image that cannot be read: immediately for a
    dataset that fits in `memory_bytes` when decoded (it is read at once), else when its turn comes. With
    on_bad_image="skip" such images are left out (small dataset) or replaced by the next readable one (large);
    `skipped` has the numbers of those that this process has met.
    """

    def __init__(
        self,
        dataset: Dataset,
        views: ViewsConfig,
        grid_size: GridSize,
        batch_size: int,
        seed: int,
        workers: int = 0,
        worker_kind: WorkerKind = "processes",
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
        on_bad_image: str = "stop",
        memory_bytes: int = 1 << 30,
        compiled: bool = False,
    ) -> None:
        require(batch_size >= 2, "batch size", batch_size, "2 or more")
        equal = batch_size % share[1] == 0
        require(equal, "batch size", batch_size, f"a multiple of the number of processes, {share[1]}")
        if share[0] == 0 and (note := dataset.images("train").describe_left_out()):
            print(f"{dataset.root / 'train'}: {note}", flush=True)
        self._store = open_store(dataset, views.short_side, on_bad_image, memory_bytes)
        self.steps_per_epoch = dataset.steps_per_epoch(len(self._store), batch_size)
        self._maker = BatchMaker(self._store, ViewMaker(views, grid_size), batch_size, seed, share)
        self._views = views
        self._workers, self._worker_kind = workers, worker_kind
        self._device, self._compiled = torch.device(device), compiled
        self._pool = BufferPool()
        self.wait_seconds = 0.0
        self.skipped = self._store.skipped

    def batches(self, first_step: int, last_step: int) -> Generator[ViewBatch]:
        """Yield the batches of steps first_step, ..., last_step - 1; step numbers continue across epochs."""
        from_workers = self.worker_batches(first_step, last_step)
        if self._device.type == "cuda":
            batches = prefetched(from_workers, self.finish, self._device)
        else:
            batches = (self.finish(batch) for batch in from_workers)
        started = time.perf_counter()
        for batch in batches:
            self.wait_seconds += time.perf_counter() - started
            yield batch
            started = time.perf_counter()

    def worker_batches(self, first_step: int, last_step: int) -> Iterator[WorkerBatch]:
        return in_order(self._maker, range(first_step, last_step), self._workers, self._worker_kind)

    def make(self, step: int) -> WorkerBatch:
        """Do a worker's part of a step, in this process."""
        return self._maker[step]

    def finish(self, batch: WorkerBatch) -> ViewBatch:
        """Copy to the device, colour if the workers have not, and normalise, which turns one byte into four."""
        self.skipped |= batch.skipped
        images, config = [], self._views
        for number, view in enumerate(batch.views):
            levels = self._to_device(view)
            if batch.plans is not None:
                plan = batch.plans[number].map(self._to_device)
                images.append(mirror_and_colour(levels, plan, config, self._compiled))
            elif self._device.type == "cpu":
                images.append(normalise(levels, config.mean, config.std, self._pool.take))
            else:
                images.append(normalise_batch(levels, config))
        locations = [self._to_device(grid) for grid in batch.locations]
        labels = None if batch.labels is None else self._to_device(batch.labels)
        return ViewBatch(images, locations, labels, batch.step, batch.step // self.steps_per_epoch)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)


def prefetched(
    batches: Iterator[Any], finish: Callable[[Any], ViewBatch], device: torch.device
) -> Generator[ViewBatch]:
    """Yield finish(batch) in order from a thread that works one batch ahead, on its own CUDA stream.

    `finish` copies to the device (pinned and non-blocking) and computes there. The caller's stream waits for the
    batch; the caller's thread does not.
    """
    ready: queue.Queue[Any] = queue.Queue(maxsize=1)  # one batch waits here, another is being made, a third is in use
    stopped = threading.Event()
    thread = threading.Thread(
        target=_finish_all, args=(batches, finish, device, ready, stopped), name="prefetch", daemon=True
    )
    thread.start()
    try:
        while isinstance(item := ready.get(), tuple):
            batch, event = item
            current = torch.cuda.current_stream(device)
            current.wait_event(event)
            for tensor in batch.tensors():
                # The side stream allocated it; without this, its memory could be reused while `current` reads it.
                tensor.record_stream(current)
            yield batch
        if item is not None:
            raise item
    finally:  # also if the caller stops early
        stopped.set()
        thread.join()


def _finish_all(
    batches: Iterator[Any],
    finish: Callable[[Any], ViewBatch],
    device: torch.device,
    ready: queue.Queue[Any],
    stopped: threading.Event,
) -> None:
    """Put (batch, event) into the queue for each batch, then None, or the exception that ended the work."""

    def put(item: object) -> None:
        while not stopped.is_set():  # a caller that has stopped will never make room
            try:
                ready.put(item, timeout=0.1)
                break
            except queue.Full:
                continue

    try:
        stream = torch.cuda.Stream(device)
        with torch.cuda.device(device), torch.cuda.stream(stream):
            for batch in batches:
                finished, event = finish(batch), torch.cuda.Event()
                event.record(stream)
                put((finished, event))
                if stopped.is_set():
                    return
        put(None)
    except BaseException as error:
        put(error)
