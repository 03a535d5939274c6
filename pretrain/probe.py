"""A linear classifier that monitors the features during pretraining, without an effect on them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ProbeConfig

# The reported accuracy is an exponential moving average over about this many steps.
AVERAGE_STEPS = 50


class OnlineProbe(nn.Module):
    """Measures top-1 on detached pooled features, with its own loss and optimiser.

    The published code adds the probe's loss to the self-supervised one, which therefore needs labels.
    """

    top1: Tensor
    weight: Tensor

    def __init__(self, features: int, classes: int, config: ProbeConfig) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(features, affine=False)
        self.head = nn.Linear(features, classes)
        self.register_buffer("top1", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))
        self.optimizer = torch.optim.SGD(self.parameters(), config.learning_rate, config.momentum)

    def update(self, pooled: Tensor, labels: Tensor) -> None:
        """Take one step on (B, F) features and (B,) labels."""
        with torch.enable_grad():
            logits = self.head(self.norm(pooled.detach().to(self.head.weight.dtype)))
            loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        accuracy = (logits.detach().argmax(dim=1) == labels).to(self.top1.dtype).mean()
        self.top1.lerp_(accuracy, 1 / AVERAGE_STEPS)
        self.weight.lerp_(torch.ones_like(self.weight), 1 / AVERAGE_STEPS)

    def accuracy(self) -> float:
        """Return top-1 in percent over the last steps; 0 before the first."""
        return float(100 * self.top1 / self.weight) if self.weight > 0 else 0.0
