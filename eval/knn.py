"""Classification by the nearest training images, a check that trains nothing.

python -m eval.knn runs/pretrain/<run> --config eval/configs/knn_scenes.yaml key=value

Features of train and val are computed once; an interrupted run starts over, for that is all it costs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.catalog import open_dataset
from data.images import ImageList
from data.transforms import eval_transform, labelled_dataset
from eval.command import evaluate
from eval.features import Batch, FrozenFeatures, ImageBatches, subset
from eval.knn_config import PROTOCOL, STAGE, KnnConfig, identity
from eval.linear_splits import hold_out, refuse_unusable
from eval.neighbours import accuracies, normalise_rows
from eval.parent import Parent, load_parent_backbone
from runtime.errors import UserError, run_command
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request


def vote(config: KnnConfig, parent: Parent, run: Run, device: torch.device) -> dict[str, Any]:
    """Features, neighbours, votes; the dict of result.json."""
    started = time.monotonic()
    dataset = open_dataset(config.data)
    train, val = dataset.images("train"), dataset.images("val")
    refuse_unusable(config.data.name, train, val)
    # With a fixed k there is nothing to choose, and no image is held out for it.
    share = config.held_out if config.fixed_k is None else 0.0
    kept, held_out, held_out_by = hold_out(dataset, train, share, config.seed)
    refuse_few(config, len(kept))
    # The bank that k is chosen with stands first in the whole, the images that choose it next, the others last.
    others = sorted(set(range(len(train))) - {*kept, *held_out})
    bank, val_table = tables(config, parent, run, device, [subset(train, kept + held_out + others), val])
    scored = partial(scores_each, config, len(dataset.classes), run)
    chosen_on = None
    if held_out:
        features, labels = bank
        asked = slice(len(kept), len(kept) + len(held_out))
        chosen_on = scored((features[: len(kept)], labels[: len(kept)]), (features[asked], labels[asked]))
    each = scored(bank, val_table)
    return summary(config, each, chosen_on) | {
        "classes": len(dataset.classes),
        "features": bank[0].shape[1],
        "train_images": len(train),
        "held_out_images": len(held_out),
        "held_out_by": held_out_by if held_out else None,
        "val_images": len(val),
        "seconds": time.monotonic() - started,
    }


def refuse_few(config: KnnConfig, images: int) -> None:
    most = max(config.neighbours)
    if most > images:
        raise UserError(
            f"config: neighbours = {config.neighbours} is not possible: {images} training images can vote, fewer than "
            f"{most}; take smaller numbers"
        )


def tables(
    config: KnnConfig, parent: Parent, run: Run, device: torch.device, parts: Sequence[ImageList]
) -> list[Batch]:
    """(features (N, F) of unit length, labels (N,)) of each list of images."""
    transform = eval_transform(config.resize, config.image_size)
    features = FrozenFeatures(load_parent_backbone(parent), device)
    progress = Progress(run, "knn features", sum(map(len, parts)), "images", config.machine.log_seconds)
    found: list[Batch] = []
    done = 0
    with stop_request() as stop:

        def on_batch(images: int) -> None:
            progress.update(done + images)
            if stop:
                stop.leave()

        for images in parts:
            batches = ImageBatches(
                labelled_dataset(images, transform, normalisation=parent.normalisation), config.batch_size
            )
            vectors, labels = features.table(batches, config.machine.workers, on_batch)
            found.append((normalise_rows(vectors), labels))
            done += len(images)
    return found


def scores_each(config: KnnConfig, classes: int, run: Run, bank: Batch, queries: Batch) -> Tensor:
    """(len(neighbours), 2) percent."""
    progress = Progress(run, "knn", len(queries[1]), "images", config.machine.log_seconds)
    chunk = config.machine.chunk_megabytes << 20
    return accuracies(bank, queries, config.neighbours, config.temperature, classes, chunk, progress.update)


def summary(config: KnnConfig, each: Tensor, chosen_on: Tensor | None) -> dict[str, Any]:
    """The scores; of equally good ks the first listed is chosen."""
    ks, fixed = config.neighbours, config.fixed_k
    chosen = ks.index(fixed) if chosen_on is None and fixed is not None else 0
    if chosen_on is not None:
        chosen = int(chosen_on[:, 0].argmax())
    scores: dict[str, Any] = {
        "protocol": PROTOCOL,
        "top1": float(each[chosen, 0]),
        "top5": float(each[chosen, 1]),
        "k": ks[chosen],
        "k_chosen": chosen_on is not None,
        "k_at_edge": chosen_on is not None and ks[chosen] in (min(ks), max(ks)),
        "temperature": config.temperature,
        "neighbours": ks,
        "held_out_top1_each": None if chosen_on is None else chosen_on[:, 0].tolist(),
        "val_top1_each": each[:, 0].tolist(),
        "val_top5_each": each[:, 1].tolist(),
    }
    how = "chosen on held-out images" if chosen_on is not None else "fixed"
    others = ", ".join(f"k {k}: {score:.2f}" for k, score in zip(ks, scores["val_top1_each"], strict=True))
    print(
        f"{PROTOCOL}: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, k {ks[chosen]} ({how}); {others}",
        flush=True,
    )
    return scores


def main(argv: Sequence[str]) -> None:
    evaluate(argv, STAGE, KnnConfig, identity, vote)


if __name__ == "__main__":
    run_command(main)
