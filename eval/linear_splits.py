"""The images of a classification: what is trained on, what chooses, what is scored."""

from __future__ import annotations

from dataclasses import dataclass

from data.catalog import Dataset, open_dataset
from data.config import IMAGENET, Normalisation
from data.images import ImageList
from data.transforms import Transform, eval_transform, labelled_dataset, train_transform
from eval.features import ImageBatches, source_split, stratified_split, subset
from eval.linear_config import LinearConfig
from eval.subset import Subset, take_subset
from runtime.errors import UserError


@dataclass
class Splits:
    """The images of an evaluation; train and held_out are disjoint parts of the dataset's train split.

    Of scenes, no digit that a held-out image is labelled by is in a training image (`source_split`).
    """

    train: ImageBatches
    held_out: ImageBatches | None
    val: ImageBatches
    classes: int
    held_out_by: str  # image | source
    subset: Subset | None = None  # that train and held_out are parts of, where not all of train is used

    @classmethod
    def open(cls, config: LinearConfig, normalisation: Normalisation = IMAGENET) -> Splits:
        dataset = open_dataset(config.data)
        train, val = dataset.images("train"), dataset.images("val")
        refuse_unusable(config.data.name, train, val)
        chosen = None
        if config.subset is not None:
            chosen = take_subset(config.subset, train, dataset.classes, dataset.root / "train")
            train = chosen.images
        central = eval_transform(config.resize, config.image_size)
        crops = train_transform(config.image_size, config.crop_scale, config.flip)
        kept, held_out, held_out_by = hold_out(dataset, train, config.held_out, config.seed)

        def batches(images: ImageList, transform: Transform, seed: int | None = None) -> ImageBatches:
            dataset = labelled_dataset(images, transform, seed or 0, normalisation=normalisation)
            return ImageBatches(dataset, config.batch_size, seed)

        if config.mode == "cached":
            train_batches = batches(subset(train, kept), central)
        else:
            train_batches = batches(subset(train, kept), crops, config.seed)
        return cls(
            train_batches,
            batches(subset(train, held_out), central) if held_out else None,
            batches(val, central),
            len(dataset.classes),
            held_out_by,
            chosen,
        )


def hold_out(dataset: Dataset, train: ImageList, share: float, seed: int) -> tuple[list[int], list[int], str]:
    """(kept, held out, "source" or "image"): a share of the sources of a dataset that has such, else of its images."""
    sources = dataset.sources(train) if share > 0 else None
    if sources is None:
        return *stratified_split(train.labels or [], share, seed), "image"
    return *source_split(train.labels or [], sources, share, seed), "source"


def refuse_unusable(name: str, train: ImageList, val: ImageList) -> None:
    """UserError where a linear classifier cannot be trained on these images, or must not."""
    if train.labels is None or val.labels is None:
        raise UserError(f"dataset {name} has no class labels; choose one that has (data.name)")
    if not train.paths or not val.paths:
        raise UserError(f"dataset {name} has {len(train)} training and {len(val)} validation images; both are needed")
    if shared := set(train.paths) & set(val.paths):
        raise UserError(f"dataset {name}: {len(shared)} images are both in train and val, as {min(shared)}")
