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
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from runtime.errors import UserError
from vicregl import inputs, local
from vicregl.batch import Batch
from vicregl.local import Match, Slots, Views
from vicregl.matching import Matching
from vicregl.options import TERMS, CriterionConfig
from vicregl.terms import with_gradient

__all__ = ["CriterionConfig", "VICRegLCriterion"]


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

    def forward(
        self, embeddings: Sequence[Tensor], maps: inputs.Maps, locations: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Lists over views -> scalars loss, global_* and local_* (invariance, variance, covariance).

        embeddings: (B, D). maps: (B, P, C) or (B, H, W, C), or a list of stages, each a list over views.
        locations: (B, P, 2) or (B, H, W, 2), (row, column) in pixels of the original image. The first two views are
        the large ones. Terms are weighted by their coefficients, and loss = w * sum(global_*) + (1 - w) *
        sum(local_*), w = alpha (1 with local="none"). `loss` has the gradient; the terms are for reporting. At w = 1
        maps and locations are not looked at, at w = 0 embeddings are not; the terms of the unused half are 0.

        Float32 inside (float64 for float64), whatever autocast says outside. Under torch.distributed the statistics
        are over the batch of all processes, and gradients are meant to be averaged over the processes, as DDP does.
        """
        w = self.options.global_weight
        vectors = inputs.embeddings(embeddings) if w > 0 else []
        stages = inputs.stages(maps) if w < 1 else []
        tensors = [*vectors, *(m for stage in stages for m in stage)]
        batch = _batch(tensors)
        with torch.autocast(tensors[0].device.type, enabled=False):
            global_terms = local_terms = tensors[0].new_zeros(3)
            grads: list[Tensor | None] = []
            if vectors:
                views = Views.of(vectors, batch)
                global_terms = self._global(views, w)
                grads += views.grads
            for stage, share in zip(stages, self._stage_weights(len(stages)), strict=True):
                views = Views.of([m.flatten(1, -2) for m in stage], batch)
                local_terms = local_terms + share * self._local(views, stage, locations, (1 - w) * share)
                grads += [g if g is None else g.view_as(m) for g, m in zip(views.grads, stage, strict=True)]
            loss = with_gradient(w * global_terms.sum() + (1 - w) * local_terms.sum(), tensors, grads)
        values = {f"global_{name}": term for name, term in zip(TERMS, global_terms.unbind(), strict=True)}
        values |= {f"local_{name}": term for name, term in zip(TERMS, local_terms.unbind(), strict=True)}
        return {"loss": loss, **values}

    def _global(self, views: Views, share: float) -> Tensor:
        """The three terms of embeddings as maps of one position, weighted by their coefficients: (3,)."""
        pairs = local.view_pairs(len(views.maps))
        weights: dict[Matching, float] = {}
        for i, j in pairs:  # the ordered pairs (0, 1) and (1, 0) have the same difference
            matching = Matching("same", min(i, j), max(i, j), 1)
            weights[matching] = weights.get(matching, 0) + 1 / len(pairs)
        matches = local.same_positions(weights, views.batch.size, views.maps[0].device)
        return self._terms(views, matches, weights, local.whole_map_slots(views.maps, 1 / len(views.maps)), share)

    def _local(self, views: Views, maps: Sequence[Tensor], locations: Sequence[Tensor], share: float) -> Tensor:
        """The three terms of one stage's maps, weighted by their coefficients: (3,)."""
        options = self.options
        kinds = ["feature", "location"] if options.local == "both" else [options.local]
        spaces = {"feature": views.maps}
        if "location" in kinds:
            spaces["location"] = inputs.locations(locations, maps)
        weights = self._matchings(kinds, [m.shape[1] for m in views.maps])
        matches = local.carry_out(weights, spaces, self._squared_thresholds(views.maps[0].shape[2]))
        if options.statistics == "maps":
            slots = local.whole_map_slots(views.maps, len(kinds) / len(views.maps))
        else:
            slots = local.match_slots(matches, weights, views.maps)
        return self._terms(views, matches, weights, slots, share)

    def _terms(
        self,
        views: Views,
        matches: Sequence[Match],
        weights: Mapping[Matching, float],
        slots: Sequence[Slots],
        share: float,
    ) -> Tensor:
        """Invariance, variance, covariance times their coefficients (3,); share times their gradients goes to views."""
        options = self.options
        of_invariance = options.invariance_coefficient
        of_variance, of_covariance = options.variance_coefficient, options.covariance_coefficient
        invariance = local.invariance(views, matches, weights, share * of_invariance)
        variance, covariance = local.variance_and_covariance(views, slots, (share * of_variance, share * of_covariance))
        return torch.stack([of_invariance * invariance, of_variance * variance, of_covariance * covariance])

    def _stage_weights(self, stages: int) -> list[float]:
        weights = self.options.local_stage_weights or [1 / max(stages, 1)] * stages
        if stages and len(weights) != stages:
            raise UserError(f"local_stage_weights has {len(weights)} weights, and the maps come from {stages} stages")
        return weights[:stages]

    def _matchings(self, kinds: Sequence[str], positions: Sequence[int]) -> dict[Matching, float]:
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


def _batch(tensors: Sequence[Tensor]) -> Batch:
    sizes = {len(x) for x in tensors}
    if len(sizes) != 1:
        raise UserError(f"embeddings and maps have batches of {sorted(sizes)} samples; expected the same")
    batch = Batch.of(len(tensors[0]), tensors[0].device)
    if batch.total < 2:
        raise UserError("the criterion got a batch of 1 sample; statistics over the batch need 2 or more")
    return batch
