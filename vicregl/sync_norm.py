"""BatchNorm over the batch of all processes, on any device.

torch's SyncBatchNorm is for CUDA alone, and waits for the GPU twice a layer to leave out processes without samples.
There are none here: every process has at least one.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from vicregl.batch import ProcessBatch

M = TypeVar("M", bound=nn.Module)


def synchronise(model: M) -> M:
    """Make every BatchNorm of the model take its statistics over all processes; names of tensors stay.

    Gradients are meant to be averaged over the processes afterwards, each process's loss gradient being times their
    number (vicregl/batch.py).
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _synced(type(module))
    return model


def _synced(norm: type[_BatchNorm]) -> type[_BatchNorm]:
    """Derive a class with the forward of `SharedBatchNorm`; a module that changes to it keeps tensors and hooks."""
    return type(f"Sync{norm.__name__}", (SharedBatchNorm, norm), {})


class SharedBatchNorm(_BatchNorm):
    """Any of torch's BatchNorms, and timm's with an activation, on the samples of all processes, in float32."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the replaced norm accepts."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...), in training with mean and variance of every process's N."""
        if not self.training:
            return super().forward(x)
        normed = self._by_kernels(x) if has_kernels(x) else self._by_formula(x)
        return self.act(self.drop(normed)) if isinstance(self, BatchNormAct2d) else normed

    def _by_kernels(self, x: Tensor) -> Tensor:
        running = (self.running_mean, self.running_var)
        return _Kernels.apply(x, self.weight, self.bias, *running, self._share_of_this_batch(), self.eps)

    def _by_formula(self, x: Tensor) -> Tensor:
        return self._normalised(x if x.dtype == torch.float64 else x.float()).to(x.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        column = (-1, *[1] * (x.dim() - 2))
        # The number of values travels with their sums, in one all-reduce: processes may have different ones.
        sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), x.new_full((1,), x.numel() / x.shape[1])]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        # Of centred values, at the cost of a second all-reduce: in float32, E[x^2] - E[x]^2 cancels for a large mean.
        centred = x - mean.view(column)
        variance = _SumOverProcesses.apply(centred.square().sum(dims)) / count
        self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        normed = centred * (variance + self.eps).rsqrt().view(column)
        if self.affine:
            normed = normed * self.weight.view(column) + self.bias.view(column)
        return normed

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        share = self._share_of_this_batch()
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def _share_of_this_batch(self) -> float:
        """Count the batch; return its weight in the running statistics."""
        if self.num_batches_tracked is None:
            return 0.0
        self.num_batches_tracked.add_(1)
        return 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


def has_kernels(x: Tensor) -> bool:
    """Return whether torch has kernels for a BatchNorm over processes on the tensor's device."""
    return x.is_cuda


class _Kernels(torch.autograd.Function):
    """BatchNorm over processes by the kernels of torch's SyncBatchNorm: half precision stays, statistics are float32.

    One gather of the processes' (mean, 1 / deviation, count) in the forward pass, one sum in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        share: float,
        eps: float,
    ) -> Tensor:
        x, channels = _dense(x), x.shape[1]
        mean, inverse = torch.batch_norm_stats(x, eps)
        own = torch.cat([mean, inverse, mean.new_full((1,), x.numel() // channels)])
        processes = ProcessBatch(1, dist.get_world_size(), dist.get_rank())
        means, inverses, counts = processes.gather(own[None]).split([channels, channels, 1], dim=1)
        mean, inverse = torch.batch_norm_gather_stats_with_counts(
            x, means, inverses, running_mean, running_var, share, eps, counts.flatten()
        )
        ctx.save_for_backward(x, weight, mean, inverse, counts.int())
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, counts = ctx.saved_tensors
        outer, (of_x, *affine) = _dense(outer), ctx.needs_input_grad[:3]
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(outer, x, mean, inverse, weight, of_x, *affine)
        grad = None
        if of_x:
            both = torch.cat(sums)
            dist.all_reduce(both)
            total, centred = both.chunk(2)
            grad = torch.batch_norm_backward_elemt(outer, x, mean, inverse, weight, total, centred, counts)
        return grad, of_weight if affine[0] else None, of_bias if affine[1] else None, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


class _SumOverProcesses(torch.autograd.Function):
    """An all-reduce with a gradient: what a process adds enters the outputs of every process, so the gradient of its
    addend is the sum of theirs.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Tensor:
        total = outer.clone()
        dist.all_reduce(total)
        return total
