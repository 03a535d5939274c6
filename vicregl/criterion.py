"""The VICRegL criterion (arXiv 2210.01571): alpha * global + (1 - alpha) * local.

Terms of a pair x, y of (n, d), with coefficients lambda = 25, mu = 25, nu = 1:

    invariance = mean over all entries of (x - y)^2
    variance   = mean over dimensions of relu(1 - sqrt(var + 1e-4))
    covariance = sum of the squared off-diagonal entries of the covariance matrix / d

Global: invariance is the mean over the ordered pairs (i in {0, 1}, j != i) of views; variance and covariance are
the mean over views (VICReg's own paper sums the two views: nu and mu of alpha = 1 are half of VICReg's).

Local: the mean over the same ordered pairs of, for each kind of matching (feature, location),

    1/2 term(i -> j) + 1/2 term(j -> i)

where term(a -> b) has m slots: invariance of the matched positions, variance and covariance of each slot over the
batch, averaged over the slots and over the two sides. Two kinds add up.

Pairs (0, 1) and (1, 0) hold the same matchings (but for `num_matches` by direction), so each distinct matching is
computed once, with the sum of its weights; all slots of one view, of whatever matching, are one call of the
statistics.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

import torch
from torch import Tensor, nn

from runtime.errors import UserError
from vicregl import local
from vicregl.batch import Batch
from vicregl.matching import regrid
from vicregl.options import TERMS, CriterionConfig
from vicregl.statistics import slot_statistics

__all__ = ["CriterionConfig", "VICRegLCriterion"]

Maps = Sequence[Tensor] | Sequence[Sequence[Tensor]]


class VICRegLCriterion(nn.Module):
    """Call it with the embeddings, maps and locations of all views; it has no parameters.

    Raises UserError for impossible options, and in the call for tensors that do not belong together.
    """

    def __init__(
        self,
        alpha: float = 0.75,
        local: str = "both",
        num_matches: Sequence[int] = (20, 4),
        feature_matches: Sequence[int] | None = None,
        profile: str = "paper",
        invariance_coefficient: float = 25.0,
        variance_coefficient: float = 25.0,
        covariance_coefficient: float = 1.0,
        select: str = "top",
        location_threshold: float = 32.0,
        feature_threshold: float = 0.5,
        statistics: str = "matches",
        local_stage_weights: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.options = CriterionConfig(
            alpha=alpha,
            local=local,
            num_matches=list(num_matches),
            feature_matches=None if feature_matches is None else list(feature_matches),
            profile=profile,
            select=select,
            location_threshold=location_threshold,
            feature_threshold=feature_threshold,
            statistics=statistics,
            local_stage_weights=list(local_stage_weights),
            invariance_coefficient=invariance_coefficient,
            variance_coefficient=variance_coefficient,
            covariance_coefficient=covariance_coefficient,
        )
        self.options.check()
        self._warned = False

    @classmethod
    def from_config(cls, config: CriterionConfig) -> VICRegLCriterion:
        return cls(**asdict(config))

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in asdict(self.options).items())

    def forward(self, embeddings: Sequence[Tensor], maps: Maps, locations: Sequence[Tensor]) -> dict[str, Tensor]:
        """Lists over views -> scalars loss, global_* and local_* (invariance, variance, covariance).

        embeddings: (B, D). maps: (B, P, C) or (B, H, W, C), or a list of stages, each a list over views.
        locations: (B, P, 2) or (B, H, W, 2), (row, column) in pixels of the original image. The first two views are
        the large ones. Terms are weighted by their coefficients, and loss = w * sum(global_*) + (1 - w) *
        sum(local_*), w = alpha (1 with local="none"). At w = 1 maps and locations are not looked at, at w = 0
        embeddings are not; the terms of the unused half are 0. Float32 inside (float64 for float64), whatever
        autocast says outside. Under torch.distributed the statistics are over the batch of all processes, and
        gradients are meant to be averaged over the processes, as DDP does.
        """
        weight = self.options.global_weight
        stages = _stages(maps) if weight < 1 else []
        first = embeddings[0] if weight > 0 else stages[0][0]
        with torch.autocast(first.device.type, enabled=False):
            batch = Batch.of(first.shape[0], first.device)
            _check_batch(batch)
            nothing = torch.zeros(3, device=first.device)
            global_terms = self._global([_at_least_float32(z) for z in embeddings], batch) if weight > 0 else nothing
            local_terms = self._local_stages(stages, locations, batch) if weight < 1 else nothing
            terms = {f"global_{name}": term for name, term in zip(TERMS, global_terms, strict=True)}
            terms |= {f"local_{name}": term for name, term in zip(TERMS, local_terms, strict=True)}
            return {"loss": weight * global_terms.sum() + (1 - weight) * local_terms.sum(), **terms}

    def _weighted(self, invariance: Tensor, variance: Tensor, covariance: Tensor) -> Tensor:
        options = self.options
        return torch.stack(
            [
                options.invariance_coefficient * invariance,
                options.variance_coefficient * variance,
                options.covariance_coefficient * covariance,
            ]
        )

    def _global(self, embeddings: Sequence[Tensor], batch: Batch) -> Tensor:
        """The three terms of embeddings (B, D), weighted by their coefficients: (3,)."""
        _check_shapes("embeddings", embeddings, 2)
        pairs = [(min(pair), max(pair)) for pair in local.view_pairs(len(embeddings))]
        # The ordered pairs (0, 1) and (1, 0) have the same difference.
        counts = {pair: pairs.count(pair) for pair in pairs}
        differences = [n * (embeddings[a] - embeddings[b]).square().mean() for (a, b), n in counts.items()]
        invariance = batch.mean(torch.stack(differences).sum() / len(pairs))
        index = torch.zeros((1, batch.size), dtype=torch.long, device=invariance.device)
        share = invariance.new_full((1,), 1 / len(embeddings))
        found = [slot_statistics(z[:, None], index, share, batch) for z in embeddings]
        variances, covariances = zip(*found, strict=True)
        return self._weighted(invariance, torch.stack(variances).sum(), torch.stack(covariances).sum())

    def _local_stages(self, stages: list[list[Tensor]], locations: Sequence[Tensor], batch: Batch) -> Tensor:
        """Weighted sum over the stages of the three local terms: (3,)."""
        weights = self.options.local_stage_weights or [1 / len(stages)] * len(stages)
        if len(weights) != len(stages):
            raise UserError(
                f"local_stage_weights has {len(weights)} weights, and the maps come from {len(stages)} stages"
            )
        terms = [w * self._local(maps, locations, batch) for w, maps in zip(weights, stages, strict=True)]
        return torch.stack(terms).sum(0)

    def _local(self, maps: Sequence[Tensor], locations: Sequence[Tensor], batch: Batch) -> Tensor:
        """The three terms of one stage's maps, weighted by their coefficients: (3,)."""
        options = self.options
        flat = [_at_least_float32(m.flatten(1, -2)) for m in maps]
        _check_shapes("maps", flat, 3)
        spaces: dict[str, Sequence[Tensor]] = {"feature": [m.detach() for m in flat]}
        if options.local != "feature":
            spaces["location"] = _locations(locations, maps)
        kinds = ["feature", "location"] if options.local == "both" else [options.local]
        weights = self._matchings(kinds, [m.shape[1] for m in flat])
        matches = local.carry_out(weights, spaces, self._squared_thresholds(flat[0].shape[2]))
        invariance = local.invariance(flat, matches, weights, batch)
        if options.statistics == "matches":
            slots = local.match_slots(matches, weights, flat)
        else:
            slots = [local.Slots() for _ in flat]
            for view, m in enumerate(flat):
                local.add_whole_map(slots[view], m, len(kinds) / len(flat))
        return self._weighted(invariance, *local.variance_and_covariance(flat, slots, batch))

    def _matchings(self, kinds: Sequence[str], positions: Sequence[int]) -> dict[local.Matching, float]:
        options = self.options
        everything = (0, 0)
        by_location = (options.num_matches[0], options.num_matches[1])
        by_feature = everything if options.profile == "reference" else by_location
        if options.feature_matches is not None:
            by_feature = (options.feature_matches[0], options.feature_matches[1])
        counts = {"location": by_location, "feature": by_feature}
        if options.select == "threshold":
            counts = dict.fromkeys(counts, everything)
        by_direction = options.profile == "reference"
        wanted = {kind: counts[kind] for kind in kinds}
        self._warn_of_clamping(wanted, by_direction, positions)
        return local.weighted_matchings(len(positions), wanted, by_direction, positions)

    def _warn_of_clamping(
        self, counts: dict[str, tuple[int, int]], by_direction: bool, positions: Sequence[int]
    ) -> None:
        if self._warned:
            return
        for kind, (first, second) in counts.items():
            for view, available in enumerate(positions):
                large = view < local.LARGE_VIEWS
                asked = (max(first, second) if by_direction else first) if large else second
                if asked > available:
                    self._warned = True
                    warnings.warn(
                        f"{asked} {kind} matches were asked for, and the map of view {view} has {available} positions: "
                        "all of them are kept",
                        stacklevel=2,
                    )
                    return

    def _squared_thresholds(self, width: int) -> dict[str, float] | None:
        if self.options.select == "top":
            return None
        return {
            "location": self.options.location_threshold**2,
            "feature": self.options.feature_threshold**2 * width,
        }


