"""Has the representation collapsed? Three numbers of a feature matrix; and the figures of result.json."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.distributed import World, largest
from runtime.errors import NotFiniteError
from vicregl.model import ModelOutput

if TYPE_CHECKING:
    from pretrain.training import Training

GB = 1e9  # bytes
LAST_FIGURES = ("probe_top1", "images_skipped")


@dataclass
class Moments:
    """What the diagnostics need of an (n, d) feature matrix, in float64: sums, which add up over processes."""

    count: int  # n
    total: Tensor  # (d,): the sum of the rows
    gram: Tensor  # (d, d): X^T X
    squares: Tensor  # (): the sum of all squares

    @classmethod
    @torch.no_grad()
    def of(cls, features: Tensor) -> Moments:
        features = features.double()
        return cls(features.shape[0], features.sum(dim=0), features.T @ features, features.square().sum())

    def over_processes(self, world: World) -> Moments:
        """Of the rows of all processes, which have equally many."""
        if world.size > 1:
            self.count *= world.size
            for part in (self.total, self.gram, self.squares):
                dist.all_reduce(part)
        return self


def feature_diagnostics(features: Tensor | Moments, name: str) -> dict[str, float]:
    """`std_<name>`, `correlation_<name>` and `rank_<name>` of (n, d) features, n >= 2.

    std: mean over dimensions of the standard deviation, relative to the root mean square of all entries, so that
        the scale of the features does not count: 1 for centred independent dimensions, 0 for constant features.
    correlation: root mean square of the off-diagonal correlations; 0 is decorrelated, 1 is one dimension repeated.
    rank: effective rank, exp of the entropy of the singular values' shares (RankMe, arXiv 2210.02885), at most
        min(n, d).
    """
    moments = features if isinstance(features, Moments) else Moments.of(features)
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
        f"rank_{name}": _effective_rank(moments.gram),
    }


def _ratio(a: Tensor, b: Tensor) -> float:
    return float(a / b) if b > 0 else 0.0


def _rms_correlation(covariance: Tensor, std: Tensor) -> float:
    alive = std > 1e-9 * std.max()  # a constant dimension has no correlation
    count = int(alive.sum())
    if count < 2:
        return 0.0
    correlation = covariance[alive][:, alive] / torch.outer(std[alive], std[alive])
    off_diagonal = correlation.square().sum() - correlation.diagonal().square().sum()
    return float((off_diagonal.clamp_min(0) / (count * (count - 1))).sqrt())


def _effective_rank(gram: Tensor) -> float:
    singular_values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def final_scores(training: Training) -> dict[str, Any]:
    """Diagnostics of the frozen backbone over the first images of the training set's views, and the last figures."""
    state, config = training.state, training.config
    state.model.eval()
    steps = -(-config.diagnostics_images // config.train.batch_size)
    scores: dict[str, Any] = {"steps": state.step, "seconds": state.seconds, **backbone_diagnostics(training, steps)}
    scores["peak_memory_gb"] = largest(peak_memory(training.device)) / GB
    if state.step:
        scores["seconds_per_step"] = state.seconds / state.step
    last = next((row for row in reversed(training.run.metrics()) if "loss" in row), None)
    if last is not None:
        scores |= {"loss": last["loss"]} | {k: last[k] for k in LAST_FIGURES if k in last}
    return scores


def peak_memory(device: torch.device) -> int:
    """Bytes that this process took at most in this attempt: of the GPU's memory, or of the machine's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def batch_diagnostics(output: ModelOutput, world: World) -> dict[str, float]:
    """Diagnostics of the first view's features in this batch of all processes: pooled (B, F), local (B * P, F)."""
    pooled = Moments.of(output.pooled[0].detach()).over_processes(world)
    local = Moments.of(output.features[0].flatten(0, 1)).over_processes(world)
    return feature_diagnostics(pooled, "pooled") | feature_diagnostics(local, "local")


def backbone_diagnostics(training: Training, steps: int) -> dict[str, float]:
    """Diagnostics of the backbone's features of the first view over the batches of the first `steps` steps."""
    pooled, local = [], []
    for batch in training.loader.batches(0, steps):
        feature_map, vector = training.state.model.backbone(batch.images[0].to(training.device))
        pooled.append(vector.float())
        local.append(feature_map.float().flatten(2).transpose(1, 2).flatten(0, 1))
    return diagnostics_of(pooled, "pooled", training.world) | diagnostics_of(local, "local", training.world)


def diagnostics_of(features: list[Tensor], name: str, world: World) -> dict[str, float]:
    return feature_diagnostics(Moments.of(torch.cat(features)).over_processes(world), name)
