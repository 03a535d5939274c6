"""Segmentation by the nearest positions of training images, a check of dense features that trains nothing.

python -m eval.dense_knn runs/pretrain/<run> --config eval/configs/dense_knn_scenes.yaml key=value

After Balazevic et al. 2023, "Towards in-context scene understanding" (arXiv 2306.01667), as open-hummingbird-eval, its
public reproduction, does it: a memory holds positions of the training images' feature maps, each with the distribution
of labels over its cell of the mask. A position of a validation image takes the mean of its k nearest positions'
distributions, weighted by softmax(cosine / temperature). These are resized (bilinear), and the most likely class of
each pixel is scored by mIoU. A memory that cannot hold all positions takes equally many of each image, those of rare
classes first.

Differs from the reproduction: unlabelled pixels of training masks count for nothing, not as background; masks keep
their size, so the score is of the image's own pixels, as that of eval.segmentation; the search is exact; training
images are taken once, without augmentation. Of equally similar positions the first in the memory is nearer.

An interrupted run starts over. Several processes (torchrun, srun) share the images; their scores are exactly those of
one process.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.catalog import open_dataset
from data.config import Normalisation
from data.images import normalise, read_image, resize
from data.layout import SegmentationLayout, size_fault
from data.views import Purpose, sample_generator
from eval.command import evaluate
from eval.config import DenseKnnConfig
from eval.features import ImageBatches, PooledFeatures, choose_chunk
from eval.knn import nearest, normalise_rows, product_chunk
from eval.parent import Parent, load_parent_backbone
from runtime.device import choose_convolutions
from runtime.distributed import add_up, any_stop, broadcast
from runtime.errors import UserError, run_command
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request
from runtime.world import World

Memory = tuple[Tensor, Tensor]  # features (M, C) of unit length; label distributions (M, classes)


def label_positions(
    config: DenseKnnConfig, parent: Parent, run: Run, device: torch.device, world: World
) -> dict[str, Any]:
    """Fill the memory from train, label every position of val, and return the dict of result.json."""
    started = time.monotonic()
    layout = open_dataset(config.data).segmentation()
    images = {split: MaskedImages(layout, split, config.image_size, parent.normalisation) for split in ("train", "val")}
    choose_convolutions(device)
    features = PooledFeatures(load_parent_backbone(parent), device, config, world)
    if world.is_main and (misfit := features.backbone.misfit(config.image_size)):
        print(f"warning: cells of image_size = {config.image_size} are not exact: {misfit}", file=sys.stderr)
    memory = fill_memory(config, features, images["train"], run)
    most = max(config.neighbours)
    if most > len(memory[0]):
        raise UserError(
            f"config: neighbours = {config.neighbours} is not possible: the memory holds {len(memory[0])} positions, "
            f"fewer than {most}; take smaller numbers"
        )
    confusions = score(config, features, memory, images["val"], run)
    return summary(config, confusions, layout) | {
        "memory_positions": len(memory[0]),
        "features": memory[0].shape[1],
        "train_images": len(images["train"]),
        "val_images": len(images["val"]),
        "seconds": time.monotonic() - started,
    }


class MaskedImages(Dataset):
    """Squares of a split's images, normalised, and their masks as they are stored."""

    def __init__(self, layout: SegmentationLayout, split: str, size: int, normalisation: Normalisation) -> None:
        self.layout, self.split, self.size, self.normalisation = layout, split, size, normalisation
        self.names = layout.names(split)

    def __len__(self) -> int:
        return len(self.names)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing: no image is augmented."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """Return images (B, 3, S, S) and B masks (H, W) uint8. UserError, naming the file, for what cannot be used."""
        names = [self.names[index] for index in indices]
        squares, masks = zip(*map(self._read, names), strict=True)
        mean, std = self.normalisation
        return normalise(np.stack(squares), mean, std), list(masks)

    def _read(self, name: str) -> tuple[np.ndarray, Tensor]:
        image, path = read_image(self.layout.image(self.split, name)), self.layout.mask(self.split, name)
        mask = self.layout.read_mask(path)
        if fault := size_fault(mask.shape, image.shape[:2]) or self.layout.labels.fault(mask):
            raise UserError(f"the mask {path} {fault}")
        return resize(image, self.size, self.size, mode="bilinear"), torch.from_numpy(mask)


def fill_memory(config: DenseKnnConfig, features: PooledFeatures, images: MaskedImages, run: Run) -> Memory:
    """Keep `config.memory` labelled positions, equally many of each image; fewer where there are fewer.

    Every process has all of them, in the order of the images.
    """
    classes, ignore = len(images.layout.classes), images.layout.ignore_index
    backbone, device = features.backbone, features.device
    most = len(images) * math.prod(backbone.grid_size(config.image_size))
    room = most if config.memory is None else min(config.memory, most)
    # The memory from the start: joining its parts at the end would take twice its room.
    vectors = torch.zeros(room, backbone.channels, device=device)
    distributions = torch.zeros(room, classes, device=device)
    starts = [room * image // len(images) for image in range(len(images) + 1)]
    counts = torch.zeros(len(images), dtype=torch.long)
    for first, maps, masks in maps_of(config, features, images, run, "memory"):
        for image, (one, mask) in enumerate(zip(maps, masks, strict=True), first):
            shares = cell_distributions(mask, one.shape[1:], classes, ignore)
            chosen = draw_positions(shares, starts[image + 1] - starts[image], config.seed, image)
            counts[image] = len(chosen)
            part = slice(starts[image], starts[image] + len(chosen))
            vectors[part] = normalise_rows(one.flatten(1).T[chosen.to(device)])
            distributions[part] = shares[chosen].to(device)
    for column in (vectors, distributions, counts):
        add_up([column], features.world)  # zero but for the images of this process
    filled = close_gaps((vectors, distributions), starts, counts.tolist())
    return vectors[:filled], distributions[:filled]


def close_gaps(columns: Memory, starts: Sequence[int], counts: Sequence[int]) -> int:
    """Move the first `counts` rows from each of `starts` up to the rows before them, in place; return their number."""
    filled = 0
    for start, count in zip(starts, counts, strict=False):
        if start > filled:
            for column in columns:
                column[filled : filled + count] = column[start : start + count].clone()
        filled += count
    return filled


def cell_distributions(mask: Tensor, grid: Sequence[int], classes: int, ignore: int) -> Tensor:
    """Count the labels below each position: shares (h * w, classes), which sum to 1, or to 0 where none is labelled.

    mask (H, W) uint8. A pixel belongs to one cell: row r of H to row floor(r * h / H) of the grid.
    """
    height, width = grid
    rows = torch.arange(mask.shape[0]) * height // mask.shape[0]
    columns = torch.arange(mask.shape[1]) * width // mask.shape[1]
    cells = (rows[:, None] * width + columns).flatten()
    labels = mask.flatten().long()
    counted = labels != ignore
    pairs = cells[counted] * classes + labels[counted]
    counts = pairs.bincount(minlength=height * width * classes).view(height * width, classes)
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def draw_positions(shares: Tensor, quota: int, seed: int, index: int) -> Tensor:
    """Draw `quota` of the labelled positions of image `index`, ascending; all of them if there are no more.

    shares (P, classes), all zero where nothing is labelled. A position's score is the number of positions that hold its
    classes, summed over these, times a random number; the lowest scores are drawn: rare classes come first.
    """
    candidates = shares.any(1).nonzero()[:, 0]
    if quota >= len(candidates):
        return candidates
    present = (shares[candidates] > 0).double()
    commonness = present @ present.sum(0)
    random = sample_generator(seed, 0, index, Purpose.MEMORY_POSITIONS).random(len(candidates))
    order = (commonness * torch.from_numpy(random)).argsort(stable=True)
    return candidates[order[:quota].sort().values]


def maps_of(config: DenseKnnConfig, features: PooledFeatures, images: MaskedImages, run: Run, label: str) -> Any:
    """Yield (number of its first image, feature maps (B, C, h, w), masks) of this process's batches, in their order."""
    progress = Progress(run, f"dense kNN {label}", len(images), "images", config.machine.log_seconds)
    batches = ImageBatches(images, config.batch_size)
    with stop_request() as stop:
        for first, batch, done in batches.dealt(config.machine.workers, features.world):
            if batch is not None:
                yield first, features.maps(batch[0]), batch[1]
            progress.update(done)
            if any_stop(stop):
                stop.leave()


