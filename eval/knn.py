"""Classification by the nearest training images, a check that trains nothing.

python -m eval.knn runs/pretrain/<run> --config eval/configs/knn_scenes.yaml key=value

Weighted votes of the nearest neighbours (Wu et al. 2018, arXiv 1805.01978, section 3.4; DINO's convention): similarity
is the cosine; each of the k nearest votes for its class with exp(similarity / temperature). Ties: of equally similar
neighbours the first in the bank is nearer; of classes with equal votes the lower number wins.

Features of train and val are computed once; an interrupted run starts over, which costs no more than that. Several
processes (torchrun, srun) share the images, and then the queries; their scores are exactly those of one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.command import evaluate
from eval.config import KnnConfig
from eval.features import Labelled, PooledFeatures, central_crops, choose_chunk
from eval.parent import Parent, load_parent_backbone
from eval.splits import Splits, best, is_at_edge
from runtime.device import choose_convolutions
from runtime.distributed import add_up, broadcast
from runtime.errors import UserError, run_command
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.world import ALONE, World

TOP = 5


def classify(config: KnnConfig, parent: Parent, run: Run, device: torch.device, world: World) -> dict[str, Any]:
    """Compute features, find neighbours, count votes, and return the dict of result.json."""
    started = time.monotonic()
    # With a fixed k there is nothing to choose, and no image is held out for it.
    splits = Splits.open(config.data, config.held_out if config.fixed_k is None else 0.0, config.seed)
    refuse_few(config, len(splits.train))
    bank, val = compute_tables(config, splits, parent, run, device, world)

    # Of one process for all: they share the queries out by chunks.
    chunk = broadcast(choose_chunk(device, config.machine.chunk_megabytes))

    def scores(voters: Labelled, queries: Labelled) -> Tensor:
        """(len(neighbours), 2) percent."""
        progress = Progress(run, "knn", len(queries[1]), "images", config.machine.log_seconds)
        rule = config.neighbours, config.temperature, splits.classes
        return accuracies(voters, queries, *rule, chunk, progress.update, world)

    sizes = [len(splits.train), len(splits.held_out), len(splits.unused)]
    train, held_out, _ = zip(*(column.split(sizes) for column in bank), strict=True)
    chosen_on = scores(train, held_out) if splits.held_out else None
    return summary(config, scores(bank, val), chosen_on) | {
        **splits.describe(),
        "features": bank[0].shape[1],
        "train_images": len(bank[1]),
        "seconds": time.monotonic() - started,
    }


def refuse_few(config: KnnConfig, images: int) -> None:
    most = max(config.neighbours)
    if most > images:
        raise UserError(
            f"config: neighbours = {config.neighbours} is not possible: {images} training images can vote, fewer than "
            f"{most}; take smaller numbers"
        )


def compute_tables(
    config: KnnConfig, splits: Splits, parent: Parent, run: Run, device: torch.device, world: World
) -> tuple[Labelled, Labelled]:
    """Return (features (N, F) of unit length, labels (N,)) of all of the train split, and of val.

    The images that k is chosen with come first, those that choose it next. For the score on val all vote, as they do
    with a fixed k: one table for both, because joining two would take twice the memory.
    """
    images = {"train": splits.joined, "val": splits.val}
    parts = {name: central_crops(part, config, parent.normalisation, splits) for name, part in images.items()}
    choose_convolutions(device)
    features = PooledFeatures(load_parent_backbone(parent), device, config, world)
    tables = features.tables(parts, run, "knn features", config.machine)
    bank, val = ((normalise_rows(vectors), labels) for vectors, labels in tables.values())
    return bank, val


def summary(config: KnnConfig, val: Tensor, held_out: Tensor | None) -> dict[str, Any]:
    """Return the scores of each k as result.json has them; print those of the k that is the result."""
    ks = config.neighbours
    chosen = ks.index(config.fixed_k or ks[0]) if held_out is None else best(held_out[:, 0])
    scores: dict[str, Any] = {
        "protocol": config.protocol,
        "top1": float(val[chosen, 0]),
        "top5": float(val[chosen, 1]),
        "k": ks[chosen],
        "k_chosen": held_out is not None,
        "k_at_edge": held_out is not None and is_at_edge(ks[chosen], ks),
        "temperature": config.temperature,
        "neighbours": ks,
        "held_out_top1_each": None if held_out is None else held_out[:, 0].tolist(),
        "val_top1_each": val[:, 0].tolist(),
        "val_top5_each": val[:, 1].tolist(),
    }
    how = "fixed" if held_out is None else "chosen on held-out images"
    others = ", ".join(f"k {k}: {score:.2f}" for k, score in zip(ks, scores["val_top1_each"], strict=True))
    print(
        f"{config.protocol}: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, k {ks[chosen]} ({how}); "
        f"{others}",
        flush=True,
    )
    return scores


def normalise_rows(features: Tensor) -> Tensor:
    """Scale the rows (N, F) to unit length, in place; a row of zeros stays one."""
    return features.div_(features.norm(dim=1, keepdim=True).clamp_min_(1e-12))


@torch.no_grad()
def accuracies(
    bank: Labelled,
    queries: Labelled,
    ks: Sequence[int],
    temperature: float,
    classes: int,
    chunk_bytes: int,
    on_chunk: Callable[[int], None] = lambda done: None,
    world: World = ALONE,
) -> Tensor:
    """Return (len(ks), 2): top-1 and top-5 in percent of the queries by the bank.

    Both are (features (N, F) with rows of unit length, labels (N,)). One product and one top-k, at the largest k, serve
    every k. Works in chunks of about `chunk_bytes`, besides the features. A class without a vote is never among the
    five. Calls on_chunk(queries done). Processes take chunks in turn, which are the same for any number of them.
    """
    (bank_features, bank_labels), (query_features, query_labels) = bank, queries
    rows, columns = product_chunk(len(bank_features), chunk_bytes)
    hits = torch.zeros(len(ks), 2, dtype=torch.float64)
    done = 0
    chunks = zip(query_features.split(rows), query_labels.cpu().split(rows), strict=True)
    for chunk, (features, labels) in enumerate(chunks):
        done += len(features)
        if chunk % world.size != world.rank:
            continue
        similarity, index = nearest(features, bank_features, max(ks), columns)
        # Votes are counted on the CPU, where the order of the sums is fixed.
        voters = bank_labels[index].cpu()
        for number, k in enumerate(ks):
            ranked = ranked_classes(similarity.cpu()[:, :k], voters[:, :k], temperature, classes)
            correct = ranked == labels[:, None]
            hits[number] += torch.stack([correct[:, 0].sum(), correct.any(1).sum()])
        on_chunk(done)
    add_up([hits], world)
    return 100 * hits / len(query_labels)


def product_chunk(bank: int, chunk_bytes: int) -> tuple[int, int]:
    """Return the (queries, bank rows) of one product: 16 bytes an entry, for similarity, masks and running counts."""
    entries = max(1, chunk_bytes // 16)
    columns = min(bank, max(1024, entries // 64))
    return max(1, entries // columns), columns


def nearest(queries: Tensor, bank: Tensor, k: int, columns: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest, most similar first, `columns` of the bank at a time: (similarity, index), both (M, k)."""
    similarity = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), columns):
        product = queries @ bank[start : start + columns].T
        largest = _largest(product, min(k, product.shape[1]))
        # Of equal similarities the first in the bank is nearer: earlier chunks come first, and the sort is stable.
        similarity = torch.cat([similarity, product.gather(1, largest)], dim=1)
        index = torch.cat([index, largest + start], dim=1)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        similarity, index = similarity[:, :k], index.gather(1, order)[:, :k]
    return similarity, index


