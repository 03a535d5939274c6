"""Diagnostics of collapse: spread, correlation and rank of features; and the scores of result.json."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from pretrain.step import gather_rows
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
    pooled, local = output.pooled[0].detach(), output.features[0].flatten(0, 1)
    return diagnose(pooled, "pooled", world) | diagnose(local, "local", world)


def backbone_diagnostics(training: Training, steps: int) -> dict[str, float]:
    """Diagnose the backbone's features of the first view over the batches of the first `steps` steps."""
    pooled, local = [], []
    for batch in training.loader.batches(0, steps):
        feature_map, vector = training.state.model.backbone(batch.images[0].to(training.device))
        pooled.append(vector.float())
        local.append(feature_map.float().flatten(2).transpose(1, 2).flatten(0, 1))
    world = training.world
    return diagnose(torch.cat(pooled), "pooled", world) | diagnose(torch.cat(local), "local", world)
