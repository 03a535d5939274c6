"""BatchNorm over the batch of all processes: torch's own on CUDA, and one for the CPU, where torch has none."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

M = TypeVar("M", bound=nn.Module)


def synchronise(model: M, device: torch.device) -> M:
    """Make every BatchNorm of the model take its statistics over all processes; names of tensors stay.

    Gradients are meant to be averaged over the processes afterwards, each process's loss gradient being times their
    number (vicregl/batch.py).
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(model)  # timm's, which knows its norms with an activation inside
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _synced(type(module))
    return model


def _synced(norm: type[_BatchNorm]) -> type[_BatchNorm]:
    """The class with the forward of `SharedBatchNorm`; a module of it keeps its tensors, children and hooks."""
    return type(f"Sync{norm.__name__}", (SharedBatchNorm, norm), {})


class SharedBatchNorm(_BatchNorm):
    """Any of torch's BatchNorms, and timm's with an activation, on the samples of all processes, in float32."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept what the replaced norm accepts."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, ...) -> (N, C, ...), in training with mean and variance of every process's N."""
        if not self.training:
            return super().forward(x)
        normed = self._normalised(x if x.dtype == torch.float64 else x.float()).to(x.dtype)
        return self.act(self.drop(normed)) if isinstance(self, BatchNormAct2d) else normed

    def _normalised(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.dim())]
        column = (-1, *[1] * (x.dim() - 2))
        # The number of values travels with their sums, in one all-reduce: processes may have different ones.
        sums = _SumOverProcesses.apply(torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])]))
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
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


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
