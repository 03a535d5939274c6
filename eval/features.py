"""Pooled features of a backbone, by batches of images that are functions of (epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.config import Normalisation
from data.images import ImageList
from data.transforms import LabelledDataset, eval_transform, train_transform
from data.views import Purpose, sample_generator
from data.workers import WatchedLoader
from eval.config import KnnConfig, LinearConfig, PooledConfig
from eval.splits import Splits
from runtime.config import ComputeConfig, MachineConfig
from runtime.device import free_bytes
from runtime.distributed import add_up, any_stop
from runtime.errors import NotFiniteError
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import outlive_stops, stop_request
from runtime.world import ALONE, World

Labelled = tuple[Tensor, Tensor]  # rows (n, ...) and their labels (n,) int64: a batch, or a whole split


class Batched(Protocol):
    """Images that can be had by batches, as data.transforms.LabelledDataset."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...

    def batch(self, indices: Sequence[int]) -> Any: ...


class ImageBatches(Dataset):
    """Batch number (epoch, step): images (B, 3, S, S) and labels (B,); shuffled every epoch if there is a seed.

    Several processes share the work in one of two ways. To train (`shared_by`), each has its part of every batch, which
    is empty, (0,) and (0,), where there are fewer images than processes. What is computed once is dealt out by whole
    batches (`dealt`): each is the one that a single process would take, so its features have the same bits.
    """

    def __init__(self, images: Batched, batch_size: int, seed: int | None = None, shared_by: World = ALONE) -> None:
        self.images, self.batch_size, self.seed, self.shared_by = images, batch_size, seed, shared_by
        self.steps = -(-len(images) // batch_size)

    def __len__(self) -> int:
        return len(self.images)

    def size(self, step: int) -> int:
        """Return the number of images in a step's batch, of all processes together."""
        return min(self.batch_size, len(self) - step * self.batch_size)

    def __getitem__(self, number: tuple[int, int]) -> Labelled:
        epoch, step = number
        order = range(len(self)) if self.seed is None else shuffled(len(self), self.seed, epoch)
        indices = order[step * self.batch_size : (step + 1) * self.batch_size][self.shared_by.share(self.size(step))]
        if not indices:
            return torch.empty(0), torch.empty(0, dtype=torch.long)
        self.images.set_epoch(epoch)
        batch: Labelled = self.images.batch(indices)
        return batch

    def of_epoch(self, epoch: int, first_step: int, workers: int) -> Iterator[Labelled]:
        """Yield the epoch's batches from `first_step` on."""
        return self._load([(epoch, step) for step in range(first_step, self.steps)], workers)

    def dealt(self, workers: int, world: World) -> Iterator[tuple[int, Labelled | None, int]]:
        """Yield in each turn (number of its first image, this process's batch, images that all have had by then).

        Every process has the same number of turns; in the last one there may be no batch for it.
        """
        own = self._load([(0, step) for step in range(world.rank, self.steps, world.size)], workers)
        for turn in range(0, self.steps, world.size):
            done = min(len(self), (turn + world.size) * self.batch_size)
            yield (turn + world.rank) * self.batch_size, next(own, None), done

    def _load(self, numbers: Sequence[tuple[int, int]], workers: int) -> Iterator[Labelled]:
        batches: Any = (self[number] for number in numbers)
        if workers > 0 and numbers:
            pin = torch.cuda.is_available()
            batches = WatchedLoader(
                self,
                batch_size=None,
                sampler=numbers,
                num_workers=workers,
                pin_memory=pin,
                worker_init_fn=outlive_stops,
            )
        yield from batches


def central_crops(
    images: ImageList, config: LinearConfig | KnnConfig, normalisation: Normalisation, splits: Splits
) -> ImageBatches:
    """Return batches of the images as they are scored, in their order."""
    central = eval_transform(config.resize, config.image_size, config.interpolation)
    source = splits.source(images)
    return ImageBatches(LabelledDataset(images, central, normalisation=normalisation, source=source), config.batch_size)


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> Sequence[int]:
    """Return an epoch's order: a function of (seed, epoch) alone, so that a resumed run has the same one."""
    order: list[int] = sample_generator(seed, epoch, 0, Purpose.EVALUATION_ORDER).permutation(count).tolist()
    return order


def open_batches(
    config: LinearConfig, splits: Splits, normalisation: Normalisation, world: World
) -> dict[str, ImageBatches]:
    """Return batches of "train", "val" and, if there is such a slice, "held_out"."""
    parts = {"train": splits.train, "val": splits.val, "held_out": splits.held_out}
    train = parts.pop("train") if config.mode == "augmented" else None
    batches = {name: central_crops(images, config, normalisation, splits) for name, images in parts.items() if images}
    if train is not None:
        crops = train_transform(config.image_size, config.crop_scale, config.flip, config.interpolation)
        source = splits.source(train)
        dataset = LabelledDataset(train, crops, config.seed, normalisation=normalisation, source=source)
        batches["train"] = ImageBatches(dataset, config.batch_size, config.seed, world)
    return batches


def choose_chunk(device: torch.device, megabytes: int | None = None) -> int:
    """Return the bytes to compute at a time: `megabytes`, or a quarter of what is free on a GPU and 256 MB on a CPU.

    On a GPU a power of two, so that runs on equal GPUs take the same: the size may change a product's last bits.
    """
    if megabytes is None and device.type == "cuda":
        return 1 << ((free_bytes(device) // 4).bit_length() - 1)
    return (megabytes or 256) << 20


class PooledFeatures:
    """A backbone in eval mode, without gradients: images in, pooled features (B, F) float32 out."""

    def __init__(
        self, backbone: nn.Module, device: torch.device, config: ComputeConfig | None = None, world: World = ALONE
    ) -> None:
        config = config or ComputeConfig()
        self.device, self.world = device, world
        self.autocast = config.precision == "bfloat16"
        self.class_token = isinstance(config, PooledConfig) and config.pooled == "class_token"
        self.layout = torch.channels_last if config.channels_last else torch.preserve_format
        self.backbone: Any = backbone.to(device, memory_format=self.layout).eval()  # type: ignore[call-overload]

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S). NotFiniteError where a feature is NaN or infinite."""
        return self._compute(images)[1]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, S, S) -> maps and pooled features in float32, in the backbone's present mode, with gradients.

        Of no images, as a process may have in a short batch, there are no pooled features (0, F).
        """
        if not len(images):
            return torch.empty(0, device=self.device), torch.empty(0, self.backbone.channels, device=self.device)
        images = images.to(self.device, memory_format=self.layout, non_blocking=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            maps, pooled = (self.backbone.map_and_class_token if self.class_token else self.backbone)(images)
        return maps.float(), pooled.float()

    def maps(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> feature maps (B, C, h, w) float32. NotFiniteError where one is NaN or infinite."""
        return self._compute(images)[0]

    @torch.no_grad()
    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and pooled features: these come from all positions, so they show what is not finite."""
        maps, pooled = self.forward(images)
        if not torch.isfinite(pooled).all():
            raise NotFiniteError("the backbone's features are not finite: its training went wrong")
        return maps, pooled

    def table(self, batches: ImageBatches, workers: int, on_batch: Callable[[int], None]) -> Labelled:
        """Compute (N, F) features and (N,) labels of all images, in their order, in every process.

        Calls on_batch(images done) after each turn, equally often in every process.
        """
        # One table from the start: joining the batches at the end would take twice its memory.
        features = torch.zeros(len(batches), self.backbone.channels, device=self.device)
        labels = torch.zeros(len(batches), dtype=torch.long, device=self.device)
        for first, batch, done in batches.dealt(workers, self.world):
            if batch is not None:
                rows = slice(first, first + len(batch[1]))
                features[rows], labels[rows] = self(batch[0]), batch[1].to(self.device)
            on_batch(done)
        for column in (features, labels):
            add_up([column], self.world)  # zero but for the rows of this process
        return features, labels

    def tables(
        self, parts: Mapping[str, ImageBatches], run: Run, title: str, machine: MachineConfig
    ) -> dict[str, Labelled]:
        """Make the table of each part, with one progress display. A stop request ends the run: nothing is saved."""
        progress = Progress(run, title, sum(map(len, parts.values())), "images", machine.log_seconds)
        tables: dict[str, Labelled] = {}
        done = 0
        with stop_request() as stop:

            def on_batch(images: int) -> None:
                progress.update(done + images)
                if any_stop(stop):
                    stop.leave()

            for name, batches in parts.items():
                tables[name] = self.table(batches, machine.workers, on_batch)
                done += len(batches)
        return tables
