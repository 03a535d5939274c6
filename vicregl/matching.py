"""Match the positions of two maps, by location or by feature.

A matching a -> b gives every position of map a its nearest position of map b; the positions of a are ranked by
that distance and the nearest of them are kept, in their original order (VICRegL, arXiv 2210.01571, section 3).
Of equally near positions the first one counts. Nothing here has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vicregl.errors import InvalidInputError
from vicregl.terms import chunks


@dataclass(frozen=True)
class Matching:
    """One directed matching between the maps of two views."""

    kind: str  # feature | location
    source: int  # view whose positions are ranked
    target: int  # view that is searched
    count: int  # of positions kept


@dataclass(frozen=True)
class Nearest:
    """For every position of a map its nearest in another: squared distance and index, both (..., P)."""

    distance: Tensor
    index: Tensor


def squared_distances(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Compare K pairs of maps (..., P, C) and (..., Q, C) -> (K, ..., P, Q).

    Two dimensions are subtracted, so that equal distances on a grid are exactly equal; more go through a matrix
    product: |x - y|^2 = |x|^2 + |y|^2 - 2 x.y
    """
    x, y = list(x), list(y)
    if x[0].shape[-1] == 2:
        first, second = torch.stack(x)[..., :, None, :], torch.stack(y)[..., None, :, :]
        rows, columns = first[..., 0] - second[..., 0], first[..., 1] - second[..., 1]
        return rows.square_().add_(columns.square_())
    lengths = {m: m.square().sum(-1) for m in dict.fromkeys([*x, *y])}  # a map is in several pairs
    pairs = zip(x, y, strict=True)
    products = [(lengths[a][..., :, None] + lengths[b][..., None, :]).sub_(a @ b.mT, alpha=2) for a, b in pairs]
    # Rounding may leave a negative number where two positions are nearly equal.
    return torch.stack(products).clamp_(min=0)


@torch.no_grad()
def nearest(x: Sequence[Tensor], y: Sequence[Tensor]) -> tuple[Nearest, Nearest]:
    """Find for K pairs of maps (B, P, C), (B, Q, C) the nearest positions x -> y (K, B, P) and y -> x (K, B, Q).

    One matrix of distances serves both directions. The pairs are searched together, a few samples at a time while the
    distances lie in the cache: all of them at once may be many times the maps.
    """
    (batch, p, _), q = x[0].shape, y[0].shape[1]
    parts = []
    for part in chunks(batch, len(x) * p * q, x[0].device):
        samples = {m: m[part] for m in (*x, *y)}  # a map is in several pairs
        distances = squared_distances([samples[m] for m in x], [samples[m] for m in y])
        parts.append((_smallest(distances), _smallest(distances.mT.contiguous())))
    there, back = zip(*parts, strict=True)
    return _joined(there), _joined(back)


def _joined(parts: Sequence[Nearest]) -> Nearest:
    return Nearest(torch.cat([n.distance for n in parts], 1), torch.cat([n.index for n in parts], 1))


def _smallest(distances: Tensor) -> Nearest:
    # Ties are common: on a grid, a position is often equally far from two cells. The first one counts:
    # argmin is documented to return it, on every device, and the index of min() is not.
    index = distances.argmin(dim=-1)
    return Nearest(distances.gather(-1, index[..., None])[..., 0], index)


@torch.no_grad()
def keep_nearest(near: Nearest, count: int) -> Tensor:
    """Return the positions (..., count) of the `count` smallest distances, in ascending order of position."""
    if count == near.distance.shape[-1]:
        return torch.arange(count, device=near.index.device).expand_as(near.index)
    # A stable sort, not topk: of equal distances the first positions are kept, on every device.
    ranked = near.distance.argsort(dim=-1, stable=True)
    return ranked[..., :count].sort(dim=-1).values


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
