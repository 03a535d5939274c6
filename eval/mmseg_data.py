"""Training images for mmsegmentation, each augmented as a function of (seed, epoch, index), in an order that resumes.

Importing this module registers its parts; a config names it in `custom_imports`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dist import get_dist_info
from mmseg.datasets import BaseSegDataset
from mmseg.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from torch.utils.data import Sampler

from data.views import sample_generator

_ORDER, _AUGMENTATION = 18, 19  # purposes of random streams


@TRANSFORMS.register_module()
class MapLabels:
    """Mask values -> classes, by a table of 256; mmsegmentation's own label_map compares once for every value."""

    def __init__(self, values: Sequence[int]) -> None:
        self.table = np.array(values, np.uint8)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = self.table[results["gt_seg_map"]]
        return results


@DATASETS.register_module()
class SeededSegDataset(BaseSegDataset):
    """Training images by (epoch, index): the augmentation of each is a function of (seed, epoch, index) alone.

    mmsegmentation's transforms draw from numpy's and Python's global generators, so those are seeded for each.
    """

    def __init__(self, *arguments: Any, seed: int, **rest: Any) -> None:
        self.seed = seed
        super().__init__(*arguments, **rest)

    def __getitem__(self, number: tuple[int, int]) -> dict[str, Any]:
        epoch, index = number
        drawn = int(sample_generator(self.seed, epoch, index, _AUGMENTATION).integers(2**32))
        np.random.seed(drawn)
        random.seed(drawn)
        return super().__getitem__(index)


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """(epoch, index) of sample number `first`, `first` + 1, ... without end; each epoch shuffled by (seed, epoch).

    `batch_size` is of all processes; this one takes its consecutive share of every batch, so that together they see
    what one process alone would see. `first` begins a batch.
    """

    def __init__(self, dataset: SeededSegDataset, seed: int, batch_size: int) -> None:
        self.size, self.seed, self.batch_size, self.first = len(dataset), seed, batch_size, 0
        rank, processes = get_dist_info()
        share = batch_size // processes
        self.mine = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        number, drawn = self.first, -1
        order: list[int] = []
        while True:
            for offset in self.mine:
                epoch, position = divmod(number + offset, self.size)
                if epoch != drawn:
                    drawn, order = epoch, self._order(epoch)
                yield epoch, order[position]
            number += self.batch_size

    def _order(self, epoch: int) -> list[int]:
        return sample_generator(self.seed, epoch, 0, _ORDER).permutation(self.size).tolist()

    def __len__(self) -> int:
        return self.size
