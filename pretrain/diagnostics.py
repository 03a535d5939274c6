"""How good are the features: diagnostics of collapse (spread, correlation, rank), and an online linear probe."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.config import ProbeConfig
from runtime.distributed import gather_rows
from runtime.errors import NotFiniteError
from runtime.world import World

# The reported accuracy is an exponential moving average over about this many steps.
AVERAGE_STEPS = 50


@dataclass
class Moments:
    """Sums over the rows of an (n, d) feature matrix, in float64."""

    count: int  # n
    total: Tensor  # (d,): sum of the rows
    gram: Tensor  # (d, d): X^T X
    squares: Tensor  # (): sum of all squares
    gram_of_rows: Tensor | None  # (n, n): X X^T, where that is the smaller one

    @classmethod
    @torch.no_grad()
    def from_features(cls, features: Tensor) -> Moments:
        x = features.double()
        gram_of_rows = x @ x.T if x.shape[0] < x.shape[1] else None
        return cls(x.shape[0], x.sum(dim=0), x.T @ x, x.square().sum(), gram_of_rows)

    @classmethod
    def from_processes(cls, features: Tensor, world: World) -> Moments:
        """Collect what all processes have, equally many rows each, at process 0; elsewhere the sums are of no use."""
        if world.size == 1 or world.size * features.shape[0] < features.shape[1]:
            return cls.from_features(gather_rows(features, world))
        moments = cls.from_features(features)
        moments.count *= world.size
        moments.gram_of_rows = None  # of this process's rows alone
        for part in (moments.total, moments.gram, moments.squares):
            dist.reduce(part, dst=0)
        return moments


def feature_diagnostics(features: Tensor | Moments, name: str) -> dict[str, float]:
    """Compute `std_<name>`, `correlation_<name>` and `rank_<name>` of (n, d) features, n >= 2.

    std: mean over dimensions of the standard deviation, divided by the root mean square of all entries, which makes it
        independent of scale: 1 for centred independent dimensions, 0 for constant features.
    correlation: root mean square of the off-diagonal correlations; 0 if decorrelated, 1 if one dimension is repeated.
    rank: effective rank, exp of the entropy of the normalised singular values (RankMe, arXiv 2210.02885), at most
        min(n, d).
    """
    moments = features if isinstance(features, Moments) else Moments.from_features(features)
    if not torch.isfinite(moments.gram).all():
        raise NotFiniteError(
            f"the network's {name} features are not finite; lower optimizer.base_lr, or warm up longer"
        )
    n = moments.count
    mean = moments.total / n
    covariance = (moments.gram - n * torch.outer(mean, mean)) / (n - 1)
    std = covariance.diagonal().clamp_min(0).sqrt()
    scale = (moments.squares / (n * len(mean))).sqrt()
    return {
        f"std_{name}": _ratio(std.mean(), scale),
        f"correlation_{name}": _rms_correlation(covariance, std),
        f"rank_{name}": _effective_rank(moments.gram if moments.gram_of_rows is None else moments.gram_of_rows),
    }


def diagnose(features: Tensor, name: str, world: World) -> dict[str, float]:
    """Compute `feature_diagnostics` of all processes' rows at process 0; {} elsewhere. Every process calls this.

    A training does not end because a diagnostic cannot be computed: it is left out, and a warning is printed.
    """
    moments = Moments.from_processes(features, world)
    if not world.is_main:
        return {}
    try:
        return feature_diagnostics(moments, name)
    except RuntimeError as error:  # of the eigenvalues, or for want of memory; NotFiniteError is none
        _warn_once(name, str(error).partition("\n")[0])
        return {}


@cache
def _warn_once(name: str, reason: str) -> None:
    print(f"warning: no diagnostics of the {name} features: {reason}", file=sys.stderr, flush=True)


def _ratio(a: Tensor, b: Tensor) -> float:
    return float(a / b) if b > 0 else 0.0


def _rms_correlation(covariance: Tensor, std: Tensor) -> float:
    varying = std > 1e-9 * std.max()  # a constant dimension has no correlation
    count = int(varying.sum())
    if count < 2:
        return 0.0
    correlation = covariance[varying][:, varying] / torch.outer(std[varying], std[varying])
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return float((off_diagonal.clamp_min(0) / (count * (count - 1))).sqrt())


def _effective_rank(gram: Tensor) -> float:
    singular_values = _eigenvalues(gram).clamp_min(0).sqrt()
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total
    return float(torch.special.entr(shares).sum().exp())


def _eigenvalues(matrix: Tensor) -> Tensor:
    try:
        return torch.linalg.eigvalsh(matrix)
    except torch.linalg.LinAlgError:  # CUDA's algorithm may not converge on a singular matrix; the CPU's does
        return torch.linalg.eigvalsh(matrix.cpu())


def view_diagnostics(pooled: Tensor, local: Tensor, world: World) -> dict[str, float]:
    """Diagnose one view's features, pooled (B, F) and local (B * P, F), of all processes; {} but for process 0."""
    scores: dict[str, float] = {}
    for name, features in (("pooled", pooled), ("local", local)):
        scores |= diagnose(features, name, world)
    return scores


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
