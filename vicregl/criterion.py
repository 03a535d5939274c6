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
computed once, with the sum of its weights; all slots of all views and matchings are one call of each term.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vicregl import local
from vicregl.batch import ProcessBatch
from vicregl.config import TERMS, CriterionConfig
from vicregl.errors import InvalidInputError
from vicregl.local import Match, SlotWeights, Views
from vicregl.matching import Matching, regrid
from vicregl.terms import with_gradient

__all__ = ["CriterionConfig", "VICRegLCriterion"]

Maps = Sequence[Tensor] | Sequence[Sequence[Tensor]]


class VICRegLCriterion(nn.Module):
    """Call it with the embeddings, maps and locations of all views; it has no parameters.

    The options are the fields of CriterionConfig, by name, with its defaults: VICRegLCriterion(alpha=0.5,
    local="feature"). A config may come first, and options beside it replace its values. Raises InvalidInputError for
    impossible options, and in the call for tensors that do not belong together.
    """

    def __init__(self, config: CriterionConfig | None = None, /, **options: Any) -> None:
        super().__init__()
        self.options = replace(CriterionConfig() if config is None else config, **options)
        self._warned = False

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in asdict(self.options).items())

    def forward(self, embeddings: Sequence[Tensor], maps: Maps, locations: Sequence[Tensor]) -> dict[str, Tensor]:
        """Compute the scalars `loss`, `global_*`, `local_*` (invariance, variance, covariance) from lists over views.

        embeddings: (B, D). maps: (B, P, C) or (B, H, W, C), or a list of stages, each a list over views.
        locations: (B, P, 2) or (B, H, W, 2), (row, column) in pixels of the original image. The first two views are
        the large ones. Terms are weighted by their coefficients, and with w = alpha (1 with local="none")

            loss = w * sum(global_*) + (1 - w) * sum(local_*)

        `loss` has the gradient; the terms are for reporting. At w = 1 maps and locations are ignored, at w = 0
        embeddings are; the terms of the unused half are 0.

        Float32 inside (float64 for float64), whatever autocast says outside. Under torch.distributed the statistics
        are over the batch of all processes, and gradients are meant to be averaged over the processes, as DDP does.
        """
        w = self.options.global_weight
        vectors = _embeddings(embeddings) if w > 0 else []
        stages = _stages(maps) if w < 1 else []
        tensors = [*vectors, *(m for stage in stages for m in stage)]
        batch = _process_batch(tensors)
        with torch.autocast(tensors[0].device.type, enabled=False):
            global_terms = local_terms = tensors[0].new_zeros(3)
            grads: list[Tensor | None] = []
            if vectors:
                views = Views.detached(vectors, batch)
                global_terms = self._global(views, w)
                grads += views.grads
            for stage, share in zip(stages, self._stage_weights(len(stages)), strict=True):
                views = Views.detached([m.flatten(1, -2) for m in stage], batch)
                local_terms = local_terms + share * self._local(views, stage, locations, (1 - w) * share)
                grads += [g if g is None else g.view_as(m) for g, m in zip(views.grads, stage, strict=True)]
            # The terms worked on detached tensors and filled `grads`; here autograd learns of them.
            loss = with_gradient(w * global_terms.sum() + (1 - w) * local_terms.sum(), tensors, grads)
        values = {f"global_{name}": term for name, term in zip(TERMS, global_terms.unbind(), strict=True)}
        values |= {f"local_{name}": term for name, term in zip(TERMS, local_terms.unbind(), strict=True)}
        return {"loss": loss, **values}

    def _global(self, views: Views, share: float) -> Tensor:
        """Return the three terms of embeddings as maps of one position, weighted by their coefficients: (3,)."""
        count = len(views.maps)
        pairs = local.view_pairs(count)
        weights: dict[Matching, float] = {}
        for i, j in pairs:  # the ordered pairs (0, 1) and (1, 0) have the same difference
            matching = Matching("same", min(i, j), max(i, j), 1)
            weights[matching] = weights.get(matching, 0) + 1 / len(pairs)
        matches = local.same_positions(weights, views.batch.size, views.maps[0].device)
        return self._terms(views, matches, weights, local.whole_map_slots(views, 1 / count), share)

    def _local(self, views: Views, maps: Sequence[Tensor], locations: Sequence[Tensor], share: float) -> Tensor:
        """Return the three terms of one stage's maps, weighted by their coefficients: (3,)."""
        options = self.options
        spaces: dict[str, Sequence[Tensor]] = {"feature": views.maps}
        if "location" in options.kinds:
            spaces["location"] = _locations(locations, maps)
        positions = [m.shape[1] for m in views.maps]
        self._warn_once_if_clamped(positions)
        weights = local.weighted_matchings(options, positions)
        matches = local.find_matches(weights, spaces, options)
        if options.statistics == "maps":
            slots = local.whole_map_slots(views, len(options.kinds) / len(positions))
        else:
            slots = local.match_slots(matches, weights, views)
        return self._terms(views, matches, weights, slots, share)

    def _terms(
        self,
        views: Views,
        matches: Sequence[Match],
        weights: Mapping[Matching, float],
        slots: SlotWeights,
        share: float,
    ) -> Tensor:
        """Return the terms (3,), weighted by their coefficients; add share times their gradients to views."""
        options = self.options
        lambda_, mu, nu = (getattr(options, f"{term}_coefficient") for term in TERMS)
        invariance = local.invariance(views, matches, weights, share * lambda_)
        variance, covariance = local.variance_and_covariance(views, slots, (share * mu, share * nu))
        return torch.stack([lambda_ * invariance, mu * variance, nu * covariance])

    def _stage_weights(self, stages: int) -> list[float]:
        weights = self.options.local_stage_weights or [1 / max(stages, 1)] * stages
        if stages and len(weights) != stages:
            given = f"local_stage_weights has {len(weights)} weights"
            raise InvalidInputError(f"{given}, and the maps come from {stages} stages")
        return weights[:stages]

    def _warn_once_if_clamped(self, positions: Sequence[int]) -> None:
        if self._warned:
            return
        for matching in local.requested_matchings(self.options, len(positions)):
            if matching.count > positions[matching.source]:
                self._warned = True
                warnings.warn(
                    f"{matching.count} {matching.kind} matches were asked for, and the map of view {matching.source} "
                    f"has {positions[matching.source]} positions: all of them are kept",
                    stacklevel=2,
                )
                return


