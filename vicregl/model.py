"""Backbone + expander + local projector: views -> embeddings and maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vicregl.backbones import create_backbone
from vicregl.config import ModelConfig
from vicregl.errors import require


@dataclass
class ModelOutput:
    """The outputs of the model for a list of views."""

    embeddings: list[Tensor]  # over views: (B, D); empty at alpha 0
    maps: list[Tensor] | list[list[Tensor]]  # over views: (B, P, C); over stages, then views: (B, h, w, C); see below
    pooled: list[Tensor]  # over views: (B, F), detached: what the expander made of it is in `embeddings`
    features: list[Tensor]  # over views: the backbone's last map (B, P, F), detached, for diagnostics

    def criterion_inputs(self) -> list[Tensor]:
        """Return the tensors that the criterion uses: embeddings, then maps."""
        maps = [m for stage in self.maps for m in (stage if isinstance(stage, list) else [stage])]
        return [*self.embeddings, *maps]


class VICRegLModel(nn.Module):
    """Every view through the backbone by itself, so that BatchNorm sees one view at a time (as the published code).

    A network without batch statistics gets the views of one size in one call, which gives the same outputs in fewer and
    larger operations; with drop path, other random choices.

    alpha = 1 makes no projector and alpha = 0 no expander: the unused half is never computed. With
    `local_stages` other than the last stage alone, `maps` holds a list over views for each of the stages, with
    their spatial dimensions, which is what VICRegLCriterion takes for several stages.
    """

    def __init__(self, config: ModelConfig, alpha: float) -> None:
        super().__init__()
        self.backbone = create_backbone(config.backbone)
        width, norm = self.backbone.channels, config.projector_norm
        self.expander = mlp(width, config.expander, norm) if alpha > 0 else None
        self.projector: nn.Module | None = None
        self.stages: list[int] = []  # of backbone.stages(), where not the last map alone has a projector
        if alpha < 1 and config.local_stages == [-1]:
            self.projector = mlp(width, config.projector, norm)
        elif alpha < 1:
            self.stages = [self._stage(k) for k in config.local_stages]
            once = len(set(self.stages)) == len(self.stages)
            allowed = f"each stage once; of the {len(self.backbone.stage_channels)}, -1 is the last"
            require(once, "local_stages", config.local_stages, allowed)
            widths = [self.backbone.stage_channels[k] for k in self.stages]
            self.projector = nn.ModuleList(mlp(w, config.projector, norm) for w in widths)

        self.batch_dependent = batch_dependent_module(self)

    def _stage(self, index: int) -> int:
        count = len(self.backbone.stage_channels)
        require(-count <= index < count, "local_stages", index, f"{-count} to {count - 1}")
        return index % count

    def forward(self, views: Sequence[Tensor]) -> ModelOutput:
        """views: list of (B, 3, S, S) images; sides may differ between views."""
        output = ModelOutput([], [], [], [])
        maps: list[Any] = []  # over views; each a map, or a list of them over stages
        for embedding, view_maps, pooled, features in self._each_view(views):
            output.pooled.append(pooled)
            output.features.append(features)
            if self.expander is not None:
                output.embeddings.append(embedding)
            if self.projector is not None:
                maps.append(view_maps if self.stages else view_maps[0])
        output.maps = [list(stage) for stage in zip(*maps, strict=True)] if self.stages else maps
        return output

    def _each_view(self, views: Sequence[Tensor]) -> list[Any]:
        """Compute the outputs of each view, as `_outputs` returns them.

        Views of one size go through the network together, unless its outputs depend on the batch.
        """
        if self.batch_dependent is not None:
            return [self._outputs(images) for images in views]
        by_view: dict[int, Any] = {}
        for shape in dict.fromkeys(images.shape for images in views):
            same = [number for number, images in enumerate(views) if images.shape == shape]
            outputs = self._outputs(torch.cat([views[number] for number in same]))
            by_view |= zip(same, _shares(outputs, len(same)), strict=True)
        return [by_view[number] for number in range(len(views))]

    def _outputs(self, images: Tensor) -> tuple[Any, list[Tensor], Tensor, Tensor]:
        """Return embedding (None without an expander), local maps of each stage (none without a projector), pooled and
        features, with one row per image."""
        feature_map, pooled, *stages = self.backbone(images, self.stages)
        positions = feature_map.flatten(2).transpose(1, 2)  # (B, P, F)
        embedding = None if self.expander is None else self.expander(pooled)
        maps: list[Tensor] = []
        if isinstance(self.projector, nn.ModuleList):
            channels_last = [stage.permute(0, 2, 3, 1) for stage in stages]
            maps = [project(m) for project, m in zip(self.projector, channels_last, strict=True)]
        elif self.projector is not None:
            maps = [self.projector(positions)]
        # With their graphs, DDP would wait for gradients of layers that no criterion's input depends on.
        return embedding, maps, pooled.detach(), positions.detach()

    def called_modules(self) -> list[nn.Module]:
        """Return the modules that `forward` calls, each a graph of its own for torch.compile."""
        projectors = self.projector if isinstance(self.projector, nn.ModuleList) else [self.projector]
        return [module for module in (self.backbone, self.expander, *projectors) if module is not None]


def batch_dependent_module(model: nn.Module) -> str | None:
    """Name the first module by which a sample's output depends on its batch in training, or return None."""
    for name, module in model.named_modules():
        buffers = {buffer for buffer, _ in module.named_buffers(recurse=False)}
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or {"running_mean", "running_var"} & buffers:
            return name
    return None


def _shares(outputs: Any, count: int) -> list[Any]:
    """Split the rows of tensors in nested tuples and lists into `count` equal parts; return one structure per part."""
    if outputs is None:
        return [None] * count
    if isinstance(outputs, Tensor):
        return list(outputs.chunk(count))
    parts = [_shares(part, count) for part in outputs]
    return [[part[k] for part in parts] for k in range(count)]


class Rows(nn.Module):
    """Applies a module for rows (N, F) to (..., F)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x.reshape(-1, x.shape[-1])).unflatten(0, x.shape[:-1])


def mlp(width: int, layers: str, norm: str) -> nn.Module:
    """Stack Linear + norm + ReLU for every width but the last, a Linear without bias. (..., width) -> (..., last)."""
    widths = [width, *map(int, layers.split("-"))]
    modules: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        modules += [nn.Linear(before, after), nn.BatchNorm1d(after) if norm == "batch" else nn.LayerNorm(after)]
        modules += [nn.ReLU(inplace=True)]
    modules.append(nn.Linear(widths[-2], widths[-1], bias=False))
    return Rows(nn.Sequential(*modules))
