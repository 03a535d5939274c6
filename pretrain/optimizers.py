"""LARS, AdamW and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pretrain.config import OptimizerConfig


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling with momentum (You et al., arXiv 1708.03888).

    A tensor of two or more dimensions is updated by its gradient with weight decay, scaled to the norm
    trust_coefficient * ||w||; a tensor of one dimension (bias, norm) by its gradient alone.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        update = parameter.grad
        assert update is not None
        if parameter.ndim > 1:
            update = update.add(parameter, alpha=group["weight_decay"])
            weight_norm, update_norm = parameter.norm(), update.norm()
            scale = group["trust_coefficient"] * weight_norm / update_norm
            # Without a norm of weight or gradient the ratio is undefined: the update stays unscaled.
            update = update * torch.where((weight_norm > 0) & (update_norm > 0), scale, torch.ones_like(scale))
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(update)
        parameter.sub_(state["momentum"] * group["lr"])


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Create the optimiser of the trainable parameters, with decay on tensors of two or more dimensions alone."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if config.name == "lars":
        return LARS(trainable, 0.0, config.weight_decay, config.momentum, config.trust_coefficient)
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]))


def learning_rate(step: int, config: OptimizerConfig, batch_size: int, total_steps: int, warmup_steps: int) -> float:
    """Return the rate: linear warm-up from 0 to base_lr * batch_size / 256, then a cosine to end_lr_ratio of that peak.

    `step` counts from 0; from `total_steps` on the rate stays at its end value.
    """
    peak = config.base_lr * batch_size / 256
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    share = 0.5 * (1 + math.cos(math.pi * progress))
    end = peak * config.end_lr_ratio
    return peak * share + end * (1 - share)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value
