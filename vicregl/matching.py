"""Match the positions of two maps, by location or by feature.

A matching a -> b gives every position of map a its nearest position of map b; the positions of a are ranked by
that distance and the nearest of them are kept, in their original order (VICRegL, arXiv 2210.01571, section 3).
Of equally near positions the first one counts. Nothing here has a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vicregl.errors import InvalidInputError


@dataclass(frozen=True)
class Matching:
    """One directed matching between the maps of two views."""

    kind: str  # feature | location
    source: int  # view whose positions are ranked
    target: int  # view that is searched
    count: int  # of positions kept


@dataclass(frozen=True)
class Nearest:
    """For every position of a map its nearest in another: squared distance and index, both (B, P)."""

    distance: Tensor
    index: Tensor


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """(B, P, C), (B, Q, C) -> (B, P, Q).

    Two dimensions are subtracted, so that equal distances on a grid are exactly equal; more go through a matrix
    product: |x - y|^2 = |x|^2 + |y|^2 - 2 x.y
    """
    if x.shape[-1] == 2:
        rows, columns = x[:, :, None, 0] - y[:, None, :, 0], x[:, :, None, 1] - y[:, None, :, 1]
        return rows.square_().add_(columns.square_())
    lengths = x.square().sum(-1)[:, :, None] + y.square().sum(-1)[:, None, :]
    # Rounding may leave a negative number where two positions are nearly equal.
    return torch.baddbmm(lengths, x, y.transpose(1, 2), alpha=-2).clamp_(min=0)


@torch.no_grad()
def nearest(x: Tensor, y: Tensor) -> tuple[Nearest, Nearest]:
    """Find the nearest positions x -> y (B, P) and y -> x (B, Q), from one matrix of distances."""
    distances = squared_distances(x, y)
    return _smallest(distances), _smallest(distances.transpose(1, 2).contiguous())


def _smallest(distances: Tensor) -> Nearest:
    # Ties are common: on a grid, a position is often equally far from two cells. The first one counts:
    # argmin is documented to return it, on every device, and the index of min() is not.
    index = distances.argmin(dim=2)
    return Nearest(distances.gather(2, index[:, :, None])[:, :, 0], index)


@torch.no_grad()
def keep_nearest(near: Nearest, count: int) -> Tensor:
    """Return the positions (B, count) of the `count` smallest distances, in ascending order of position."""
    if count == near.distance.shape[1]:
        return torch.arange(count, device=near.index.device).expand_as(near.index)
    # A stable sort, not topk: of equal distances the first positions are kept, on every device.
    ranked = near.distance.argsort(dim=1, stable=True)
    return ranked[:, :count].sort(dim=1).values


def take(maps: Tensor, index: Tensor) -> Tensor:
    """maps (B, P, C), index (S, B) -> (S, B, C): the position index[s, b] of sample b."""
    return maps.flatten(0, 1).index_select(0, flat_rows(maps, index)).view(*index.shape, -1)


def flat_rows(maps: Tensor, index: Tensor) -> Tensor:
    """index (S, B) of positions -> rows (S * B,) of the maps as (B * P, C)."""
    return (index + torch.arange(maps.shape[0], device=maps.device) * maps.shape[1]).flatten()


@torch.no_grad()
def regrid(locations: Tensor, height: int, width: int) -> Tensor:
    """Compute the grid (B, height, width, 2) for the crops of the grid (B, H, W, 2) and a map of another size.

    Cell centres are evenly spaced over the crop, so the first and the last of a side give the crop's edges:
    centre k of n cells lies at edge + (k + 1/2) / n of the side. A single cell cannot be divided: InvalidInputError.
    """
    for dim, size in ((1, height), (2, width)):
        former = locations.shape[dim]
        if former == size:
            continue
        if former < 2:
            raise InvalidInputError(
                f"a grid of {former} cell along a side does not give the crop's size, so the centres of {size} cells "
                "are unknown; give the locations on a grid of at least 2 x 2 cells"
            )
        first, last = locations.narrow(dim, 0, 1), locations.narrow(dim, former - 1, 1)
        cell = (last - first) / (former - 1)
        shape = [1] * 4
        shape[dim] = size
        steps = torch.arange(size, device=locations.device, dtype=locations.dtype).view(shape)
        locations = first - cell / 2 + cell * former * (steps + 0.5) / size
    return locations
