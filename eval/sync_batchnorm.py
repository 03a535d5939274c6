"""BatchNorm whose statistics are of all processes' batches, on the CPU too: torch's SyncBatchNorm needs a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlooSyncBatchNorm(_BatchNorm):
    """nn.BatchNorm2d on the concatenation of every process's batch (B, C, H, W); any backend, twice its mean cost.

    `drop` and `act` are what timm's BatchNormAct2d does after it.
    """

    _abbr_ = "bn"  # mmcv names layers by it
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, **settings: Any) -> None:
        super().__init__(num_features, **settings)
        self.drop: nn.Module = nn.Identity()
        self.act: nn.Module = nn.Identity()

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() != 4:
            raise ValueError(f"expected (B, C, H, W), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Computed in float32; the result has the input's type."""
        self._check_input_dim(input)
        values = input.float()
        mean, variance = self._of_all(values) if self.training else (self.running_mean, self.running_var)
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shift = self.bias - mean * scale
        result = values * scale[:, None, None] + shift[:, None, None]
        return self.act(self.drop(result.to(input.dtype)))

    def _of_all(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance (C,), and the running ones moved towards them."""
        count = values.new_full((1,), values.numel() / values.shape[1])
        sums = distributed.all_reduce(torch.cat([values.sum((0, 2, 3)), count]))
        total = sums[-1]
        mean = sums[:-1] / total
        squares = (values - mean[:, None, None]).square().sum((0, 2, 3))
        variance = distributed.all_reduce(squares) / total
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (total / (total - 1)), self.momentum)
        return mean, variance


def convert(network: nn.Module, kind: str) -> nn.Module:
    """The network with every BatchNorm shared by the processes; parameters, statistics and keys stay."""
    if kind == "SyncBN":
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(network)
    for name, child in list(network.named_children()):
        setattr(network, name, _shared(child) if isinstance(child, _BatchNorm) else convert(child, kind))
    return network


def _shared(norm: _BatchNorm) -> GlooSyncBatchNorm:
    shared = GlooSyncBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(shared, name, parameter)
    for name, buffer in norm.named_buffers(recurse=False):
        setattr(shared, name, buffer)
    shared.drop, shared.act = getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity())
    return shared.train(norm.training)
