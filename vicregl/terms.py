"""The three terms over match slots, each with its gradient beside it.

A slot takes one position of the map of every sample. Values and gradients are made together, a few slots at a
time while they lie in the cache, and the gradients are added up on the maps: nothing of the size of the matched
maps is ever kept, however many matchings there are. `with_gradient` hands the sums to autograd.

`grad` arguments are (B, P, C), added to in place, or None where no gradient is wanted. Under several processes
gradients are times the number of processes, because DDP averages them (vicregl/batch.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vicregl.batch import ProcessBatch
from vicregl.matching import flat_rows, take

EPSILON = 1e-4  # under the square root of the variance, as published
# Numbers of a chunk of slots: about what a core's cache holds; on a GPU, what keeps it busy.
CHUNK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 28}


def invariance(
    maps: tuple[Tensor, Tensor],
    index: tuple[Tensor, Tensor],
    weights: Tensor,
    coefficient: float,
    grads: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """sum over s, b of w_s,b |x - y|^2, x and y the two maps' positions index[s, b] of sample b.

    maps (B, P, C) and (B, Q, C); index and weights (S, B). Gradient: 2 w (x - y) for x, the negative for y.
    """
    value = weights.new_zeros(())
    for slots in chunks(weights.shape[0], maps[0].shape[0] * maps[0].shape[2], weights.device):
        difference = take(maps[0], index[0][slots]) - take(maps[1], index[1][slots])  # (s, B, C)
        w = weights[slots]
        value += (torch.linalg.vector_norm(difference, dim=2).square_() * w).sum()
        if grads[0] is not None or grads[1] is not None:
            difference *= (w * (2 * coefficient))[:, :, None]
            _put(grads[0], index[0][slots], difference)
            _put(grads[1], index[1][slots], difference.neg_())
    return value


def variance_and_covariance(
    maps: Tensor,
    index: Tensor,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(sum_s w_s variance_s, sum_s w_s covariance_s), with statistics over the N samples of all processes.

    maps (B, P, C); index (S, B); weights (S,). For X_s (N, C), the slot's positions with the mean row taken off,
    and n = N - 1:

        var_s,c      = sum_b X_s[b, c]^2 / n
        variance_s   = (1 / C) sum_c relu(1 - sqrt(var_s,c + 1e-4))
        covariance_s = (1 / C) sum_c!=d Cov_s[c, d]^2,    Cov_s = X_s^T X_s / n

    The Gram matrix X_s X_s^T / n is N x N and has the same Frobenius norm as Cov_s, so the smaller of the two is made:

        covariance_s = (|X_s X_s^T / n|^2 - sum_c var_s,c^2) / C

    Gradients with respect to X_s; those with respect to the positions are the same, as their columns add up to 0:

        d variance_s   = -X_s[b, c] / (C n sqrt(var_s,c + 1e-4)) where the hinge is active
        d covariance_s = 4 / (C n) (X_s Cov_s - X_s[b, c] var_s,c),    X_s Cov_s = (X_s X_s^T / n) X_s
    """
    compute = _through_gram if batch.total <= maps.shape[2] else _through_moments
    return compute(maps, index, weights, coefficients, batch, grad)


