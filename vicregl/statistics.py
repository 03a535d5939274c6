"""Variance and covariance of match slots, without a C x C matrix where the batch is smaller than C.

A slot s takes one position of the map of every sample: X_s is (N, C), its rows centred. With n' = N - 1:

    var_s,c    = sum_b X_s[b, c]^2 / n'
    variance_s = mean over c of relu(1 - sqrt(var_s,c + 1e-4))
    covariance_s = (1 / C) sum over c != d of Cov_s[c, d]^2,  Cov_s = X_s^T X_s / n'

The squares of Cov sum up to the same as those of the Gram matrix X_s X_s^T / n' (N x N), because
|X^T X|_F = |X X^T|_F, so the smaller of the two is made; its diagonal part is the squared variances:

    covariance_s = (|Cov_s|_F^2 - sum_c var_s,c^2) / C

The gradients are the matrix products X Cov = (X X^T) X / n' again, so they are made while X_s is at hand and
nothing but their sum on the map is kept: memory does not grow with the number of matchings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vicregl.batch import Batch
from vicregl.matching import flat_rows, take

EPSILON = 1e-4  # under the square root of the variance, as published
# Numbers of X that are worked on at a time: about what a core's cache holds; on a GPU, what keeps it busy.
CHUNK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 28}


def slot_statistics(maps: Tensor, index: Tensor, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum_s w_s variance_s, sum_s w_s covariance_s) over the slots, with the statistics over all processes.

    maps (B, P, C); index (S, B): the position that slot s takes in each sample; weights (S,).
    """
    variance, covariance = _SlotStatistics.apply(maps, index, weights, batch)
    return variance, covariance


class _SlotStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Tensor, index: Tensor, weights: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        grads = maps.new_zeros((2, *maps.shape)) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(grads)
        compute = _by_gram if batch.total <= maps.shape[2] else _by_moments
        variance, covariance = compute(maps.detach(), index, weights, batch, grads)
        return variance, covariance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (grads,) = ctx.saved_tensors
        return torch.addcmul(grads[0] * outer[0], grads[1], outer[1]), None, None, None


def _by_gram(maps: Tensor, index: Tensor, weights: Tensor, batch: Batch, grads: Tensor | None) -> Tensor:
    """For N <= C: each process makes its own rows of the Gram matrices. Communicates the maps and indices once."""
    freedom, width = batch.total - 1, maps.shape[2]
    own = slice(batch.rank * batch.size, (batch.rank + 1) * batch.size)
    all_maps, all_index = batch.gather(maps), batch.gather(index.t()).t()
    variance, squares, own_squares = weights.new_zeros(3)
    for slots in _chunks(index.shape[0], batch.total * width, maps.device):
        x = _centred(take(all_maps, all_index[slots]))
        mine, w = x[:, own], weights[slots]
        var = x.square().sum(1) / freedom  # (s, C)
        gram = _product(mine, x.transpose(1, 2), 1 / freedom)  # (s, B, N)
        variance += w @ _hinge(var).mean(1)
        squares += w @ var.square().sum(1)
        own_squares += w @ gram.square().sum((1, 2))
        if grads is not None:
            scale = (w * batch.processes)[:, None, None]
            _put(grads[0], index[slots], mine * (scale * _hinge_slope(var, freedom)))
            d_squares = torch.baddbmm(mine * var[:, None], gram, x, beta=-1)  # (s, B, C)
            _put(grads[1], index[slots], d_squares.mul_(scale * 4 / (freedom * width)))
    return torch.stack([variance, (batch.sum(own_squares) - squares) / width])


def _by_moments(maps: Tensor, index: Tensor, weights: Tensor, batch: Batch, grads: Tensor | None) -> Tensor:
    """For N > C: partial moments, summed over the processes after a shared mean. Communicates (S, C) and (S, C, C)."""
    freedom, width = batch.total - 1, maps.shape[2]
    variance, covariance = weights.new_zeros(2)
    for slots in _chunks(index.shape[0], batch.size * width, maps.device, undivided=batch.processes > 1):
        x = take(maps, index[slots])  # (s, B, C)
        x -= batch.sum(x.sum(1, keepdim=True)) / batch.total
        cov = batch.sum(_product(x.transpose(1, 2), x, 1 / freedom))  # (s, C, C)
        var, w = cov.diagonal(dim1=1, dim2=2).clone(), weights[slots]
        cov.diagonal(dim1=1, dim2=2).zero_()
        variance += w @ _hinge(var).mean(1)
        covariance += w @ (cov.square().sum((1, 2)) / width)
        if grads is not None:
            scale = (w * batch.processes)[:, None, None]
            _put(grads[1], index[slots], torch.bmm(x, cov).mul_(scale * 4 / (freedom * width)))
            _put(grads[0], index[slots], x.mul_(scale * _hinge_slope(var, freedom)))
    return torch.stack([variance, covariance])


def _hinge(var: Tensor) -> Tensor:
    return (1 - (var + EPSILON).sqrt()).relu_()


def _hinge_slope(var: Tensor, freedom: int) -> Tensor:
    """d variance_s / d X_s[b, c] = slope[s, c] X_s[b, c]; (s, C) -> (s, 1, C)."""
    deviation = (var + EPSILON).sqrt()
    return ((deviation < 1) / (deviation * (-freedom * var.shape[1])))[:, None]


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """scale * x @ y for a batch of matrices; scaled inside, so that large inputs do not overflow on the way."""
    out = x.new_empty((x.shape[0], x.shape[1], y.shape[2]))
    return torch.baddbmm(out, x, y, beta=0, alpha=scale, out=out)


def _put(maps: Tensor, index: Tensor, values: Tensor) -> None:
    """The transpose of take: add (s, B, C) to the positions that they came from."""
    maps.view(-1, maps.shape[2]).index_add_(0, flat_rows(maps, index), values.flatten(0, 1))


def _centred(x: Tensor) -> Tensor:
    return x.sub_(x.mean(1, keepdim=True))


def _chunks(slots: int, numbers_a_slot: int, device: torch.device, undivided: bool = False) -> Iterator[slice]:
    """Slots are independent of each other, so they are worked through in pieces that stay in the cache."""
    step = slots if undivided else max(1, CHUNK_NUMBERS.get(device.type, 1 << 28) // numbers_a_slot)
    for start in range(0, slots, step):
        yield slice(start, start + step)
