"""The parts of the local criterion: the distinct matchings, their positions, their slots. Equations: criterion.py."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vicregl import terms
from vicregl.batch import ProcessBatch
from vicregl.config import CriterionConfig, Kind
from vicregl.matching import Matching, Nearest, keep_nearest, nearest
from vicregl.terms import Slots

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
    """Find the nearest positions for (kind, source, target); maps of the same sizes are searched together.

    spaces: for each kind what is compared: the maps (B, P, C), or the locations (B, P, 2), of every view.
    """
    groups: dict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
    unordered = ((m.kind, min(m.source, m.target), max(m.source, m.target)) for m in matchings)
    for kind, a, b in dict.fromkeys(unordered):
        groups[kind, spaces[kind][a].shape[1], spaces[kind][b].shape[1]].append((a, b))
    neighbours: dict[tuple[str, int, int], Nearest] = {}
    for (kind, _, _), pairs in groups.items():
        ways = nearest([spaces[kind][a] for a, _ in pairs], [spaces[kind][b] for _, b in pairs])
        for k, (a, b) in enumerate(pairs):
            neighbours[kind, a, b], neighbours[kind, b, a] = (Nearest(w.distance[k], w.index[k]) for w in ways)
    return neighbours


@dataclass(frozen=True)
class Match:
    """The result of a matching: position in the source and in the target of every slot, both (S, B)."""

    matching: Matching
    source: Tensor
    target: Tensor
    counts: Tensor | None = None  # (S, B): 1 where the pair counts, 0 where it is beyond the threshold; None: all count

    @property
    def positions(self) -> dict[int, Tensor]:
        """The positions in the maps of both views, by view."""
        return {self.matching.source: self.source, self.matching.target: self.target}


def find_matches(
    matchings: Iterable[Matching], spaces: Mapping[str, Sequence[Tensor]], options: CriterionConfig
) -> list[Match]:
    """Find the matched positions of every matching; with `select: threshold`, far pairs do not count."""
    matchings = list(matchings)
    neighbours = find_nearest(matchings, spaces)
    groups: dict[tuple[str, int, int], list[Matching]] = defaultdict(list)  # of the same sizes: ranked together
    for matching in matchings:
        positions = spaces[matching.kind][matching.source].shape[1]
        groups[matching.kind, positions, matching.count].append(matching)
    matches: dict[Matching, Match] = {}
    for (kind, _, count), members in groups.items():
        near = [neighbours[kind, matching.source, matching.target] for matching in members]
        together = Nearest(torch.stack([n.distance for n in near]), torch.stack([n.index for n in near]))
        source = keep_nearest(together, count)  # (K, B, S)
        target = together.index.gather(2, source)
        threshold = options.squared_threshold(kind, spaces[kind][0].shape[2])
        counts: Sequence[Tensor | None] = [None] * len(members)
        if threshold is not None:
            distance = together.distance.gather(2, source)
            counts = (distance < threshold).to(distance.dtype).mT.unbind()
        parts = zip(members, source.mT, target.mT, counts, strict=True)
        matches |= {matching: Match(matching, *part) for matching, *part in parts}
    return [matches[matching] for matching in matchings]


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
    """Match the only position of a map with that of the other, without a search. For the global criterion."""
    positions = _all_positions(1, batch, device)
    return [Match(matching, positions, positions) for matching in matchings]


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

    def slots(self, places: Sequence[tuple[int, Tensor]]) -> Slots:
        """Join slots that are given as (view, positions in its map (S, B))."""
        views = [view for view, positions in places for _ in range(len(positions))]
        sizes = self.constant([self.maps[view].shape[1] for view in views], torch.long)
        return Slots(views, torch.cat([positions for _, positions in places]), sizes[:, None])

    def constant(self, numbers: Sequence[float], dtype: torch.dtype | None = None) -> Tensor:
        """Put numbers where the maps are. A GPU takes them in its turn, and the host does not wait for it."""
        numbers_here = torch.tensor(numbers, dtype=dtype or self.maps[0].dtype)
        return numbers_here.to(self.maps[0].device, non_blocking=True)


def invariance(views: Views, matches: Sequence[Match], weights: Mapping[Matching, float], coefficient: float) -> Tensor:
    """Sum over matchings the weight * mean of (x - y)^2 over their pairs, dimensions and all processes."""
    # |x - y| = |y - x|: ordered by the views that they compare, the slots of a view are one after the other.
    matches = sorted(matches, key=lambda match: sorted(match.positions))
    lower, upper = zip(*(sorted(match.positions.items()) for match in matches), strict=True)
    shares, slots = _shares(matches, weights, views), (views.slots(lower), views.slots(upper))
    total = terms.invariance(views.maps, slots, shares, coefficient, views.grads)
    return views.batch.sum(total) / views.batch.processes


def _shares(matches: Sequence[Match], weights: Mapping[Matching, float], views: Views) -> Tensor:
    """Return the weight of each pair's squared difference, (S, B): its matching's weight / the size of its mean."""
    width, batch = views.maps[0].shape[2], views.batch
    counts = [match.counts for match in matches if match.counts is not None]
    if not counts:
        even = [weights[m.matching] / (m.source.numel() * width) for m in matches for _ in range(len(m.source))]
        return views.constant(even)[:, None].expand(-1, batch.size)
    matching = views.constant([k for k, part in enumerate(counts) for _ in range(len(part))], torch.long)  # of a slot
    numbers = counts[0].new_zeros(len(counts)).index_add_(0, matching, torch.cat(counts).sum(1))
    # One all-reduce for all matchings; the clamp is for matchings without a near pair, whose invariance is then 0.
    numbers = batch.sum(numbers).clamp_(min=1) * (width / batch.processes)
    shares = views.constant([weights[match.matching] for match in matches]) / numbers
    return torch.cat(counts) * shares[matching, None]


@dataclass
class SlotWeights:
    """Match slots of every view with their weights in the mean, collected to be computed in one call."""

    positions: list[list[Tensor]]  # over views: (S, B)
    weights: list[list[float]]  # over views: of each slot

    @classmethod
    def empty(cls, views: Views) -> SlotWeights:
        return cls([[] for _ in views.maps], [[] for _ in views.maps])

    def add(self, view: int, positions: Tensor, weight: float) -> None:
        """Add slots that share a weight evenly."""
        self.positions[view].append(positions)
        self.weights[view] += [weight / len(positions)] * len(positions)

    def joined(self, views: Views) -> tuple[Slots, Tensor]:
        """Return the slots of all views, one view after the other, and their weights (S,)."""
        places = [(view, positions) for view, those in enumerate(self.positions) for positions in those]
        return views.slots(places), views.constant([weight for those in self.weights for weight in those])


def match_slots(matches: Sequence[Match], weights: Mapping[Matching, float], views: Views) -> SlotWeights:
    """Return the slots of each view: both sides of every matching, each with half of the matching's weight."""
    slots = SlotWeights.empty(views)
    whole: dict[int, float] = defaultdict(float)  # matchings that keep a whole map, whatever their partner: once a view
    for match in matches:
        matching = match.matching
        half = weights[matching] / 2
        if matching.count == views.maps[matching.source].shape[1]:
            whole[matching.source] += half  # all positions in their order: the same slots in every such matching
        else:
            slots.add(matching.source, match.source, half)
        slots.add(matching.target, match.target, half)
    for view, weight in whole.items():
        slots.add(view, _whole_map(views.maps[view]), weight)
    return slots


def whole_map_slots(views: Views, weight: float) -> SlotWeights:
    """Return every position of every map as a slot; `weight` is that of a whole map."""
    slots = SlotWeights.empty(views)
    for view, m in enumerate(views.maps):
        slots.add(view, _whole_map(m), weight)
    return slots


def _whole_map(m: Tensor) -> Tensor:
    return _all_positions(m.shape[1], m.shape[0], m.device)


def variance_and_covariance(
    views: Views, slots: SlotWeights, coefficients: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Sum weight * (variance, covariance) over the slots of all views."""
    return terms.variance_and_covariance(views.maps, *slots.joined(views), coefficients, views.batch, views.grads)
