"""The parts of the local criterion: the distinct matchings, their positions, their slots. Equations: criterion.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vicregl import terms
from vicregl.batch import ProcessBatch
from vicregl.config import CriterionConfig, Kind
from vicregl.matching import Matching, Nearest, keep_nearest, nearest

LARGE_VIEWS = 2  # the first two views are the large ones


def view_pairs(views: int) -> list[tuple[int, int]]:
    """Return the ordered pairs (i, j): i one of the two large views, j any other."""
    return [(i, j) for i in range(LARGE_VIEWS) for j in range(views) if j != i]


def requested_matchings(options: CriterionConfig, views: int) -> list[Matching]:
    """List both directions of every pair and kind, with the count that the options ask for (0: all positions)."""
    matchings = []
    for i, j in view_pairs(views):
        for kind in options.kinds:
            for direction, (source, target) in enumerate([(i, j), (j, i)]):
                count = options.match_count(kind, direction, from_small_view=source >= LARGE_VIEWS)
                matchings.append(Matching(kind, source, target, count))
    return matchings


def weighted_matchings(options: CriterionConfig, positions: Sequence[int]) -> dict[Matching, float]:
    """Return every distinct matching with its weight in the local criterion; positions: P of each view."""
    pairs = len(view_pairs(len(positions)))
    weights: dict[Matching, float] = defaultdict(float)
    for matching in requested_matchings(options, len(positions)):
        most = positions[matching.source]
        kept = Matching(matching.kind, matching.source, matching.target, min(matching.count or most, most))
        # The pairs (0, 1) and (1, 0) hold the same matching unless counts go by direction: then weights add up.
        weights[kept] += 0.5 / pairs
    return dict(weights)


def find_nearest(
    matchings: Iterable[Matching], spaces: Mapping[str, Sequence[Tensor]]
) -> dict[tuple[str, int, int], Nearest]:
    """Find the nearest positions for (kind, source, target); one matrix of distances serves both directions.

    spaces: for each kind what is compared: the maps (B, P, C), or the locations (B, P, 2), of every view.
    """
    neighbours: dict[tuple[str, int, int], Nearest] = {}
    for matching in matchings:
        kind, a, b = matching.kind, matching.source, matching.target
        if (kind, a, b) not in neighbours:
            neighbours[kind, a, b], neighbours[kind, b, a] = nearest(spaces[kind][a], spaces[kind][b])
    return neighbours


@dataclass
class Slots:
    """The match slots of one view, collected to be computed in one call. Slot first: index (S, B)."""

    indices: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)

    def add(self, index: Tensor, weights: Tensor) -> None:
        self.indices.append(index)
        self.weights.append(weights)

    def joined(self) -> tuple[Tensor, Tensor]:
        return torch.cat(self.indices), torch.cat(self.weights)


@dataclass(frozen=True)
class Match:
    """The result of a matching: position in the source and in the target of every slot, both (S, B)."""

    matching: Matching
    source: Tensor
    target: Tensor
    counts: Tensor | None = None  # (S, B): 1 where the pair counts, 0 where it is beyond the threshold; None: all count


def find_matches(
    matchings: Iterable[Matching], spaces: Mapping[str, Sequence[Tensor]], options: CriterionConfig
) -> list[Match]:
    """Find the matched positions of every matching; with `select: threshold`, far pairs do not count."""
    matchings = list(matchings)
    neighbours = find_nearest(matchings, spaces)
    matches = []
    for matching in matchings:
        near = neighbours[matching.kind, matching.source, matching.target]
        source = keep_nearest(near, matching.count)
        threshold = options.squared_threshold(matching.kind, spaces[matching.kind][0].shape[2])
        counts = None
        if threshold is not None:
            distance = near.distance.gather(1, source)
            counts = (distance < threshold).to(distance.dtype).t()
        matches.append(Match(matching, source.t(), near.index.gather(1, source).t(), counts))
    return matches


def matched_pairs(
    options: CriterionConfig, kind: Kind, first: Tensor, second: Tensor, count: int | None = None
) -> Tensor:
    """Return the pairs of positions that the criterion compares by `kind` from one large view to the other: (m, 2).

    first, second: an image's maps (..., C) in two large views, or for locations their grids (..., 2). `count` matches,
    0 for all, override the options. For pictures; computed by the functions that the criterion uses.
    """
    maps = [_one_image(first), _one_image(second)]
    positions = [m.shape[1] for m in maps]
    options = replace(options, local=kind)
    if count is not None:
        counts = [count or positions[0]] * 2
        options = replace(options, select="top", num_matches=counts, feature_matches=counts)
    matchings = [matching for matching in weighted_matchings(options, positions) if matching.source == 0]
    # Counts by direction give two matchings 0 -> 1; the larger one contains the other's pairs.
    largest = max(matchings, key=lambda matching: matching.count)
    match = find_matches([largest], {kind: maps}, options)[0]
    pairs = torch.cat([match.source, match.target], dim=1)
    return pairs if match.counts is None else pairs[match.counts[:, 0] > 0]


def _one_image(positions: Tensor) -> Tensor:
    return positions.reshape(1, -1, positions.shape[-1])


def same_positions(matchings: Iterable[Matching], batch: int, device: torch.device) -> list[Match]:
    """Match every position with the same one of the other map, without a search. For the global criterion."""
    matches = []
    for matching in matchings:
        positions = _all_positions(matching.count, batch, device)
        matches.append(Match(matching, positions, positions))
    return matches


def _all_positions(count: int, batch: int, device: torch.device) -> Tensor:
    """(count, batch): slot k takes position k of every sample."""
    return torch.arange(count, device=device)[:, None].expand(-1, batch)


@dataclass
class Views:
    """Maps (B, P, C) of all views, detached, and the buffers in which their gradients are added up.

    The terms compute gradients themselves, beside the values: autograd would keep the matched positions of every
    matching for the backward pass, which is many times the maps.
    """

    maps: list[Tensor]
    grads: list[Tensor | None]
    batch: ProcessBatch

    @classmethod
    def detached(cls, maps: Sequence[Tensor], batch: ProcessBatch) -> Views:
        wanted = [m.requires_grad and torch.is_grad_enabled() for m in maps]
        # A channels-first map that was transposed to (B, P, C) is copied once here, not at every access.
        detached = [m.detach().contiguous() for m in maps]
        return cls(detached, [torch.zeros_like(m) if w else None for m, w in zip(detached, wanted, strict=True)], batch)


def invariance(views: Views, matches: Sequence[Match], weights: Mapping[Matching, float], coefficient: float) -> Tensor:
    """Sum over matchings the weight * mean of (x - y)^2 over their pairs, dimensions and all processes."""
    maps, batch = views.maps, views.batch
    shares = _shares(matches, weights, views)
    together: dict[tuple[int, int], list[tuple[Tensor, Tensor, Tensor]]] = defaultdict(list)
    for match, share in zip(matches, shares, strict=True):
        a, b = match.matching.source, match.matching.target
        # |x - y| = |y - x|: both directions between two views are computed in one call.
        pair = (match.source, match.target) if a < b else (match.target, match.source)
        together[min(a, b), max(a, b)].append((*pair, share))
    total = maps[0].new_zeros(())
    for (a, b), parts in together.items():
        index_a, index_b, share = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        grads = (views.grads[a], views.grads[b])
        total += terms.invariance((maps[a], maps[b]), (index_a, index_b), share, coefficient, grads)
    return batch.sum(total) / batch.processes


def _shares(matches: Sequence[Match], weights: Mapping[Matching, float], views: Views) -> list[Tensor]:
    """Return the weight of each pair's squared difference, (S, B): its matching's weight / the size of its mean."""
    width, batch = views.maps[0].shape[2], views.batch
    if any(match.counts is None for match in matches):
        shares = [weights[match.matching] / (match.source.numel() * width) for match in matches]
        return [views.maps[0].new_full(m.source.shape, share) for m, share in zip(matches, shares, strict=True)]
    numbers = torch.stack([match.counts.sum() for match in matches if match.counts is not None])
    # One all-reduce for all matchings; the clamp is for matchings without a near pair, whose invariance is then 0.
    numbers = batch.sum(numbers).clamp_(min=1) * (width / batch.processes)
    pairs = zip(matches, numbers, strict=True)
    return [m.counts * (weights[m.matching] / number) for m, number in pairs if m.counts is not None]


def match_slots(matches: Sequence[Match], weights: Mapping[Matching, float], maps: Sequence[Tensor]) -> list[Slots]:
    """Return the slots of each view: both sides of every matching, each with half of the matching's weight."""
    slots = [Slots() for _ in maps]
    whole = [0.0] * len(maps)  # weight of the matchings that keep a whole map, whatever their partner: computed once
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
    """Return every position of every map as a slot; `weight` is that of a whole map."""
    slots = [Slots() for _ in maps]
    for view, m in enumerate(maps):
        slots[view].add(*_whole_map(m, weight))
    return slots


def _whole_map(maps: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    positions = _all_positions(maps.shape[1], maps.shape[0], maps.device)
    return positions, _even(weight, positions, maps)


def _even(weight: float, index: Tensor, like: Tensor) -> Tensor:
    return like.new_full((index.shape[0],), weight / index.shape[0])


def variance_and_covariance(
    views: Views, slots: Sequence[Slots], coefficients: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Sum weight * (variance, covariance) over the slots of all views, in one call per view."""
    variance, covariance = views.maps[0].new_zeros(2)
    for m, grad, view_slots in zip(views.maps, views.grads, slots, strict=True):
        if view_slots.indices:
            sums = terms.variance_and_covariance(m, *view_slots.joined(), coefficients, views.batch, grad)
            variance += sums[0]
            covariance += sums[1]
    return variance, covariance