def _stages(maps: Maps) -> list[list[Tensor]]:
    """Lists over stages of lists over views; one stage may come as the list over views alone."""
    if not maps:
        raise UserError("the local criterion needs the maps of the views, and got none; is alpha the model's alpha?")
    if isinstance(maps[0], Tensor):
        return [list(cast(Sequence[Tensor], maps))]
    return [list(cast(Sequence[Tensor], stage)) for stage in maps]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check_batch(batch: Batch) -> None:
    if batch.total < 2:
        raise UserError("the criterion got a batch of 1 sample; statistics over the batch need 2 or more")


def _check_shapes(name: str, views: Sequence[Tensor], dims: int) -> None:
    shapes = [tuple(view.shape) for view in views]
    if len(views) < local.LARGE_VIEWS:
        raise UserError(f"{name}: got {len(views)} views; the criterion compares two or more")
    outer = {(len(shape), shape[0], shape[-1]) for shape in shapes}
    if len(outer) != 1 or len(shapes[0]) != dims:
        expected = "(B, D)" if dims == 2 else "(B, P, C) or (B, H, W, C)"
        raise UserError(f"{name}: got shapes {shapes}; expected {expected} with the same first and last size")


def _locations(locations: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """The location of every position of every map: (B, P, 2) in float32 or float64."""
    if len(locations) != len(maps):
        raise UserError(f"got the locations of {len(locations)} views and the maps of {len(maps)}")
    flat = []
    for view, (grid, m) in enumerate(zip(locations, maps, strict=True)):
        grid = _at_least_float32(grid)
        if grid.dim() == 4 and m.dim() == 4:
            grid = regrid(grid, m.shape[1], m.shape[2])
        grid = grid.flatten(1, -2)
        if grid.shape != (m.shape[0], m[0, ..., 0].numel(), 2):
            raise UserError(
                f"view {view}: locations {tuple(locations[view].shape)} do not belong to a map {tuple(m.shape)}; "
                "expected (B, P, 2) or (B, H, W, 2) with P = H * W the map's positions"
            )
        flat.append(grid)
    return flat
