"""What the criterion is given, checked and brought into one form: float32 or float64, maps as (B, P, C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from runtime.errors import UserError
from vicregl.matching import regrid

Maps = Sequence[Tensor] | Sequence[Sequence[Tensor]]


def embeddings(views: Sequence[Tensor]) -> list[Tensor]:
    """(B, D) of every view -> (B, 1, D): maps of one position."""
    _check("embeddings", views, (2,), "(B, D)")
    return [_at_least_float32(z)[:, None] for z in views]


def stages(maps: Maps) -> list[list[Tensor]]:
    """Maps as a list over stages of lists over views; one stage may come as the list over views alone."""
    if not maps:
        raise UserError("the local criterion needs the maps of the views, and got none; was the model made at alpha 1?")
    found = [maps] if isinstance(maps[0], Tensor) else maps
    for stage in found:
        _check("maps", cast(Sequence[Tensor], stage), (3, 4), "(B, P, C) or (B, H, W, C)")
    return [[_at_least_float32(m) for m in cast(Sequence[Tensor], stage)] for stage in found]


def locations(grids: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """The location (B, P, 2) of every position of every map. A grid of another size is recomputed for (B, H, W, C)."""
    if len(grids) != len(maps):
        raise UserError(f"got the locations of {len(grids)} views and the maps of {len(maps)}")
    flat = []
    for view, (given, m) in enumerate(zip(grids, maps, strict=True)):
        grid = _at_least_float32(given)
        if grid.dim() == m.dim() == 4:
            grid = regrid(grid, m.shape[1], m.shape[2])
        if grid.dim() < 3 or grid.flatten(1, -2).shape != (m.shape[0], m.flatten(1, -2).shape[1], 2):
            raise UserError(
                f"view {view}: locations {tuple(given.shape)} do not belong to a map {tuple(m.shape)}; "
                "expected (B, P, 2) or (B, H, W, 2) with P = H * W the map's positions"
            )
        flat.append(grid.flatten(1, -2))
    return flat


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _check(name: str, views: Sequence[Tensor], dims: Sequence[int], expected: str) -> None:
    if len(views) < 2:
        raise UserError(f"{name}: got {len(views)} views; the criterion compares two or more")
    shapes = [tuple(view.shape) for view in views]
    same = {(len(shape), shape[0], shape[-1]) for shape in shapes}
    if len(same) != 1 or len(shapes[0]) not in dims:
        raise UserError(
            f"{name}: got shapes {shapes}; expected {expected}, the first and the last size those of all views"
        )
