"""Weighted votes of the nearest neighbours (Wu et al. 2018, arXiv 1805.01978, section 3.4; DINO's convention).

Similarity is the cosine; each of the k nearest votes for its class with exp(similarity / temperature). Ties: of equally
similar neighbours the one that stands first in the bank is nearer; of classes with equal votes the lower number wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TOP = 5


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
    rows, columns = _chunk(len(known), chunk_bytes)
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


def _chunk(bank: int, chunk_bytes: int) -> tuple[int, int]:
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
