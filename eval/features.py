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
from data.transforms import LabelledDataset, eval_transform
from data.views import Purpose, sample_generator
from data.workers import WatchedLoader
from eval.config import KnnConfig, LinearConfig
from eval.splits import Splits
from runtime.config import MachineConfig
from runtime.errors import NotFiniteError
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import outlive_stops, stop_request

Labelled = tuple[Tensor, Tensor]  # rows (n, ...) and their labels (n,) int64: a batch, or a whole split


class Batched(Protocol):
    """Images that can be had by batches, as data.transforms.LabelledDataset."""

    def __len__(self) -> int: ...

    def set_epoch(self, epoch: int) -> None: ...

    def batch(self, indices: Sequence[int]) -> Any: ...


class ImageBatches(Dataset):
    """Batch number (epoch, step): images (B, 3, S, S) and labels (B,); shuffled every epoch if there is a seed."""

    def __init__(self, images: Batched, batch_size: int, seed: int | None = None) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.steps = -(-len(images) // batch_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: tuple[int, int]) -> Labelled:
        epoch, step = number
        order = range(len(self)) if self.seed is None else shuffled(len(self), self.seed, epoch)
        self.images.set_epoch(epoch)
        batch: Labelled = self.images.batch(order[step * self.batch_size : (step + 1) * self.batch_size])
        return batch

    def of_epoch(self, epoch: int, first_step: int, workers: int) -> Iterator[Labelled]:
        """The epoch's batches from `first_step` on."""
        numbers = [(epoch, step) for step in range(first_step, self.steps)]
        batches: Any = (self[number] for number in numbers)
        if workers > 0:
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
    """Batches of the images as they are scored, in their order."""
    central = eval_transform(config.resize, config.image_size, config.interpolation)
    source = splits.source(images)
    return ImageBatches(LabelledDataset(images, central, normalisation=normalisation, source=source), config.batch_size)


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of an epoch: a function of (seed, epoch) alone, so that a resumed run has the same one."""
    order: list[int] = sample_generator(seed, epoch, 0, Purpose.EVALUATION_ORDER).permutation(count).tolist()
    return order


class PooledFeatures:
    """A backbone in eval mode, without gradients: images in, pooled features (B, F) float32 out."""

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        self.device = device
        self.backbone = backbone.to(device).eval()

    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S). NotFiniteError where a feature is NaN or infinite."""
        return self._compute(images)[1]

    def maps(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S) -> feature maps (B, C, h, w) float32. NotFiniteError where one is NaN or infinite."""
        return self._compute(images)[0]

    @torch.no_grad()
    def _compute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps and pooled features. A pooled feature is a mean of its map's, so it shows what is not finite."""
        maps, pooled = self.backbone(images.to(self.device, non_blocking=True))
        if not torch.isfinite(pooled).all():
            raise NotFiniteError("the backbone's features are not finite: its training went wrong")
        return maps.float(), pooled.float()

    def table(self, batches: ImageBatches, workers: int, on_batch: Callable[[int], None]) -> Labelled:
        """(N, F) features and (N,) labels of all images, in their order; calls on_batch(images done)."""
        features, labels, done = torch.empty(0), torch.empty(len(batches), dtype=torch.long, device=self.device), 0
        for images, batch_labels in batches.of_epoch(0, 0, workers):
            batch = self(images)
            if done == 0:  # one table from the start: joining the batches at the end would take twice its memory
                features = batch.new_empty(len(batches), batch.shape[1])
            features[done : done + len(batch)] = batch
            labels[done : done + len(batch)] = batch_labels.to(self.device)
            done += len(batch)
            on_batch(done)
        return features, labels

    def tables(
        self, parts: Mapping[str, ImageBatches], run: Run, title: str, machine: MachineConfig
    ) -> dict[str, Labelled]:
        """The table of each part, with one progress display. A stop request ends the run: there is nothing to save."""
        progress = Progress(run, title, sum(map(len, parts.values())), "images", machine.log_seconds)
        tables: dict[str, Labelled] = {}
        done = 0
        with stop_request() as stop:

            def on_batch(images: int) -> None:
                progress.update(done + images)
                if stop:
                    stop.leave()

            for name, batches in parts.items():
                tables[name] = self.table(batches, machine.workers, on_batch)
                done += len(batches)
        return tables
