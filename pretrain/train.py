"""The training loop: views -> embeddings and maps -> criterion -> step; log; save; stop where it is asked to."""

from __future__ import annotations

import time
from typing import Any

from pretrain.checkpoint import save_backbone
from pretrain.diagnostics import final_scores
from pretrain.logger import Logger
from pretrain.optimizers import learning_rate
from pretrain.step import training_step
from pretrain.training import Training
from runtime.distributed import largest
from runtime.errors import Unfinished
from runtime.stopping import StopRequest, stop_request

# What a process wishes for after a step, beside the numbers of signals (2 and more): the largest wish of all counts.
NOTHING, SAVE, TIME_IS_UP = 0, 1, 1000


def train(training: Training) -> dict[str, Any]:
    """Train to the end (or to a stop request) and return the scores of result.json."""
    config, state = training.config, training.state
    log = Logger(training)
    with stop_request() as stop:
        for batch in training.loader.batches(state.step, training.total_steps):
            lr = learning_rate(
                state.step, config.optimizer, config.train.batch_size, training.total_steps, training.warmup_steps
            )
            losses, output = training_step(training, batch, lr)
            state.step += 1
            log.after_step(batch, lr, losses, output)
            stop_or_save(training, stop, log)
    log.close()
    training.save()
    if training.world.is_main:
        save_backbone(state.model, training.run.path / "backbone.safetensors")
    return final_scores(training)


def stop_or_save(training: Training, stop: StopRequest, log: Logger) -> None:
    """Save when it is time to, and on any process's stop request before all of them end."""
    wish = largest(wish_of(training, stop))
    if wish == NOTHING:
        return
    training.save()
    if wish == SAVE:
        return
    log.close()
    if wish == TIME_IS_UP:
        raise Unfinished(f"machine.max_minutes = {training.config.machine.max_minutes:g} are used up")
    stop.signal = wish
    stop.leave()


def wish_of(training: Training, stop: StopRequest) -> int:
    """What this process wishes for after the step."""
    machine, now = training.config.machine, time.monotonic()
    if stop.signal is not None:
        return stop.signal
    if machine.max_minutes and now - training.began > 60 * machine.max_minutes:
        return TIME_IS_UP
    if now - training.saved > 60 * machine.save_minutes or training.ends_kept_epoch():
        return SAVE
    return NOTHING
