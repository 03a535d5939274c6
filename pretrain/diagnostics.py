"""Diagnostics of collapse: spread, correlation and rank of features; and the scores of result.json."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from runtime.distributed import largest
from runtime.errors import NotFiniteError
from runtime.world import World
from vicregl.model import ModelOutput

if TYPE_CHECKING:
    from pretrain.training import Training

GB = 1e9  # bytes
LAST_ROW_SCORES = ("probe_top1", "images_skipped")  # taken from the last row of metrics.jsonl


@dataclass
class Moments:
    """Sums over the rows of an (n, d) feature matrix, in float64; those of several processes add up."""

    count: int  # n
    total: Tensor  # (d,): sum of the rows
    gram: Tensor  # (d, d): X^T X
    squares: Tensor  # (): sum of all squares

    @classmethod
    @torch.no_grad()
    def from_features(cls, features: Tensor) -> Moments:
        features = features.double()
        return cls(features.shape[0], features.sum(dim=0), features.T @ features, features.square().sum())

    def over_processes(self, world: World) -> Moments:
        """Add the sums of all processes, which have equally many rows."""
        if world.size > 1:
            self.count *= world.size
            for part in (self.total, self.gram, self.squares):
                dist.all_reduce(part)
        return self


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
        f"rank_{name}": _effective_rank(moments.gram),
    }


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
    singular_values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()
    total = singular_values.sum()
    if total == 0:
        return 0.0
    shares = singular_values / total
    return float(torch.special.entr(shares).sum().exp())


@torch.no_grad()
def final_scores(training: Training) -> dict[str, Any]:
    """Return result.json: diagnostics of the frozen backbone on views of the first images, cost, and last losses."""
    state, config = training.state, training.config
    state.model.eval()
    steps = -(-config.diagnostics_images // config.train.batch_size)
    scores: dict[str, Any] = {"steps": state.step, "seconds": state.seconds, **backbone_diagnostics(training, steps)}
    scores["peak_memory_gb"] = largest(peak_memory(training.device)) / GB
    if state.step:
        scores["seconds_per_step"] = state.seconds / state.step
    last = next((row for row in reversed(training.run.metrics()) if "loss" in row), None)
    if last is not None:
        scores |= {"loss": last["loss"]} | {k: last[k] for k in LAST_ROW_SCORES if k in last}
    return scores


def peak_memory(device: torch.device) -> int:
    """Return this attempt's peak memory of this process in bytes: of the GPU, or of main memory on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def batch_diagnostics(output: ModelOutput, world: World) -> dict[str, float]:
    """Diagnose the first view's features in the batch of all processes: pooled (B, F), local (B * P, F)."""
    pooled = Moments.from_features(output.pooled[0].detach()).over_processes(world)
    local = Moments.from_features(output.features[0].flatten(0, 1)).over_processes(world)
    return feature_diagnostics(pooled, "pooled") | feature_diagnostics(local, "local")


def backbone_diagnostics(training: Training, steps: int) -> dict[str, float]:
    """Diagnose the backbone's features of the first view over the batches of the first `steps` steps."""
    pooled, local = [], []
    for batch in training.loader.batches(0, steps):
        feature_map, vector = training.state.model.backbone(batch.images[0].to(training.device))
        pooled.append(vector.float())
        local.append(feature_map.float().flatten(2).transpose(1, 2).flatten(0, 1))
    scores: dict[str, float] = {}
    for name, features in (("pooled", pooled), ("local", local)):
        moments = Moments.from_features(torch.cat(features)).over_processes(training.world)
        scores |= feature_diagnostics(moments, name)
    return scores