def _through_gram(
    maps: Tensor,
    index: Tensor,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the terms for N <= C: each process makes its rows of the Gram matrices; maps are gathered once a view."""
    n, width = batch.total - 1, maps.shape[2]
    own = slice(batch.rank * batch.size, (batch.rank + 1) * batch.size)
    all_maps, all_index = batch.gather(maps), batch.gather(index.t().int()).t()
    variance, squared_var, squared_gram = weights.new_zeros(3)
    for slots in chunks(index.shape[0], batch.total * width, maps.device):
        x = take(all_maps, all_index[slots])  # (s, N, C); a copy, so it is centred in place
        x -= x.mean(1, keepdim=True)
        mine, w = x[:, own], weights[slots]
        var = x.square().sum(1) / n  # (s, C)
        gram = _product(mine, x.transpose(1, 2), 1 / n)  # (s, B, N)
        variance += w @ _hinge(var).mean(1)
        squared_var += w @ var.square().sum(1)
        squared_gram += w @ gram.square().sum((1, 2))
        if grad is not None:
            scale = w[:, None] * batch.processes
            own_scale = scale * (coefficients[1] * 4 / (width * n))
            of_x = scale * coefficients[0] * _hinge_slope(var, n) - own_scale * var
            _put(grad, index[slots], (mine * of_x[:, None]).baddbmm_(gram.mul_(own_scale[:, None]), x))
    return variance, (batch.sum(squared_gram) - squared_var) / width


def _through_moments(
    maps: Tensor,
    index: Tensor,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grad: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Compute the terms for N > C: processes sum parts of the means (S, C), then of the covariances (S, C, C)."""
    n, width = batch.total - 1, maps.shape[2]
    variance, covariance = weights.new_zeros(2)
    # Undivided among several processes: one communication a view, not one a chunk.
    for slots in chunks(index.shape[0], batch.size * width, maps.device, undivided=batch.processes > 1):
        x, w = take(maps, index[slots]), weights[slots]  # (s, B, C)
        x -= batch.sum(x.sum(1, keepdim=True)) / batch.total
        cov = batch.sum(_product(x.transpose(1, 2), x, 1 / n))  # (s, C, C)
        var = cov.diagonal(dim1=1, dim2=2).clone()
        cov.diagonal(dim1=1, dim2=2).zero_()
        variance += w @ _hinge(var).mean(1)
        covariance += w @ cov.square().sum((1, 2)) / width
        if grad is not None:
            scale = w[:, None] * batch.processes
            # The slope of the variance goes on the diagonal: X diag(slope) + X Cov is one product.
            cov *= (scale * (coefficients[1] * 4 / (width * n)))[:, None]
            cov.diagonal(dim1=1, dim2=2).copy_(scale * coefficients[0] * _hinge_slope(var, n))
            _put(grad, index[slots], torch.bmm(x, cov))
    return variance, covariance


def _hinge(var: Tensor) -> Tensor:
    return (1 - (var + EPSILON).sqrt()).relu_()


def _hinge_slope(var: Tensor, n: int) -> Tensor:
    """d variance_s / d X_s[b, c] = slope[s, c] X_s[b, c]; (s, C) -> (s, C)."""
    deviation = (var + EPSILON).sqrt()
    return (deviation < 1) / (deviation * (-n * var.shape[1]))


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return scale * x @ y for a batch of matrices; scaled inside, so that large inputs do not overflow."""
    out = x.new_empty((x.shape[0], x.shape[1], y.shape[2]))
    return torch.baddbmm(out, x, y, beta=0, alpha=scale, out=out)


def _put(grad: Tensor | None, index: Tensor, values: Tensor) -> None:
    """Add (s, B, C) to the positions of (B, P, C) that `take` read: its transpose."""
    if grad is not None:
        grad.view(-1, grad.shape[2]).index_add_(0, flat_rows(grad, index), values.flatten(0, 1))


def chunks(slots: int, numbers_a_slot: int, device: torch.device, undivided: bool = False) -> Iterator[slice]:
    """Yield slices of independent slots, each small enough to stay in the cache."""
    step = slots if undivided else max(1, CHUNK_NUMBERS.get(device.type, 1 << 28) // numbers_a_slot)
    for start in range(0, slots, step):
        yield slice(start, start + step)


def with_gradient(value: Tensor, tensors: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
    """Return `value` with a gradient: its derivatives with respect to `tensors` are `grads`, computed already."""
    return _KnownGradient.apply(value, len(tensors), *tensors, *grads)


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, number: int, *tensors_and_grads: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors_and_grads[number:])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        # A factor of 1 needs no scaled copy of every map. On a GPU, reading the factor would wait for it.
        if outer.device.type != "cpu" or float(outer) != 1:
            grads = tuple(grad if grad is None else grad * outer for grad in grads)
        return None, None, *grads, *[None] * len(grads)
