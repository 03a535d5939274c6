"""The three terms over match slots, each with its gradient beside it.

A slot takes one position of a view's map for every sample. The slots of all views are one call. Values and gradients
are made together, a few slots at a time while they lie in the cache, and the gradients are added up on the maps:
nothing of the size of the matched positions is ever kept, however many matchings there are. `with_gradient` hands the
sums to autograd.

`maps` are (B, P, C) of every view, and `grads` the same, added to in place, or None where no gradient is wanted. Under
several processes gradients are times the number of processes, because DDP averages them (vicregl/batch.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vicregl.batch import ProcessBatch

EPSILON = 1e-4  # under the square root of the variance, as published
# Numbers of a chunk: about what a core's cache holds; on a GPU, what keeps it busy (0.25 GB in float32).
CHUNK_NUMBERS = {"cpu": 1 << 19, "cuda": 1 << 26}
MESSAGE_NUMBERS = 1 << 26  # of a chunk that processes sum: few messages, and little memory
INDEX_BYTES = 4  # positions are gathered as int32

Maps = Sequence[Tensor]
Grads = Sequence[Tensor | None]


@dataclass(frozen=True)
class Slots:
    """S slots of any views; each takes one position of its view's map for every sample."""

    views: list[int]  # of each slot
    positions: Tensor  # (S, B)
    sizes: Tensor  # (S, 1): P of each slot's map

    def rows(self) -> Tensor:
        """Return (S, B): where the positions are in the maps as (B * P, C)."""
        return self.positions + self.sizes * torch.arange(self.positions.shape[1], device=self.sizes.device)

    def runs(self, part: slice) -> Iterator[tuple[int, slice]]:
        """Divide a part of the slots into runs of the same view."""
        start = part.start
        for view, run in groupby(self.views[part]):
            end = start + len(list(run))
            yield view, slice(start, end)
            start = end


class Places:
    """What the slots take: `take` reads it from the maps, `put` adds to the gradients there."""

    def __init__(self, slots: Slots, maps: Maps, grads: Grads | None = None) -> None:
        self.slots, self.rows = slots, slots.rows()
        self.maps = [m.flatten(0, 1) for m in maps]
        self.grads = [g if g is None else g.flatten(0, 1) for g in grads or [None] * len(maps)]

    def take(self, part: slice) -> Tensor:
        """Return (s, B, C), a copy."""
        rows = self.rows[part]
        values = self.maps[0].new_empty(*rows.shape, self.maps[0].shape[1])
        for view, run in self.slots.runs(part):
            out = values[run.start - part.start : run.stop - part.start].flatten(0, 1)
            torch.index_select(self.maps[view], 0, self.rows[run].flatten(), out=out)
        return values

    def put(self, part: slice, values: Tensor) -> None:
        """Add (s, B, C) to the gradients of the positions that `take` reads: its transpose."""
        for view, run in self.slots.runs(part):
            if (grad := self.grads[view]) is not None:
                of_run = values[run.start - part.start : run.stop - part.start]
                grad.index_add_(0, self.rows[run].flatten(), of_run.flatten(0, 1))


def invariance(maps: Maps, slots: tuple[Slots, Slots], weights: Tensor, coefficient: float, grads: Grads) -> Tensor:
    """Sum w_s,b |x - y|^2 over s and b, x and y what `slots[0]` and `slots[1]` take of sample b at s; weights (S, B).

    Gradient: 2 w (x - y) for x, the negative for y.
    """
    value = weights.new_zeros(())
    first, second = (Places(side, maps, grads) for side in slots)
    for part in chunks(weights.shape[0], weights.shape[1] * maps[0].shape[2], weights.device):
        difference, w = first.take(part).sub_(second.take(part)), weights[part]  # (s, B, C)
        value += (torch.linalg.vector_norm(difference, dim=2).square_() * w).sum()
        if any(grad is not None for grad in grads):
            difference *= (w * (2 * coefficient))[:, :, None]
            first.put(part, difference)
            second.put(part, difference.neg_())
    return value


def variance_and_covariance(
    maps: Maps,
    slots: Slots,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grads: Grads,
) -> tuple[Tensor, Tensor]:
    """Return (sum_s w_s variance_s, sum_s w_s covariance_s), with statistics over the N samples of all processes.

    weights (S,). For X_s (N, C), the slot's positions with the mean row taken off, and n = N - 1:

        var_s,c      = sum_b X_s[b, c]^2 / n
        variance_s   = (1 / C) sum_c relu(1 - sqrt(var_s,c + 1e-4))
        covariance_s = (1 / C) sum_c!=d Cov_s[c, d]^2,    Cov_s = X_s^T X_s / n

    The Gram matrix X_s X_s^T / n is N x N and has the same Frobenius norm as Cov_s, so one of the two is made, as
    `uses_gram` says:

        covariance_s = (|X_s X_s^T / n|^2 - sum_c var_s,c^2) / C

    Gradients with respect to X_s; those with respect to the positions are the same, as their columns add up to 0:

        d variance_s   = -X_s[b, c] / (C n sqrt(var_s,c + 1e-4)) where the hinge is active
        d covariance_s = 4 / (C n) (X_s Cov_s - X_s[b, c] var_s,c),    X_s Cov_s = (X_s X_s^T / n) X_s
    """
    compute = _through_gram if uses_gram(maps, slots, batch) else _through_moments
    return compute(maps, slots, weights, coefficients, batch, grads)


