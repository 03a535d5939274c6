"""A training step of a recipe on batches that are made up: without a dataset and a run directory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import torch

from data.loader import ViewBatch
from pretrain.checkpoint import TrainingState
from pretrain.config import PretrainConfig
from pretrain.diagnostics import OnlineProbe
from pretrain.optimizers import make_optimizer
from pretrain.training import Training, choose_precision, prepare_model
from runtime.world import World
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

CLASSES = 1000  # of the probe


def make_training(config: PretrainConfig, model: VICRegLModel, device: torch.device, world: World) -> Training:
    """Make what `training_step` uses of a Training, without DDP."""
    model = prepare_model(model, config, device, world)
    with device:
        probe = OnlineProbe(model.backbone.channels, CLASSES, config.probe)
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
    optimizer, precision = make_optimizer(model, config.optimizer), choose_precision(config.train.precision, device)
    criterion = VICRegLCriterion(config.loss)
    state = TrainingState(model, optimizer, probe, scaler, device, world, precision, criterion)
    parts = {"config": config, "device": device, "world": world, "state": state, "network": model}
    return cast(Training, SimpleNamespace(**parts, criterion=criterion))


def make_batch(config: PretrainConfig, model: VICRegLModel, images: int, device: torch.device) -> ViewBatch:
    """Random views at random places, with labels."""
    sides = config.views.sides()
    views = [torch.randn(images, 3, side, side, device=device) for side in sides]
    grids = [model.backbone.grid_size(side) for side in sides]
    locations = [200 * torch.rand(images, *grid, 2, device=device) for grid in grids]
    labels = torch.randint(CLASSES, (images,), device=device)
    return ViewBatch([view.to(memory_format=torch.channels_last) for view in views], locations, labels, 0, 0)
