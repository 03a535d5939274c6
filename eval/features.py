"""Pooled features of a frozen backbone, by batches of images that are functions of (epoch, step) alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.images import ImageList
from data.transforms import LabelledDataset
from data.views import Purpose, sample_generator
from data.workers import WatchedLoader
from runtime.errors import NotFiniteError, UserError
from runtime.stopping import outlive_stops

Batch = tuple[Tensor, Tensor]  # (B, ...), labels (B,) int64


class ImageBatches(Dataset):
    """Batch number (epoch, step): images (B, 3, S, S) and labels (B,); shuffled every epoch if there is a seed."""

    def __init__(self, images: LabelledDataset, batch_size: int, seed: int | None = None) -> None:
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.steps = -(-len(images) // batch_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: tuple[int, int]) -> Batch | UserError:
        """A UserError is returned, not raised: DataLoader would wrap it in the worker's traceback."""
        epoch, step = number
        order = range(len(self)) if self.seed is None else shuffled(len(self), self.seed, epoch)
        self.images.set_epoch(epoch)
        try:
            return self.images.batch(order[step * self.batch_size : (step + 1) * self.batch_size])
        except UserError as error:
            return error

    def of_epoch(self, epoch: int, first_step: int, workers: int) -> Iterator[Batch]:
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
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch


@lru_cache(maxsize=2)
def shuffled(count: int, seed: int, epoch: int) -> Sequence[int]:
    """The order of an epoch: a function of (seed, epoch) alone."""
    order: list[int] = sample_generator(seed, epoch, 0, Purpose.EVALUATION_ORDER).permutation(count).tolist()
    return order


class PooledFeatures:
    """The backbone as it is, without gradients: images in, pooled features (B, F) float32 out."""

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        self.device = device
        self.backbone = backbone

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """images (B, 3, S, S). NotFiniteError where a feature is NaN or infinite."""
        _, pooled = self.backbone(images.to(self.device, non_blocking=True))
        if not torch.isfinite(pooled).all():
            raise NotFiniteError("the backbone's pooled features are not finite: its training went wrong")
        return pooled.float()

    def table(self, batches: ImageBatches, workers: int, on_batch: Callable[[int], None] = lambda done: None) -> Batch:
        """(N, F) features and (N,) labels of all images, in their order; on_batch(images done)."""
        vectors, labels, done = torch.empty(0), torch.empty(len(batches), dtype=torch.long, device=self.device), 0
        for images, numbers in batches.of_epoch(0, 0, workers):
            some = self(images)
            if done == 0:  # one table from the start: joining the batches at the end would take twice its memory
                vectors = some.new_empty(len(batches), some.shape[1])
            vectors[done : done + len(some)] = some
            labels[done : done + len(some)] = numbers.to(self.device)
            done += len(some)
            on_batch(done)
        return vectors, labels


class FrozenFeatures(PooledFeatures):
    """Those of a backbone in eval mode, which nothing trains any more."""

    def __init__(self, backbone: nn.Module, device: torch.device) -> None:
        super().__init__(backbone.to(device).eval().requires_grad_(False), device)


def stratified_split(labels: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(kept, held out) indices: of each class round(share * its images) are held out, at least one if share > 0.

    UserError where a class would be left without an image to train on.
    """
    generator = np.random.default_rng(seed)
    classes = np.asarray(labels)
    held_out: list[int] = []
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        count = 0 if share == 0 else max(1, round(share * len(members)))
        if count >= len(members):
            raise UserError(
                f"class number {label} has {len(members)} training images, and held_out = {share} takes {count} of "
                "them; lower held_out, or set it to 0 and give a single learning rate"
            )
        held_out += members[:count].tolist()
    taken = set(held_out)
    return [i for i in range(len(classes)) if i not in taken], sorted(held_out)


def source_split(
    labels: Sequence[int], sources: Sequence[tuple[int, ...]], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """(kept, held out) indices of images that are composed of sources, the first of which gives the label.

    Of each class's first sources round(share * their number) are held out, at least one: the images that they stand
    first in are held out, those that have none of them are kept, and the others are left out. So what gives a held-out
    image its label is in no kept image. Its other sources may be: if they might not, far fewer images could be held
    out, nearly all of a single source, and they would choose worse.

    UserError where a class would be left without an image to train on.
    """
    generator = np.random.default_rng(seed)
    classes, first = np.asarray(labels), np.array([image[0] for image in sources])
    chosen: set[int] = set()
    for label in np.unique(classes):
        own = generator.permutation(np.unique(first[classes == label]))
        chosen.update(own[: max(1, round(share * len(own)))].tolist())
    kept = [number for number, image in enumerate(sources) if chosen.isdisjoint(image)]
    if lost := set(labels) - {labels[number] for number in kept}:
        raise UserError(
            f"class number {min(lost)} has no training image without a source digit that held_out = {share} takes; "
            "lower held_out, or take more training images"
        )
    return kept, [number for number, image in enumerate(sources) if image[0] in chosen]


def subset(images: ImageList, indices: Sequence[int]) -> ImageList:
    labels = None if images.labels is None else [images.labels[i] for i in indices]
    return ImageList([images.paths[i] for i in indices], labels)