def uses_gram(maps: Maps, slots: Slots, batch: ProcessBatch) -> bool:
    """Choose between Gram matrices (N x N) and covariances (C x C), by their work and by what processes communicate.

    Gram matrices take N / C times the work of covariances. For them the maps are gathered, P rows of every sample; of
    covariances S matrices are summed, which may be many times the bytes. One process makes the smaller matrices. With
    N > C several processes still make Gram matrices where covariances would communicate at least N / C times the bytes.
    """
    samples, width, size = batch.total, maps[0].shape[2], maps[0].element_size()
    if samples <= width or batch.processes == 1:
        return samples <= width
    count = len(slots.views)
    gathered = samples * (size * width * sum(m.shape[1] for m in maps) + INDEX_BYTES * count)
    summed = size * count * (width + width * width)
    return samples * gathered <= width * summed


def _through_gram(
    maps: Maps,
    slots: Slots,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grads: Grads,
) -> tuple[Tensor, Tensor]:
    """Compute the terms by Gram matrices: each process makes its rows of them, from the gathered maps."""
    n, width = batch.total - 1, maps[0].shape[2]
    own = slice(batch.rank * batch.size, (batch.rank + 1) * batch.size)
    all_places = places = Places(slots, maps, grads)
    if batch.processes > 1:
        everyone = Slots(slots.views, batch.gather(slots.positions.t().int()).t(), slots.sizes)
        all_places = Places(everyone, [batch.gather(m) for m in maps])
    variance, squared_var, squared_gram = weights.new_zeros(3)
    for part in chunks(len(weights), batch.total * width, weights.device):
        x = all_places.take(part)  # (s, N, C)
        x -= x.mean(1, keepdim=True)
        mine, w = x[:, own], weights[part]
        var = x.square().sum(1) / n  # (s, C)
        gram = _product(mine, x.transpose(1, 2), 1 / n)  # (s, B, N)
        variance += w @ _hinge(var).mean(1)
        squared_var += w @ var.square().sum(1)
        squared_gram += w @ gram.square().sum((1, 2))
        if any(grad is not None for grad in grads):
            scale = w[:, None] * batch.processes
            own_scale = scale * (coefficients[1] * 4 / (width * n))
            of_x = scale * coefficients[0] * _hinge_slope(var, n) - own_scale * var
            places.put(part, (mine * of_x[:, None]).baddbmm_(gram.mul_(own_scale[:, None]), x))
    return variance, (batch.sum(squared_gram) - squared_var) / width


def _through_moments(
    maps: Maps,
    slots: Slots,
    weights: Tensor,
    coefficients: tuple[float, float],
    batch: ProcessBatch,
    grads: Grads,
) -> tuple[Tensor, Tensor]:
    """Compute the terms by covariances: processes sum parts of the means (S, C), then of the covariances (S, C, C)."""
    n, width = batch.total - 1, maps[0].shape[2]
    variance, covariance = weights.new_zeros(2)
    places = Places(slots, maps, grads)
    # Larger chunks among several processes, which communicate twice a chunk.
    least, numbers = (MESSAGE_NUMBERS, max(batch.size, width)) if batch.processes > 1 else (0, batch.size)
    for part in chunks(len(weights), numbers * width, weights.device, least):
        x, w = places.take(part), weights[part]  # (s, B, C)
        x -= batch.sum(x.sum(1, keepdim=True)) / batch.total
        cov = batch.sum(_product(x.transpose(1, 2), x, 1 / n))  # (s, C, C)
        var = cov.diagonal(dim1=1, dim2=2).clone()
        cov.diagonal(dim1=1, dim2=2).zero_()
        variance += w @ _hinge(var).mean(1)
        covariance += w @ cov.square().sum((1, 2)) / width
        if any(grad is not None for grad in grads):
            scale = w[:, None] * batch.processes
            # The slope of the variance goes on the diagonal: X diag(slope) + X Cov is one product.
            cov *= (scale * (coefficients[1] * 4 / (width * n)))[:, None]
            cov.diagonal(dim1=1, dim2=2).copy_(scale * coefficients[0] * _hinge_slope(var, n))
            places.put(part, torch.bmm(x, cov))
    return variance, covariance


def _hinge(var: Tensor) -> Tensor:
    return (1 - (var + EPSILON).sqrt()).relu_()


def _hinge_slope(var: Tensor, n: int) -> Tensor:
    """Return the slope (s, C) in d variance_s / d X_s[b, c] = slope[s, c] X_s[b, c]."""
    deviation = (var + EPSILON).sqrt()
    return (deviation < 1) / (deviation * (-n * var.shape[1]))


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    """Return scale * x @ y for a batch of matrices; scaled inside, so that large inputs do not overflow."""
    out = x.new_empty((x.shape[0], x.shape[1], y.shape[2]))
    return torch.baddbmm(out, x, y, beta=0, alpha=scale, out=out)


def chunks(count: int, numbers_each: int, device: torch.device, least: int = 0) -> Iterator[slice]:
    """Yield slices of independent slots or samples, each small enough to stay in the cache, or with `least` numbers."""
    step = max(1, max(least, CHUNK_NUMBERS.get(device.type, 1 << 26)) // numbers_each)
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


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
