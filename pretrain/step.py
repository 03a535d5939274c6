"""One optimiser step: forward pass, criterion, gradients, update; of the whole batch, or in parts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from data.loader import ViewBatch
from pretrain.checkpoint import random_state, set_random_state
from pretrain.optimizers import set_learning_rate
from pretrain.training import Training
from runtime.distributed import gather_rows
from runtime.errors import NotFiniteError
from vicregl.model import ModelOutput

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def training_step(training: Training, batch: ViewBatch, lr: float) -> tuple[dict[str, Tensor], ModelOutput]:
    """Take one optimiser step; NotFiniteError, before the weights change, if the loss is not finite."""
    config, state = training.config, training.state
    locations = [locations.to(training.device, non_blocking=True) for locations in batch.locations]
    compute = gradients if config.train.accumulate == 1 else gradients_in_parts
    losses, output = compute(training, batch.images, locations)
    set_learning_rate(state.optimizer, lr)
    if config.train.clip_norm:
        state.scaler.unscale_(state.optimizer)
        trained = [*state.model.parameters(), *state.criterion.parameters()]
        torch.nn.utils.clip_grad_norm_(trained, config.train.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if state.probe is not None and batch.labels is not None:
        # Every process makes the same update, on the samples of all: the probe is that of a single process.
        labels = gather_rows(batch.labels.to(training.device), training.world)
        state.probe.update(gather_rows(output.pooled[0].detach(), training.world), labels)
    return losses, output


def gradients(
    training: Training, views: list[Tensor], locations: list[Tensor]
) -> tuple[dict[str, Tensor], ModelOutput]:
    """Return losses and outputs of the batch, and leave the gradients in the parameters."""
    state = training.state
    output = forward(training, training.network, views)
    losses = training.criterion(output.embeddings, output.maps, locations)
    stop_if_not_finite(losses, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(losses["loss"]).backward()
    return losses, output


def gradients_in_parts(
    training: Training, views: list[Tensor], locations: list[Tensor]
) -> tuple[dict[str, Tensor], ModelOutput]:
    """Do as `gradients` does, with the activations of one part of the batch at a time in memory.

    The criterion needs the outputs of all samples. A first forward pass computes them without gradients. The second
    one repeats each part with the same random numbers and backpropagates the criterion's gradients with respect to its
    outputs. Exact for a network whose output for a sample depends on that sample alone (`refuse_batch_statistics`), at
    the cost of one more forward pass.
    """
    state, network = training.state, training.network
    count = training.config.train.accumulate
    parts = list(zip(*(view.chunk(count) for view in views), strict=True))
    states, part_outputs = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(training.device))  # drop path must repeat its choices in the second pass
            part_outputs.append(forward(training, state.model, part))
    output = concatenate(part_outputs)
    leaves = [tensor.requires_grad_() for tensor in output.criterion_inputs()]
    losses = training.criterion(output.embeddings, output.maps, locations)
    after = random_state(training.device)  # a criterion of the user's own may have drawn numbers
    stop_if_not_finite(losses, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(losses["loss"]).backward()
    gradients_of_parts = zip(*(leaf.grad.chunk(count) for leaf in leaves if leaf.grad is not None), strict=True)
    for number, (part, state_before, part_gradients) in enumerate(zip(parts, states, gradients_of_parts, strict=True)):
        set_random_state(state_before, training.device)
        # Gradients of the parts add up in the parameters; DDP averages over the processes once, with the last part.
        local_only = isinstance(network, DistributedDataParallel) and number < count - 1
        with network.no_sync() if local_only else nullcontext():  # type: ignore[operator]  # DDP's
            tensors = forward(training, network, part).criterion_inputs()
            # The criterion may ignore some outputs (the maps, if it has no local part): they have no gradient.
            used = [tensor for tensor, leaf in zip(tensors, leaves, strict=True) if leaf.grad is not None]
            torch.autograd.backward(used, part_gradients)
    set_random_state(after, training.device)
    return losses, output


def concatenate(parts: list[ModelOutput]) -> ModelOutput:
    """Concatenate the outputs of the parts of a batch: every list of a ModelOutput ends in tensors of its rows."""
    return ModelOutput(*(_concatenate([getattr(part, field.name) for part in parts]) for field in fields(ModelOutput)))


def _concatenate(parts: list[Any]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return [_concatenate(list(same)) for same in zip(*parts, strict=True)]


def forward(training: Training, network: nn.Module, images: list[Tensor] | tuple[Tensor, ...]) -> ModelOutput:
    train = training.config.train
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    views = [view.to(training.device, memory_format=layout, non_blocking=True) for view in images]
    dtype = AUTOCAST.get(training.state.precision)
    with torch.autocast(training.device.type, dtype, enabled=dtype is not None):
        return network(views)


def stop_if_not_finite(losses: dict[str, Tensor], step: int) -> None:
    if torch.isfinite(losses["loss"]):
        return
    broken = {name: float(value.detach()) for name, value in losses.items() if not torch.isfinite(value)}
    terms = ", ".join(f"{name} = {value}" for name, value in broken.items() if name != "loss" or len(broken) == 1)
    raise NotFiniteError(
        f"the loss is not finite at step {step}: {terms}. The last checkpoint is kept. Usual reasons: "
        "optimizer.base_lr too high, optimizer.warmup too short (train.clip_norm may help)"
    )