def _largest(product: Tensor, k: int) -> Tensor:
    """(M, N) -> (M, k): columns of the k largest entries of each row, ascending; of equal ones the first columns."""
    values, index = product.topk(k, dim=1)
    kth = values[:, -1:]
    # topk picks any of the entries that equal the k-th; rows where there are too many are done again.
    tied = ((product >= kth).sum(1) > k).nonzero()[:, 0]
    if len(tied):
        rows, bound = product[tied], kth[tied]
        above, equal = rows > bound, rows == bound
        room = k - above.sum(1, keepdim=True)
        kept = above | (equal & (equal.cumsum(1) <= room))
        index[tied] = kept.nonzero()[:, 1].view(-1, k)
    return index.sort(dim=1).values


def ranked_classes(similarity: Tensor, voters: Tensor, temperature: float, classes: int) -> Tensor:
    """(M, k) similarities and classes of the neighbours -> (M, 5): classes by their votes; -1 where there is none."""
    # The nearest has a weight of 1, so that no temperature overflows.
    weights = torch.exp((similarity.double() - similarity[:, :1].double()) / temperature)
    votes = torch.zeros(len(voters), classes, dtype=torch.float64).scatter_add_(1, voters, weights)
    votes, order = votes.sort(dim=1, descending=True, stable=True)
    return order.masked_fill(votes == 0, -1)[:, :TOP]


def main(argv: Sequence[str]) -> None:
    evaluate(argv, KnnConfig, classify)


if __name__ == "__main__":
    run_command(main)
