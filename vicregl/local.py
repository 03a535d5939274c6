"""The local criterion on the maps of a list of views; the equations are in criterion.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vicregl.batch import Batch
from vicregl.matching import Matching, Nearest, keep_nearest, nearest, take
from vicregl.statistics import slot_statistics

LARGE_VIEWS = 2  # the first two views are the large ones


def view_pairs(views: int) -> list[tuple[int, int]]:
    """The ordered pairs (i, j): i one of the two large views, j any other."""
    return [(i, j) for i in range(LARGE_VIEWS) for j in range(views) if j != i]


def weighted_matchings(
    views: int, counts: Mapping[str, tuple[int, int]], by_direction: bool, positions: Sequence[int]
) -> dict[Matching, float]:
    """Every distinct matching with its weight in the local criterion.

    counts: for each kind the positions kept: (from a large view, from a small one), or by_direction (i -> j, j -> i);
    0 keeps all. positions: P of each view, which no count exceeds.
    """
    pairs = view_pairs(views)
    weights: dict[Matching, float] = defaultdict(float)
    for i, j in pairs:
        for kind, count in counts.items():
            for direction, (source, target) in enumerate([(i, j), (j, i)]):
                small = direction if by_direction else int(source >= LARGE_VIEWS)
                kept = min(count[small] or positions[source], positions[source])
                weights[Matching(kind, source, target, kept)] += 0.5 / len(pairs)
    return dict(weights)


def find_nearest(
    weights: Mapping[Matching, float], spaces: Mapping[str, Sequence[Tensor]]
) -> dict[tuple[str, int, int], Nearest]:
    """Nearest positions for (kind, source, target); both directions of two maps come from one matrix of distances.

    spaces: for each kind what is compared: the maps (B, P, C), or the locations (B, P, 2), of every view.
    """
    found: dict[tuple[str, int, int], Nearest] = {}
    for matching in weights:
        kind, a, b = matching.kind, matching.source, matching.target
        if (kind, a, b) not in found:
            found[kind, a, b], found[kind, b, a] = nearest(spaces[kind][a], spaces[kind][b])
    return found


@dataclass
class Slots:
    """Match slots that are gathered until they are computed together. Slot first: index (S, B)."""

    indices: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def add(self, index: Tensor, weights: Tensor) -> None:
        self.indices.append(index)
        self.weights.append(weights)

    def joined(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.indices), torch.cat(self.weights)


@dataclass(frozen=True)
class Match:
    """A matching that was carried out: source position, target position and weight of every slot, each (S, B)."""

    matching: Matching
    source: Tensor
    target: Tensor
    kept: Tensor  # 1 where the pair counts, 0 where it is beyond the threshold


def carry_out(
    weights: Mapping[Matching, float],
    spaces: Mapping[str, Sequence[Tensor]],
    squared_thresholds: Mapping[str, float] | None,
) -> list[Match]:
    """The matched positions of every matching; with thresholds, squared distances beyond them do not count."""
    found = find_nearest(weights, spaces)
    matches = []
    for matching in weights:
        near = found[matching.kind, matching.source, matching.target]
        source = keep_nearest(near, matching.count)
        kept = torch.ones_like(source, dtype=near.distance.dtype)
        if squared_thresholds is not None:
            kept = (near.distance.gather(1, source) < squared_thresholds[matching.kind]).to(kept.dtype)
        matches.append(Match(matching, source.t(), near.index.gather(1, source).t(), kept.t()))
    return matches


def invariance(
    maps: Sequence[Tensor], matches: Sequence[Match], weights: Mapping[Matching, float], batch: Batch
) -> Tensor:
    """Sum over matchings of weight * mean over its pairs and dimensions of (x - y)^2; over all processes."""
    numbers = batch.sum(torch.stack([match.kept.sum() for match in matches])) / batch.processes
    numbers = numbers.clamp(min=1 / batch.processes) * maps[0].shape[2]
    together: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for match, number in zip(matches, numbers, strict=True):
        a, b = match.matching.source, match.matching.target
        scale = match.kept * (weights[match.matching] / number)
        # x - y is y - x squared, so both directions between two views are one product.
        pair = (match.source, match.target) if a < b else (match.target, match.source)
        together[min(a, b), max(a, b)].append((*pair, scale))
    total = maps[0].new_zeros(())
    for (a, b), parts in together.items():
        index_a, index_b, scale = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        difference = take(maps[a], index_a) - take(maps[b], index_b)  # (S, B, C)
        total = total + (difference.square().sum(2) * scale).sum()
    return batch.mean(total)


def match_slots(matches: Sequence[Match], weights: Mapping[Matching, float], maps: Sequence[Tensor]) -> list[Slots]:
    """The slots of each view: both sides of every matching, each side with half of the matching's weight."""
    slots = [Slots() for _ in maps]
    whole = [0.0] * len(maps)
    for match in matches:
        matching = match.matching
        half = weights[matching] / 2
        if matching.count == maps[matching.source].shape[1]:
            whole[matching.source] += half  # all positions in their order: the same slots in every such matching
        else:
            slots[matching.source].add(match.source, _even(half, match.source, maps[0]))
        slots[matching.target].add(match.target, _even(half, match.target, maps[0]))
    for view, weight in enumerate(whole):
        if weight:
            add_whole_map(slots[view], maps[view], weight)
    return slots


def add_whole_map(slots: Slots, maps: Tensor, weight: float) -> None:
    positions = torch.arange(maps.shape[1], device=maps.device)[:, None].expand(-1, maps.shape[0])
    slots.add(positions, _even(weight, positions, maps))


def _even(weight: float, index: Tensor, like: Tensor) -> Tensor:
    return like.new_full((index.shape[0],), weight / index.shape[0])


def variance_and_covariance(maps: Sequence[Tensor], slots: Sequence[Slots], batch: Batch) -> tuple[Tensor, Tensor]:
    """Sums over the slots of all views of weight * (variance, covariance): one call a view."""
    found = [slot_statistics(m, *s.joined(), batch) for m, s in zip(maps, slots, strict=True) if s.indices]
    variances, covariances = zip(*found, strict=True)
    return torch.stack(variances).sum(), torch.stack(covariances).sum()
