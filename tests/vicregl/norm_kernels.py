"""On the CPU, by their formulas, the kernels for BatchNorm over processes that torch has for CUDA alone.

Importing registers them in torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

CPU = torch.library.Library("aten", "IMPL", "CPU")


def across(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def column(of: Tensor | float, x: Tensor) -> Tensor:
    return torch.as_tensor(of).reshape(-1, *[1] * (x.dim() - 2))


def batch_norm_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.mean(across(x)), (x.var(across(x), correction=0) + eps).rsqrt()


def batch_norm_gather_stats_with_counts(
    x: Tensor,
    means: Tensor,
    inverses: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    counts: Tensor,
) -> tuple[Tensor, Tensor]:
    """(W, C) of W processes, with counts (W,) -> (C,) of them all."""
    shares = (counts / counts.sum())[:, None]
    mean = (shares * means).sum(0)
    variance = (shares * (inverses**-2 - eps + (means - mean) ** 2)).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * counts.sum() / (counts.sum() - 1), momentum)
    return mean, (variance + eps).rsqrt()


def batch_norm_elemt(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse: Tensor, eps: float
) -> Tensor:
    scale, shift = 1.0 if weight is None else weight, 0.0 if bias is None else bias
    return (x - column(mean, x)) * column(inverse * scale, x) + column(shift, x)


def batch_norm_backward_reduce(
    outer: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, weight: Tensor | None, of_x: bool, w: bool, b: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, centred = outer.sum(across(x)), (outer * (x - column(mean, x))).sum(across(x))
    return total, centred, centred * inverse, total.clone()


def batch_norm_backward_elemt(
    outer: Tensor,
    x: Tensor,
    mean: Tensor,
    inverse: Tensor,
    weight: Tensor | None,
    total: Tensor,
    centred: Tensor,
    counts: Tensor,
) -> Tensor:
    n, scale = counts.sum(), inverse * (1.0 if weight is None else weight)
    slope = column(inverse**2 * centred / n, x)
    return (outer - column(total / n, x) - (x - column(mean, x)) * slope) * column(scale, x)


for kernel in (
    batch_norm_stats,
    batch_norm_gather_stats_with_counts,
    batch_norm_elemt,
    batch_norm_backward_reduce,
    batch_norm_backward_elemt,
):
    CPU.impl(kernel.__name__, kernel)
