"""The figures of result.json."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pretrain.diagnostics import Moments, feature_diagnostics
from runtime.distributed import World, largest
from vicregl.model import ModelOutput

if TYPE_CHECKING:
    from pretrain.train import Training

GB = 1e9  # bytes
LAST_FIGURES = ("probe_top1", "images_skipped")


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
