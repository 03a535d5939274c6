"""The slice of train that is held out to choose a learning rate or a k on, and the choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from data.catalog import Dataset
from data.images import ImageList
from runtime.errors import UserError


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


def best(held_out_top1: Tensor) -> int:
    """The number of the best score on the held-out slice: of equal ones the first, never one that diverged (NaN)."""
    return int(held_out_top1.nan_to_num(-1.0).argmax())


def subset(images: ImageList, indices: Sequence[int]) -> ImageList:
    labels = None if images.labels is None else [images.labels[i] for i in indices]
    return ImageList([images.paths[i] for i in indices], labels)


def refuse_unusable(name: str, train: ImageList, val: ImageList) -> None:
    """UserError where a linear classifier cannot be trained on these images, or must not."""
    if train.labels is None or val.labels is None:
        raise UserError(f"dataset {name} has no class labels; choose one that has (data.name)")
    if not train.paths or not val.paths:
        raise UserError(f"dataset {name} has {len(train)} training and {len(val)} validation images; both are needed")
    if shared := set(train.paths) & set(val.paths):
        raise UserError(f"dataset {name}: {len(shared)} images are both in train and val, as {min(shared)}")
