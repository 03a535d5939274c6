"""The criterion written down from its definitions, without regard to speed.

It is the truth for the tests and the straightforward version that benchmarks/criterion.py compares with. It shares
nothing with vicregl/, so that an error there cannot be repeated here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Spaces = Mapping[str, Sequence[Tensor]]  # kind of matching -> the tensors that are compared, one for each view
TERMS = ("invariance", "variance", "covariance")


def variance(x: Tensor) -> Tensor:
    """Return the mean over dimensions of relu(1 - std) of x (n, d)."""
    return torch.relu(1 - torch.sqrt(x.var(dim=0) + 1e-4)).mean()


def covariance(x: Tensor) -> Tensor:
    """Return the sum of the squared off-diagonal entries of the covariance matrix of x (n, d), over d."""
    n, d = x.shape
    centred = x - x.mean(dim=0)
    matrix = centred.T @ centred / (n - 1)
    off_diagonal = ~torch.eye(d, dtype=torch.bool, device=x.device)
    return matrix[off_diagonal].pow(2).sum() / d


def slot_mean(term: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the mean over the m slots of x (n, m, d) of a term over the batch."""
    return torch.stack([term(x[:, slot]) for slot in range(x.shape[1])]).mean()


def nearest(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return distance and index of the nearest y (Q, c) of each x (P, c); of equally near ones the first."""
    distances = (x[:, None] - y[None]).pow(2).sum(dim=2)
    index = distances.argmin(dim=1)
    return distances.gather(1, index[:, None])[:, 0].sqrt(), index


def kept_positions(distance: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` smallest distances, ascending; of equal distances the first positions."""
    order = sorted(range(len(distance)), key=distance.tolist().__getitem__)
    return torch.tensor(sorted(order[:count]), device=distance.device)


def matched(x_map: Tensor, y_map: Tensor, x_space: Tensor, y_space: Tensor, count: int) -> tuple[Tensor, ...]:
    """Match maps (n, P, d) compared in spaces (n, P, c); return x (n, m, d), y (n, m, d) and distances (n, m)."""
    samples = []
    for sample in range(len(x_map)):
        distance, index = nearest(x_space[sample].detach(), y_space[sample].detach())
        kept = kept_positions(distance, count)
        samples.append((x_map[sample, kept], y_map[sample, index[kept]], distance[kept]))
    return tuple(torch.stack(tensors) for tensors in zip(*samples, strict=True))


def number_of_matches(options: dict[str, Any], kind: str, direction: int, view: int, positions: int) -> int:
    """Return how many matches of a view are kept; `direction` is 0 for x to y and 1 for y to x.

    num_matches has two numbers: the paper means large and small views, the published code the two directions.
    """
    counts = options["num_matches"]
    if kind == "feature":
        if options["feature_matches"] is not None:
            counts = options["feature_matches"]
        elif options["profile"] == "reference":
            counts = (0, 0)
    which = direction if options["profile"] == "reference" else int(view >= 2)
    return positions if counts[which] == 0 else min(counts[which], positions)


def local_term(
    maps: Sequence[Tensor], spaces: Spaces, a: int, b: int, kind: str, direction: int, options: dict[str, Any]
) -> list[Tensor]:
    """Return invariance, variance and covariance of view a matched to view b."""
    positions = maps[a].shape[1]
    threshold = options["select"] == "threshold"
    count = positions if threshold else number_of_matches(options, kind, direction, a, positions)
    x, y, distance = matched(maps[a], maps[b], spaces[kind][a], spaces[kind][b], count)
    squares = (x - y).pow(2).mean(dim=2)
    if threshold:
        limit = options["location_threshold"]
        if kind == "feature":
            limit = options["feature_threshold"] * x.shape[2] ** 0.5
        near = distance < limit
        invariance = squares[near].mean() if near.any() else squares.sum() * 0  # 0 with a gradient, not NaN
    else:
        invariance = squares.mean()
    if options["statistics"] == "maps":
        return [invariance, invariance * 0, invariance * 0]
    variances = (slot_mean(variance, x) + slot_mean(variance, y)) / 2
    covariances = (slot_mean(covariance, x) + slot_mean(covariance, y)) / 2
    return [invariance, variances, covariances]


def local_criterion(maps: Sequence[Tensor], locations: Sequence[Tensor], options: dict[str, Any]) -> Tensor:
    """Return invariance, variance and covariance (3,) before their coefficients."""
    kinds = ["feature", "location"] if options["local"] == "both" else [options["local"]]
    spaces = {"feature": maps, "location": [grid.flatten(1, -2) for grid in locations]}
    pairs = [(i, j) for i in (0, 1) for j in range(len(maps)) if i != j]
    total = maps[0].new_zeros(3)
    for i, j in pairs:
        for kind in kinds:
            forward = local_term(maps, spaces, i, j, kind, 0, options)
            backward = local_term(maps, spaces, j, i, kind, 1, options)
            total = total + (torch.stack(forward) + torch.stack(backward)) / 2 / len(pairs)
    if options["statistics"] == "maps":  # of all positions of each view, once for each kind of matching
        total = total + len(kinds) * torch.stack(
            [
                total.new_zeros(()),
                torch.stack([slot_mean(variance, m) for m in maps]).mean(),
                torch.stack([slot_mean(covariance, m) for m in maps]).mean(),
            ]
        )
    return total


def global_criterion(embeddings: Sequence[Tensor]) -> Tensor:
    """Return invariance, variance and covariance (3,) before their coefficients."""
    pairs = [(i, j) for i in (0, 1) for j in range(len(embeddings)) if i != j]
    return torch.stack(
        [
            torch.stack([(embeddings[i] - embeddings[j]).pow(2).mean() for i, j in pairs]).mean(),
            torch.stack([variance(z) for z in embeddings]).mean(),
            torch.stack([covariance(z) for z in embeddings]).mean(),
        ]
    )


DEFAULTS: dict[str, Any] = {
    "alpha": 0.75,
    "local": "both",
    "num_matches": (20, 4),
    "feature_matches": None,
    "profile": "paper",
    "select": "top",
    "location_threshold": 32.0,
    "feature_threshold": 0.5,
    "statistics": "matches",
    "invariance_coefficient": 25.0,
    "variance_coefficient": 25.0,
    "covariance_coefficient": 1.0,
}


def criterion(
    embeddings: Sequence[Tensor], maps: Sequence[Tensor], locations: Sequence[Tensor], **changed: Any
) -> dict[str, Tensor]:
    """Return the same dictionary as VICRegLCriterion for maps (n, P, d), from options of the same names."""
    unknown = set(changed) - set(DEFAULTS)
    assert not unknown, unknown
    options = DEFAULTS | changed
    some = (embeddings or maps)[0]
    coefficients = some.new_tensor([options[f"{term}_coefficient"] for term in TERMS])
    alpha = 1.0 if options["local"] == "none" else options["alpha"]
    global_terms = coefficients * global_criterion(embeddings) if alpha > 0 else some.new_zeros(3)
    local_terms = coefficients * local_criterion(maps, locations, options) if alpha < 1 else some.new_zeros(3)
    terms = {f"global_{name}": term for name, term in zip(TERMS, global_terms, strict=True)}
    terms |= {f"local_{name}": term for name, term in zip(TERMS, local_terms, strict=True)}
    return {"loss": alpha * global_terms.sum() + (1 - alpha) * local_terms.sum(), **terms}
