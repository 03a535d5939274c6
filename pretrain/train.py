"""The training loop: batch of views -> optimiser step -> log, save, stop on request."""

from __future__ import annotations

import time
from typing import Any

from pretrain.checkpoint import save_backbone
from pretrain.log import TrainingLog, final_scores
from pretrain.optimizers import learning_rate
from pretrain.step import training_step
from pretrain.training import Training
from runtime.distributed import largest
from runtime.errors import Unfinished
from runtime.stopping import StopRequest, stop_request

# Requests of a process after a step; a stop request is the signal's number (2 or more). All processes must act alike,
# or collectives would hang: they follow the largest request of any.
NONE, SAVE, TIME_LIMIT = 0, 1, 1000


def train(training: Training) -> dict[str, Any]:
    """Train to the last step and return the scores of result.json; a stop request raises Unfinished."""
    config, state = training.config, training.state
    log = TrainingLog(training)
    with stop_request() as stop:
        for batch in training.loader.batches(state.step, training.total_steps):
            lr = learning_rate(
                state.step, config.optimizer, config.train.batch_size, training.total_steps, training.warmup_steps
            )
            losses, output = training_step(training, batch, lr)
            state.step += 1
            log.after_step(batch, lr, losses, output)
            stop_or_save(training, stop)
    training.save()
    if training.world.is_main:
        save_backbone(state.model, training.run.path / "backbone.safetensors")
    return final_scores(training)


def stop_or_save(training: Training, stop: StopRequest) -> None:
    """Save at the configured times and, on a stop request of any process, before all of them exit."""
    request = largest(request_after_step(training, stop))
    if request == NONE:
        return
    training.save()
    if request == SAVE:
        return
    if request == TIME_LIMIT:
        raise Unfinished(f"the time limit machine.max_minutes = {training.config.machine.max_minutes:g} is reached")
    stop.signal = request
    stop.leave()


def request_after_step(training: Training, stop: StopRequest) -> int:
    """Return this process's request: the number of a signal, NONE, SAVE or TIME_LIMIT."""
    machine, now = training.config.machine, time.monotonic()
    if stop.signal is not None:
        return stop.signal
    if machine.max_minutes and now - training.launched > 60 * machine.max_minutes:
        return TIME_LIMIT
    if now - training.saved > 60 * machine.save_minutes or training.kept_moments():
        return SAVE
    return NONE