@torch.no_grad()
def score(config: DenseKnnConfig, features: PooledFeatures, memory: Memory, images: MaskedImages, run: Run) -> Tensor:
    """Return (len(neighbours), classes, classes): pixels by label and by predicted class."""
    classes, ignore = len(images.layout.classes), images.layout.ignore_index
    confusions = torch.zeros(len(config.neighbours), classes, classes, dtype=torch.long)
    chunk = broadcast(choose_chunk(features.device, config.machine.chunk_megabytes))
    for _, maps, masks in maps_of(config, features, images, run, "val"):
        positions = maps.movedim(1, -1)  # (B, h, w, C)
        queries = normalise_rows(positions.flatten(0, 2).clone())
        voted = vote(memory, queries, config.neighbours, config.temperature, chunk)
        for number, distributions in enumerate(voted):
            each = distributions.view(*positions.shape[:3], classes).movedim(-1, 1)
            for mask, one in zip(masks, each, strict=True):
                confusions[number] += confusion(predict(one, mask.shape), mask, classes, ignore)
    add_up([confusions], features.world)
    return confusions


def vote(memory: Memory, queries: Tensor, ks: Sequence[int], temperature: float, chunk_bytes: int) -> list[Tensor]:
    """Return for each k the label distributions (N, classes) of queries (N, C) of unit length.

    One product and one top-k, at the largest k, serve every k, in chunks of about `chunk_bytes`.
    """
    bank, distributions = memory
    rows, columns = product_chunk(len(bank), chunk_bytes)
    rows = min(rows, max(1, chunk_bytes // (8 * max(ks) * distributions.shape[1])))
    by_k: list[list[Tensor]] = [[] for _ in ks]
    for part in queries.split(rows):
        similarity, index = nearest(part, bank, max(ks), columns)
        labels = distributions[index]  # (n, k, classes)
        for k, parts in zip(ks, by_k, strict=True):
            weights = (similarity[:, :k] / temperature).softmax(dim=1)
            parts.append((weights[:, :, None] * labels[:, :k]).sum(dim=1))
    return [torch.cat(parts) for parts in by_k]


def predict(distributions: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (classes, h, w) to (H, W) and return the most likely class of each pixel, on the CPU."""
    resized = F.interpolate(distributions[None], tuple(size), mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0).cpu()


def confusion(predicted: Tensor, mask: Tensor, classes: int, ignore: int) -> Tensor:
    """Return (classes, classes): pixels of an image by label and by predicted class; pixels to ignore are left out."""
    labels, counted = mask.flatten().long(), (mask != ignore).flatten()
    pairs = labels[counted] * classes + predicted.flatten()[counted]
    return pairs.bincount(minlength=classes * classes).view(classes, classes)


def summary(config: DenseKnnConfig, confusions: Tensor, layout: SegmentationLayout) -> dict[str, Any]:
    """Return the scores in percent, as mmsegmentation's IoUMetric: a class that does not occur has none."""
    each = [class_scores(confusion) for confusion in confusions]
    ks, first = config.neighbours, each[0]
    scores: dict[str, Any] = {
        "protocol": config.protocol,
        "miou": mean(first["iou"]),
        "macc": mean(first["accuracy"]),
        "aacc": 100 * float(confusions[0].trace() / confusions[0].sum()),
        "iou": dict(zip(layout.classes, first["iou"], strict=True)),
        "k": ks[0],
        "neighbours": ks,
        "miou_each": [mean(one["iou"]) for one in each],
        "temperature": config.temperature,
    }
    others = ", ".join(f"k {k}: {score:.2f}" for k, score in zip(ks, scores["miou_each"], strict=True))
    print(f"{config.protocol}: mIoU {scores['miou']:.2f} %, k {ks[0]}; {others}", flush=True)
    return scores


def class_scores(confusion: Tensor) -> dict[str, list[float | None]]:
    """Return IoU and accuracy of each class in percent; None where nothing is labelled (for IoU, predicted) as it."""
    right, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return {"iou": percents(right, labelled + predicted - right), "accuracy": percents(right, labelled)}


def percents(part: Tensor, whole: Tensor) -> list[float | None]:
    return [100 * p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def mean(scores: Sequence[float | None]) -> float:
    present = [score for score in scores if score is not None]
    return sum(present) / len(present)


def main(argv: Sequence[str]) -> None:
    evaluate(argv, DenseKnnConfig, label_positions)


if __name__ == "__main__":
    run_command(main)
