"""The training loop: views -> embeddings and maps -> criterion -> step; log; save; go on where it stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from data.catalog import open_dataset
from data.loader import PretrainLoader
from pretrain.checkpoint import TrainingState, drop_all_but_last, keep, save_backbone
from pretrain.config import PretrainConfig, durations
from pretrain.logger import Logger
from pretrain.optimizers import learning_rate, make_optimizer
from pretrain.parallel import prepare_model, seed_apart, wrapped
from pretrain.probe import OnlineProbe
from pretrain.scores import final_scores
from pretrain.step import refuse_batch_statistics, training_step
from runtime.distributed import World, largest
from runtime.errors import Unfinished
from runtime.rundir import Run
from runtime.stopping import StopRequest, stop_request
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

# What a process wishes for after a step, beside the numbers of signals (2 and more): the largest wish of all counts.
NOTHING, SAVE, TIME_IS_UP = 0, 1, 1000


@dataclass
class Training:
    """What the loop needs: built once from the config, before anything of the run is trained."""

    config: PretrainConfig
    run: Run  # process 0 alone writes in it
    device: torch.device
    world: World
    loader: PretrainLoader
    criterion: VICRegLCriterion
    state: TrainingState
    network: nn.Module  # what the loop calls: state.model, or DDP around it
    total_steps: int
    warmup_steps: int
    began: float  # when this process began to build it
    started: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    first_step: int = 0  # where this attempt began

    @classmethod
    def build(cls, config: PretrainConfig, run: Run, device: torch.device, world: World) -> Training:
        began = time.monotonic()
        torch.manual_seed(config.seed)
        model = VICRegLModel(config.model, config.loss.global_weight)
        if config.train.accumulate > 1:
            refuse_batch_statistics(model)
        loader = make_loader(config, model, device, world)
        total, warmup = durations(config, loader.steps_per_epoch)
        network = wrapped(model := prepare_model(model, config, device, world), config, device, world)
        probe = make_probe(config, model, device)
        scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
        state = TrainingState(model, make_optimizer(model, config.optimizer), probe, scaler, device, world)
        criterion = VICRegLCriterion(config.loss)
        training = cls(config, run, device, world, loader, criterion, state, network, total, warmup, began)
        training.resume()
        return training

    def resume(self) -> None:
        checkpoint = self.run.path / "checkpoint.pt"
        known = self.world.size == 1
        if checkpoint.exists():
            known = self.state.load(checkpoint)
            self.first_step = self.state.step
        if not known:
            seed_apart(self.config.seed, self.state.step, self.world)
        if self.world.is_main:
            if checkpoint.exists():
                print(f"going on at step {self.state.step} of {self.total_steps}", flush=True)
            self.run.drop_metrics_after(self.state.step)

    def save(self) -> None:
        """Every process calls this at the same step."""
        checkpoint = self.run.path / "checkpoint.pt"
        self.state.save(checkpoint)
        self.saved = time.monotonic()
        if not self.world.is_main:
            return
        if self.config.machine.keep_last:
            keep(checkpoint, f"step-{self.state.step:08}")
            drop_all_but_last(checkpoint, self.config.machine.keep_last)
        if self.ends_kept_epoch():
            keep(checkpoint, f"epoch-{self.state.step // self.loader.steps_per_epoch:04}")

    def ends_kept_epoch(self) -> bool:
        steps = self.config.machine.keep_every_epochs * self.loader.steps_per_epoch
        return steps > 0 and self.state.step % steps == 0


def make_loader(config: PretrainConfig, model: VICRegLModel, device: torch.device, world: World) -> PretrainLoader:
    return PretrainLoader(
        config.data,
        config.views,
        model.backbone.grid_size,
        config.train.batch_size,
        config.seed,
        config.machine.workers,
        device=device,
        worker_kind=config.machine.worker_kind,
        share=(world.rank, world.size),
    )


def make_probe(config: PretrainConfig, model: VICRegLModel, device: torch.device) -> OnlineProbe | None:
    dataset = open_dataset(config.data)
    if not config.probe.enabled or dataset.images("train").labels is None:
        return None
    return OnlineProbe(model.backbone.channels, len(dataset.classes), config.probe).to(device)


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
