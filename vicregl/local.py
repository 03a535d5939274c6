"""The local criterion on the maps of a list of views; the equations are in criterion.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vicregl import terms
from vicregl.batch import Batch
from vicregl.matching import Matching, Nearest, keep_nearest, nearest

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
    """A matching that was carried out: position in the source and in the target of every slot, both (S, B)."""

    matching: Matching
    source: Tensor
    target: Tensor
    counts: Tensor | None = None  # (S, B): 1 where the pair counts, 0 where it is beyond the threshold; None: all count


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
        counts = None
        if squared_thresholds is not None:
            distance = near.distance.gather(1, source)
            counts = (distance < squared_thresholds[matching.kind]).to(distance.dtype).t()
        matches.append(Match(matching, source.t(), near.index.gather(1, source).t(), counts))
    return matches


def same_positions(weights: Mapping[Matching, float], batch: int, device: torch.device) -> list[Match]:
    """Matchings that need no search: every position with the same one of the other map. For the global criterion."""
    matches = []
    for matching in weights:
        positions = torch.arange(matching.count, device=device)[:, None].expand(-1, batch)
        matches.append(Match(matching, positions, positions))
    return matches


@dataclass
class Views:
    """Maps (B, P, C) of all views without their graph, and the gradients that are added up for them."""

    maps: list[Tensor]
    grads: list[Tensor | None]
    batch: Batch

    @classmethod
    def of(cls, maps: Sequence[Tensor], batch: Batch) -> Views:
        wanted = [m.requires_grad and torch.is_grad_enabled() for m in maps]
        detached = [m.detach() for m in maps]
        return cls(detached, [torch.zeros_like(m) if w else None for m, w in zip(detached, wanted, strict=True)], batch)


def invariance(views: Views, matches: Sequence[Match], weights: Mapping[Matching, float], coefficient: float) -> Tensor:
    """Sum over matchings of weight * mean over its pairs and dimensions of (x - y)^2; over all processes."""
    maps, batch = views.maps, views.batch
    shares = _shares(matches, weights, views)
    together: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for match, share in zip(matches, shares, strict=True):
        a, b = match.matching.source, match.matching.target
        # |x - y| is |y - x|, so both directions between two views go together.
        pair = (match.source, match.target) if a < b else (match.target, match.source)
        together[min(a, b), max(a, b)].append((*pair, share))
    total = maps[0].new_zeros(())
    for (a, b), parts in together.items():
        index_a, index_b, share = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        grads = (views.grads[a], views.grads[b])
        total += terms.invariance((maps[a], maps[b]), (index_a, index_b), share, coefficient, grads)
    return batch.sum(total) / batch.processes


def _shares(matches: Sequence[Match], weights: Mapping[Matching, float], views: Views) -> list[Tensor]:
    """What the squared difference of each pair counts, (S, B): its matching's weight over the numbers it averages."""
    width, batch = views.maps[0].shape[2], views.batch
    if any(match.counts is None for match in matches):
        of = [weights[match.matching] / (match.source.numel() * width) for match in matches]
        return [views.maps[0].new_full(match.source.shape, share) for match, share in zip(matches, of, strict=True)]
    numbers = torch.stack([match.counts.sum() for match in matches if match.counts is not None])
    numbers = batch.sum(numbers).clamp_(min=1) * (width / batch.processes)
    pairs = zip(matches, numbers, strict=True)
    return [m.counts * (weights[m.matching] / number) for m, number in pairs if m.counts is not None]


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
            slots[view].add(*_whole_map(maps[view], weight))
    return slots


def whole_map_slots(maps: Sequence[Tensor], weight: float) -> list[Slots]:
    """Every position of every map as a slot; the weight is that of a map."""
    slots = [Slots() for _ in maps]
    for view, m in enumerate(maps):
        slots[view].add(*_whole_map(m, weight))
    return slots


def _whole_map(maps: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    positions = torch.arange(maps.shape[1], device=maps.device)[:, None].expand(-1, maps.shape[0])
    return positions, _even(weight, positions, maps)


def _even(weight: float, index: Tensor, like: Tensor) -> Tensor:
    return like.new_full((index.shape[0],), weight / index.shape[0])


def variance_and_covariance(
    views: Views, slots: Sequence[Slots], coefficients: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Sums over the slots of all views of weight * (variance, covariance): one call a view."""
    variance, covariance = views.maps[0].new_zeros(2)
    for m, grad, of_view in zip(views.maps, views.grads, slots, strict=True):
        if of_view.indices:
            found = terms.variance_and_covariance(m, *of_view.joined(), coefficients, views.batch, grad)
            variance += found[0]
            covariance += found[1]
    return variance, covariance
