"""LARS, AdamW and the schedule of their learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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
            trained = [p for p in group["params"] if p.grad is not None]
            matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
            # All tensors of a kind by one call of torch's foreach operations, which are a few kernels on CUDA.
            if matrices:
                self._move(matrices, _adaptive_updates(matrices, group), group)
            if vectors:
                self._move(vectors, [p.grad for p in vectors], group)

    def _move(self, parameters: list[Tensor], updates: list[Any], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if "momentum" not in self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(momenta, group["momentum"])
        torch._foreach_add_(momenta, updates)
        torch._foreach_add_(parameters, momenta, alpha=-group["lr"])


def _adaptive_updates(parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return the gradients with weight decay, each scaled to the norm trust_coefficient * ||w||."""
    grads: list[Any] = [parameter.grad for parameter in parameters]
    updates = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
    weight_norms, update_norms = (torch.stack(torch._foreach_norm(tensors)) for tensors in (parameters, updates))
    scales = group["trust_coefficient"] * weight_norms / update_norms
    # Without a norm of weight or gradient the ratio is undefined: the update stays unscaled.
    scales = torch.where((weight_norms > 0) & (update_norms > 0), scales, torch.ones_like(scales))
    torch._foreach_mul_(updates, list(scales.unbind()))
    return updates


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Create the optimiser of the trainable parameters, with decay on tensors of two or more dimensions alone.

    Position embeddings and class tokens of a transformer have more, and no decay under AdamW, as timm says.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if config.name == "lars":
        return LARS(trainable, 0.0, config.weight_decay, config.momentum, config.trust_coefficient)
    spared = {id(p) for module in model.modules() for p in _without_decay(module)}
    decayed = [p for p in trainable if p.ndim > 1 and id(p) not in spared]
    others = [p for p in trainable if p.ndim <= 1 or id(p) in spared]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    on_cuda = all(p.is_cuda for p in trainable)
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(config.betas[0], config.betas[1]), fused=True if on_cuda else None)
    adamw.register_load_state_dict_pre_hook(_keep_kernels)
    return adamw


def _without_decay(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that timm exempts from weight decay by name."""
    exempt: Any = getattr(module, "no_weight_decay", None)
    if exempt is None:
        return []
    names = exempt()
    return [parameter for name, parameter in module.named_parameters() if name in names]


def _keep_kernels(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep this device's kernels: a checkpoint names those of the device that wrote it."""
    groups = zip(state["param_groups"], optimizer.param_groups, strict=True)
    return state | {"param_groups": [saved | {"fused": own["fused"]} for saved, own in groups]}


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
