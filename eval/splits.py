"""The images of a classification: to train on, to choose a setting on (held out of train), to score on (val)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from data.cache import CachedPart, CacheReader, open_unreduced
from data.catalog import Dataset, open_dataset
from data.config import DataConfig
from data.images import ImageList
from eval.subset import Subset, select_subset
from runtime.errors import UserError


@dataclass(frozen=True)
class Splits:
    """Train, held_out and unused are disjoint parts of the dataset's train split (of its subset, if there is one)."""

    train: ImageList
    held_out: ImageList  # may be empty
    unused: ImageList  # of scenes: they show a digit that labels a held-out image
    val: ImageList
    joined: ImageList  # train, held_out and unused, in this order
    classes: int
    held_out_by: str | None  # image | source
    subset: Subset | None
    cache: CacheReader | None  # of the train split

    @classmethod
    def open(cls, config: DataConfig, held_out: float, seed: int, subset: str | None = None) -> Splits:
        """Open the dataset and hold out that share of train. UserError where it cannot be classified."""
        dataset = open_dataset(config)
        train, val = dataset.images("train"), dataset.images("val")
        refuse_unusable(config.name, train, val)
        selected = None if subset is None else select_subset(subset, train, dataset.root / "train")
        images = train if selected is None else selected.images
        kept, chosen, by = hold_out(dataset, images, held_out, seed)
        unused = sorted(set(range(len(images))) - {*kept, *chosen})
        return cls(
            images.select(kept),
            images.select(chosen),
            images.select(unused),
            val,
            images.select([*kept, *chosen, *unused]),
            len(dataset.classes),
            by if chosen else None,
            selected,
            open_unreduced(dataset),
        )

    def source(self, images: ImageList) -> CachedPart | None:
        """Return the reader of images of these splits; None for their files."""
        return None if self.cache is None else self.cache.select(images.paths)

    def describe(self) -> dict[str, Any]:
        """Return the entries of result.json."""
        return {
            "classes": self.classes,
            "train_images": len(self.train),
            "held_out_images": len(self.held_out),
            "held_out_by": self.held_out_by,
            "val_images": len(self.val),
        } | ({} if self.subset is None else self.subset.describe())


def refuse_unusable(name: str, train: ImageList, val: ImageList) -> None:
    """UserError where these images cannot be classified, or must not be."""
    if train.labels is None or val.labels is None:
        raise UserError(f"dataset {name} has no class labels; choose one that has (data.name)")
    if not train.paths or not val.paths:
        raise UserError(f"dataset {name} has {len(train)} training and {len(val)} validation images; both are needed")
    if shared := set(train.paths) & set(val.paths):
        raise UserError(f"dataset {name}: {len(shared)} images are both in train and val, as {min(shared)}")


def hold_out(dataset: Dataset, train: ImageList, share: float, seed: int) -> tuple[list[int], list[int], str]:
    """(kept, held out, "source" or "image"): a share of the sources of a dataset that has such, else of its images."""
    sources = dataset.sources(train) if share > 0 else None
    if sources is None:
        return *stratified_split(train.labels or [], share, seed), "image"
    return *source_split(train.labels or [], sources, share, seed), "source"


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
    kept = sorted(set(range(len(classes))) - set(held_out))
    return kept, sorted(held_out)


def source_split(
    labels: Sequence[int], sources: Sequence[tuple[int, ...]], share: float, seed: int
) -> tuple[list[int], list[int]]:
    """(kept, held out) indices of images that are composed of sources, the first of which gives the label.

    Of each class's first sources round(share * their number) are held out, at least one: the images that they label are
    held out, those that show none of them are kept, and the others are left out. So no source that labels a held-out
    image is in a kept one. Its other sources may be: without them, far fewer images could be held out, nearly all of a
    single source, and a choice on those would be worse.

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


def best(held_out_top1: Tensor) -> int:
    """Return the index of the best held-out score: of equal ones the first, never one that diverged (NaN)."""
    return int(held_out_top1.nan_to_num(-1.0).argmax())


def is_at_edge(value: float, tried: Sequence[float]) -> bool:
    """Whether a value beyond those that were tried might have been better."""
    return len(tried) > 1 and value in (min(tried), max(tried))
