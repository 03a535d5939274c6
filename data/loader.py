"""Batches of views for pretraining, the same for any number of workers and after any interruption."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data.batch_colour import BatchPlan, mirror_and_colour, plan_batch
from data.catalog import Dataset, open_dataset
from data.config import DataConfig, ViewsConfig
from data.images import ImageStore, normalise
from data.prefetch import prefetched
from data.raw import open_source
from data.recycle import Recycler
from data.views import GridSize, Purpose, SampleStreams, ViewMaker, sample_generator
from data.workers import in_order
from runtime.config import require
from runtime.errors import UserError


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
class RawBatch:
    """What a worker hands over: uint8 views (a quarter of the bytes), finished by the process that asked."""

    views: list[torch.Tensor]  # V x (B, S, S, 3) uint8
    plans: list[BatchPlan] | None  # V, what is still to be done with them; None: nothing
    locations: list[torch.Tensor]
    labels: torch.Tensor | None
    step: int
    bad_files: set[Path]


class _Steps:
    """The batch of each step, as a function of the step alone."""

    def __init__(
        self, store: ImageStore, maker: ViewMaker, batch_size: int, seed: int, share: tuple[int, int] = (0, 1)
    ) -> None:
        self.store = store
        self.maker = maker
        self.batch_size = batch_size
        rank, processes = share
        size = batch_size // processes
        self.own = slice(rank * size, (rank + 1) * size)  # of each batch
        self.seed = seed
        self.steps_per_epoch = len(store) // batch_size
        self._order = lru_cache(maxsize=2)(self._shuffle)
        self._recycler = Recycler()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> list[int]:
        return sample_generator(self.seed, epoch, 0, Purpose.EPOCH_ORDER).permutation(len(self.store)).tolist()

    def __getitem__(self, step: int) -> RawBatch | UserError:
        """A UserError is returned, not raised: DataLoader would wrap it in the worker's traceback."""
        try:
            return self._make(step)
        except UserError as error:
            return error

    def _make(self, step: int) -> RawBatch:
        epoch, position = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[position * self.batch_size : (position + 1) * self.batch_size][self.own]
        maker = self.maker
        on_device = maker.config.execution == "device"
        render = maker.crop if on_device else maker.render
        views = [self._recycler.take((len(chosen), side, side, 3), np.uint8) for side in maker.sides]
        streams = SampleStreams(self.seed, epoch, Purpose.VIEWS)
        plans, numbers = [], []
        for row, index in enumerate(chosen):
            number, image = self.store.read(index)
            numbers.append(number)
            plans.append(maker.draw(image.shape[0], image.shape[1], streams.at(index)))
            for view, plan in enumerate(plans[-1]):
                render(image, plan, maker.sides[view], out=views[view][row])
        labels = self.store.images.labels
        by_view = list(zip(*plans, strict=True))
        return RawBatch(
            [torch.from_numpy(view) for view in views],
            [plan_batch(of_view) for of_view in by_view] if on_device else None,
            [maker.locations(of_view, view) for view, of_view in enumerate(by_view)],
            None if labels is None else torch.tensor([labels[number] for number in numbers]),
            step,
            self.store.bad_files,
        )


class PretrainLoader:
    """Batches of views of a dataset's train split, by step number.

    Order and augmentation of a sample are functions of (seed, epoch, sample number) alone, so any number of workers
    gives the same batches, and so does a run that begins at a later step. The last, incomplete batch of an epoch is
    left out.

    `share` is (rank, processes): this process makes that part of each batch of `batch_size`, in order of rank, so
    that all of them together make what one process would.

    Batches come on `device`; on CUDA they are brought there ahead of time, on a stream of their own. `wait_seconds`
    counts how long the caller waited for them. `dataset` is what `data` names, where the caller has opened it already.

    Raises UserError where the dataset is smaller than one batch, and for an image that cannot be read: at once for a
    dataset that fits `memory_bytes` decoded (it is read whole), else when it is its turn. With
    `data.on_bad_image=skip` such images are left out (from a small dataset) or stand back for the next readable one
    (large); `skipped` counts them.
    """

    def __init__(
        self,
        data: DataConfig,
        views: ViewsConfig,
        grid_size: GridSize,
        batch_size: int,
        seed: int,
        workers: int = 0,
        memory_bytes: int = 1 << 30,
        device: torch.device | str = "cpu",
        worker_kind: str = "processes",
        share: tuple[int, int] = (0, 1),
        dataset: Dataset | None = None,
    ) -> None:
        require(batch_size >= 2, "batch size", batch_size, "2 or more")
        equal = batch_size % share[1] == 0
        require(equal, "batch size", batch_size, f"a multiple of the number of processes, {share[1]}")
        dataset = dataset or open_dataset(data)
        images = dataset.images("train")
        if share[0] == 0 and (note := images.describe_left_out()):
            print(f"{dataset.root / 'train'}: {note}", flush=True)
        source = open_source(dataset, images, views.short_side)
        self._store = ImageStore(images, data.on_bad_image, memory_bytes, source)
        self.steps_per_epoch = dataset.steps_per_epoch(len(self._store), batch_size)
        self._steps = _Steps(self._store, ViewMaker(views, grid_size), batch_size, seed, share)
        self._views = views
        self._workers = workers
        self._worker_kind = worker_kind
        self._device = torch.device(device)
        self._recycler = Recycler()
        self.wait_seconds = 0.0
        self.bad_files = self._store.bad_files

    @property
    def samples(self) -> int:
        """Images of an epoch before the last, incomplete batch is left out."""
        return len(self._store)

    @property
    def skipped(self) -> int:
        """Unreadable images met so far."""
        return len(self.bad_files)

    def batches(self, first_step: int, last_step: int) -> Generator[ViewBatch]:
        """The batches of steps first_step, ..., last_step - 1; steps count on across epochs."""
        raws = self.raws(first_step, last_step)
        if self._device.type == "cuda":
            batches = prefetched(raws, self.finish, self._device)
        else:
            batches = (self.finish(raw) for raw in raws)
        asked = time.perf_counter()
        for batch in batches:
            self.wait_seconds += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()

    def raws(self, first_step: int, last_step: int) -> Iterator[RawBatch | UserError]:
        """What the workers hand over for those steps."""
        return in_order(self._steps, range(first_step, last_step), self._workers, self._worker_kind)

    def make(self, step: int) -> RawBatch | UserError:
        """What a worker does for a step."""
        return self._steps[step]

    def finish(self, raw: RawBatch | UserError) -> ViewBatch:
        """What the workers leave to the device, and the normalising, which makes four bytes of one."""
        if isinstance(raw, UserError):
            raise raw
        self.bad_files |= raw.bad_files
        images, views = [], self._views
        for number, view in enumerate(raw.views):
            levels = self._moved(view)
            if raw.plans is None:
                images.append(normalise(levels, self._recycler, views.mean, views.std))
            else:
                plan = raw.plans[number].map(self._moved)
                images.append(mirror_and_colour(levels, plan, views.solarize_threshold, views.mean, views.std))
        locations = [self._moved(grid) for grid in raw.locations]
        labels = None if raw.labels is None else self._moved(raw.labels)
        return ViewBatch(images, locations, labels, raw.step, raw.step // self.steps_per_epoch)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cuda":
            return tensor.to(self._device)
        return tensor.pin_memory().to(self._device, non_blocking=True)
