"""Classification by the nearest training images, a check that trains nothing.

python -m eval.knn runs/pretrain/<run> --config eval/configs/knn_scenes.yaml key=value

Weighted votes of the nearest neighbours (Wu et al. 2018, arXiv 1805.01978, section 3.4; DINO's convention): similarity
is the cosine; each of the k nearest votes for its class with exp(similarity / temperature). Ties: of equally similar
neighbours the one that stands first in the bank is nearer; of classes with equal votes the lower number wins.

Features of train and val are computed once; an interrupted run starts over, for that is all it costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.catalog import open_dataset
from data.images import ImageList
from data.transforms import LabelledDataset, eval_transform
from eval.command import evaluate
from eval.features import Batch, FrozenFeatures, ImageBatches
from eval.knn_config import PROTOCOL, STAGE, KnnConfig, identity
from eval.parent import Parent, load_parent_backbone
from eval.splits import best, hold_out, refuse_unusable, subset
from runtime.errors import UserError, run_command
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request

TOP = 5


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
                LabelledDataset(images, transform, normalisation=parent.normalisation), config.batch_size
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
        chosen = best(chosen_on[:, 0])
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


def normalise_rows(features: Tensor) -> Tensor:
    """(N, F) to unit length, in place; a row of zeros stays one."""
    return features.div_(features.norm(dim=1, keepdim=True).clamp_min_(1e-12))


@torch.no_grad()
def accuracies(
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    ks: Sequence[int],
    temperature: float,
    classes: int,
    chunk_bytes: int,
    on_chunk: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """(len(ks), 2): top-1 and top-5 in percent of the queries by the bank.

    Both are (features (N, F) with rows of unit length, labels (N,)).

    One product and one top-k, at the largest k, serve every k. About `chunk_bytes` are taken at a time, beside the
    features. A class without a vote is never among the five. on_chunk(queries done).
    """
    (known, known_labels), (asked, labels) = bank, queries
    rows, columns = product_chunk(len(known), chunk_bytes)
    hits = torch.zeros(len(ks), 2, dtype=torch.float64)
    done = 0
    for some, truth in zip(asked.split(rows), labels.cpu().split(rows), strict=True):
        similarity, index = nearest(some, known, max(ks), columns)
        # Voted on the CPU, where the order of the sums is fixed.
        voters = known_labels[index].cpu()
        for number, k in enumerate(ks):
            best = ranked_classes(similarity.cpu()[:, :k], voters[:, :k], temperature, classes)
            right = best == truth[:, None]
            hits[number] += torch.stack([right[:, 0].sum(), right.any(1).sum()])
        done += len(some)
        on_chunk(done)
    return 100 * hits / len(asked)


def product_chunk(bank: int, chunk_bytes: int) -> tuple[int, int]:
    """(queries, bank rows) of one product; 16 bytes an entry: the similarity, its masks and running counts."""
    entries = max(1, chunk_bytes // 16)
    columns = min(bank, max(1024, entries // 64))
    return max(1, entries // columns), columns


def nearest(queries: Tensor, bank: Tensor, k: int, columns: int) -> tuple[Tensor, Tensor]:
    """(similarity, index) (M, k) of the k nearest of the bank, most similar first; `columns` of the bank at a time."""
    similarity = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), columns):
        product = queries @ bank[start : start + columns].T
        found = _largest(product, min(k, product.shape[1]))
        # Former ones stand before later ones, and the sort is stable.
        similarity = torch.cat([similarity, product.gather(1, found)], dim=1)
        index = torch.cat([index, found + start], dim=1)
        similarity, order = similarity.sort(dim=1, descending=True, stable=True)
        similarity, index = similarity[:, :k], index.gather(1, order)[:, :k]
    return similarity, index


def _largest(product: Tensor, k: int) -> Tensor:
    """(M, N) -> (M, k): columns of the k largest entries of each row, ascending; of equal ones the first columns."""
    values, index = product.topk(k, dim=1)
    kth = values[:, -1:]
    # topk picks any of the entries that equal the k-th.
    tied = ((product >= kth).sum(1) > k).nonzero()[:, 0]
    if len(tied):
        some, bound = product[tied], kth[tied]
        above, equal = some > bound, some == bound
        room = k - above.sum(1, keepdim=True)
        kept = above | (equal & (equal.cumsum(1) <= room))
        index[tied] = kept.nonzero()[:, 1].view(-1, k)
    return index.sort(dim=1).values


def ranked_classes(similarity: Tensor, voters: Tensor, temperature: float, classes: int) -> Tensor:
    """(M, k) similarities and classes of the neighbours -> (M, 5): classes by their votes; -1 where nobody voted."""
    distance = similarity.double() - similarity[:, :1].double()  # so that no temperature overflows
    weights = torch.exp(distance / temperature)
    votes = torch.zeros(len(voters), classes, dtype=torch.float64).scatter_add_(1, voters, weights)
    votes, order = votes.sort(dim=1, descending=True, stable=True)
    return order.masked_fill(votes == 0, -1)[:, :TOP]


def main(argv: Sequence[str]) -> None:
    evaluate(argv, STAGE, KnnConfig, identity, vote)


if __name__ == "__main__":
    run_command(main)