# Check the inputs and bring them into one form: float32 or float64, maps as (B, P, C).


def _embeddings(views: Sequence[Tensor]) -> list[Tensor]:
    """Turn (B, D) of every view into (B, 1, D): maps of one position."""
    _check_views("embeddings", views, (2,), "(B, D)")
    return [_at_least_float32(z)[:, None] for z in views]


def _stages(maps: Maps) -> list[list[Tensor]]:
    """Return maps as a list over stages of lists over views; a single stage may be given as a list over views."""
    if not maps:
        raise InvalidInputError(
            "the local criterion needs the maps of the views, and got none; was the model made at alpha 1?"
        )
    stages = [maps] if isinstance(maps[0], Tensor) else maps
    for stage in stages:
        _check_views("maps", cast(Sequence[Tensor], stage), (3, 4), "(B, P, C) or (B, H, W, C)")
    return [[_at_least_float32(m) for m in cast(Sequence[Tensor], stage)] for stage in stages]


def _locations(grids: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """Return the location (B, P, 2) of every position; a grid of another size is recomputed for (B, H, W, C)."""
    if len(grids) != len(maps):
        raise InvalidInputError(f"got the locations of {len(grids)} views and the maps of {len(maps)}")
    flat = []
    for view, (given, m) in enumerate(zip(grids, maps, strict=True)):
        grid = _at_least_float32(given)
        if grid.dim() == m.dim() == 4:
            grid = regrid(grid, m.shape[1], m.shape[2])
        if grid.dim() < 3 or grid.flatten(1, -2).shape != (m.shape[0], m.flatten(1, -2).shape[1], 2):
            raise InvalidInputError(
                f"view {view}: locations {tuple(given.shape)} do not belong to a map {tuple(m.shape)}; "
                "expected (B, P, 2) or (B, H, W, 2) with P = H * W the map's positions"
            )
        flat.append(grid.flatten(1, -2))
    return flat


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check_views(name: str, views: Sequence[Tensor], dims: Sequence[int], expected: str) -> None:
    if len(views) < 2:
        raise InvalidInputError(f"{name}: got {len(views)} views; the criterion compares two or more")
    shapes = [tuple(view.shape) for view in views]
    same = {(len(shape), shape[0], shape[-1]) for shape in shapes}
    if len(same) != 1 or len(shapes[0]) not in dims:
        raise InvalidInputError(
            f"{name}: got shapes {shapes}; expected {expected}, the first and the last size those of all views"
        )


def _process_batch(tensors: Sequence[Tensor]) -> ProcessBatch:
    sizes = {len(x) for x in tensors}
    if len(sizes) != 1:
        raise InvalidInputError(f"embeddings and maps have batches of {sorted(sizes)} samples; expected the same")
    batch = ProcessBatch.from_group(len(tensors[0]), tensors[0].device)
    if batch.total < 2:
        raise InvalidInputError("the criterion got a batch of 1 sample; statistics over the batch need 2 or more")
    return batch
