"""The training loop: views -> embeddings and maps -> criterion -> step; log; save; go on where it stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from data.catalog import open_dataset
from data.loader import PretrainLoader, ViewBatch
from pretrain.checkpoint import TrainingState, save_backbone
from pretrain.config import PretrainConfig
from pretrain.diagnostics import feature_diagnostics
from pretrain.optimizers import learning_rate, make_optimizer, set_learning_rate
from pretrain.probe import OnlineProbe
from runtime.config import Duration
from runtime.errors import NotFiniteError, UserError
from runtime.rundir import Run
from runtime.stopping import StopRequest, stop_request
from vicregl.criterion import VICRegLCriterion
from vicregl.model import ModelOutput, VICRegLModel


@dataclass
class Training:
    """What the loop needs: built once from the config, before anything of the run is trained."""

    config: PretrainConfig
    run: Run
    device: torch.device
    loader: PretrainLoader
    criterion: VICRegLCriterion
    state: TrainingState
    total_steps: int
    warmup_steps: int
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0  # where this attempt began

    @classmethod
    def build(cls, config: PretrainConfig, run: Run, device: torch.device) -> Training:
        torch.manual_seed(config.seed)
        model = VICRegLModel(config.model, config.loss.global_weight)
        grid_size = model.backbone.grid_size
        loader = PretrainLoader(
            config.data,
            config.views,
            grid_size,
            config.train.batch_size,
            config.seed,
            config.machine.workers,
            device=device,
            worker_kind=config.machine.worker_kind,
        )
        total = Duration.parse(config.train.duration).steps(loader.steps_per_epoch)
        warmup = Duration.parse(config.optimizer.warmup).steps(loader.steps_per_epoch)
        if total and warmup >= total:
            raise UserError(
                f"config: optimizer.warmup = {config.optimizer.warmup!r} is {warmup} steps, and the whole training "
                f"(train.duration = {config.train.duration!r}) has {total}; make the warm-up shorter"
            )
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        model = model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        probe = make_probe(config, model, device)
        state = TrainingState(model, make_optimizer(model, config.optimizer), probe)
        criterion = VICRegLCriterion.from_config(config.loss)
        training = cls(config, run, device, loader, criterion, state, total, warmup)
        training.resume()
        return training

    def resume(self) -> None:
        checkpoint = self.run.path / "checkpoint.pt"
        if checkpoint.exists():
            self.state.load(checkpoint)
            self.first_step = self.state.step
            print(f"going on at step {self.state.step} of {self.total_steps}", flush=True)
        self.run.drop_metrics_after(self.state.step)

    def save(self) -> None:
        self.state.save(self.run.path / "checkpoint.pt")


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
    save_backbone(state.model, training.run.path / "backbone.safetensors")
    return final_scores(training)


def training_step(training: Training, batch: ViewBatch, lr: float) -> tuple[dict[str, Tensor], ModelOutput]:
    """One optimiser step; a loss that is not finite stops the run before it reaches the weights."""
    config, state = training.config, training.state
    output = forward(training, batch)
    locations = [locations.to(training.device, non_blocking=True) for locations in batch.locations]
    losses = training.criterion(output.embeddings, output.maps, locations)
    stop_if_not_finite(losses, state.step)
    set_learning_rate(state.optimizer, lr)
    state.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    if config.train.clip_norm:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), config.train.clip_norm)
    state.optimizer.step()
    if state.probe is not None and batch.labels is not None:
        state.probe.update(output.pooled[0], batch.labels.to(training.device))
    return losses, output


def forward(training: Training, batch: ViewBatch) -> ModelOutput:
    layout = torch.channels_last if training.config.train.channels_last else torch.contiguous_format
    views = [view.to(training.device, memory_format=layout, non_blocking=True) for view in batch.images]
    with torch.autocast(training.device.type, torch.bfloat16, enabled=training.config.train.precision == "bfloat16"):
        return training.state.model(views)


def stop_if_not_finite(losses: dict[str, Tensor], step: int) -> None:
    if torch.isfinite(losses["loss"]):
        return
    broken = {name: float(value.detach()) for name, value in losses.items() if not torch.isfinite(value)}
    terms = ", ".join(f"{name} = {value}" for name, value in broken.items() if name != "loss" or len(broken) == 1)
    raise NotFiniteError(
        f"the loss is not finite at step {step}: {terms}. The last checkpoint is kept. Usual reasons: "
        "optimizer.base_lr too high, optimizer.warmup too short (train.clip_norm may help)"
    )


def stop_or_save(training: Training, stop: StopRequest, log: Logger) -> None:
    """Save when it is time to, and on a stop request before ending."""
    if stop:
        training.save()
        log.close()
        stop.leave()
    if time.monotonic() - log.saved > 60 * training.config.machine.save_minutes:
        training.save()
        log.saved = time.monotonic()


class Logger:
    """metrics.jsonl, TensorBoard, the heartbeat's progress and the printed line."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.saved = self.printed = time.monotonic()
        self.before = training.state.seconds
        self.row = (time.monotonic(), 0.0)  # when the last row was written, and the seconds waited for data by then
        self.board = SummaryWriter(str(training.run.path / "tensorboard"), purge_step=training.state.step + 1)
        training.run.progress(training.state.step, training.total_steps, "steps")

    def after_step(self, batch: ViewBatch, lr: float, losses: dict[str, Tensor], output: ModelOutput) -> None:
        training = self.training
        step, total = training.state.step, training.total_steps
        training.state.seconds = self.before + time.monotonic() - training.started
        training.run.progress(step, total, "steps")
        if step % training.config.machine.log_steps == 0 or step == total:
            self.write_row(batch, lr, losses, output)
        if time.monotonic() - self.printed > training.config.machine.log_seconds or step == total:
            self.print_line(float(losses["loss"].detach()))

    def write_row(self, batch: ViewBatch, lr: float, losses: dict[str, Tensor], output: ModelOutput) -> None:
        state = self.training.state
        values = {name: float(value.detach()) for name, value in losses.items()}
        values |= {"learning_rate": lr, "seconds": state.seconds, "data_wait_percent": self.data_wait_percent()}
        values |= batch_diagnostics(output)
        if state.probe is not None:
            values["probe_top1"] = state.probe.accuracy()
        if self.training.loader.skipped:
            values["images_skipped"] = self.training.loader.skipped
        self.training.run.append_metrics({"step": state.step, "epoch": batch.epoch, "time": time.time(), **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, state.step)

    def data_wait_percent(self) -> float:
        """Share of the time since the last row in which the loop waited for batches."""
        (since, waited), self.row = self.row, (time.monotonic(), self.training.loader.wait_seconds)
        return 100 * (self.row[1] - waited) / (self.row[0] - since)

    def print_line(self, loss: float) -> None:
        training = self.training
        step, total = training.state.step, training.total_steps
        a_step = (time.monotonic() - training.started) / (step - training.first_step)
        probe = "" if training.state.probe is None else f", probe top-1 {training.state.probe.accuracy():.1f} %"
        left = time.strftime("%H:%M:%S", time.gmtime(a_step * (total - step)))
        images = training.config.train.batch_size / a_step
        print(f"step {step}/{total}, loss {loss:.3f}{probe}, {images:.0f} images/s, {left} left", flush=True)
        self.printed = time.monotonic()

    def close(self) -> None:
        self.board.close()


def batch_diagnostics(output: ModelOutput) -> dict[str, float]:
    """Diagnostics of the first view's features in this batch: pooled (B, F), local (B * P, F)."""
    pooled = feature_diagnostics(output.pooled[0].detach(), "pooled")
    return pooled | feature_diagnostics(output.features[0].flatten(0, 1), "local")


@torch.no_grad()
def final_scores(training: Training) -> dict[str, Any]:
    """Diagnostics of the frozen backbone over the first images of the training set's views, and the last figures."""
    state, config = training.state, training.config
    state.model.eval()
    steps = -(-config.diagnostics_images // config.train.batch_size)
    scores: dict[str, Any] = {"steps": state.step, "seconds": state.seconds, **backbone_diagnostics(training, steps)}
    last = next((row for row in reversed(training.run.metrics()) if "loss" in row), None)
    if last is not None:
        scores |= {"loss": last["loss"]} | {k: last[k] for k in ("probe_top1", "images_skipped") if k in last}
    return scores


def backbone_diagnostics(training: Training, steps: int) -> dict[str, float]:
    """Diagnostics of the backbone's features of the first view over the batches of the first `steps` steps."""
    pooled, local = [], []
    for batch in training.loader.batches(0, steps):
        feature_map, vector = training.state.model.backbone(batch.images[0].to(training.device))
        pooled.append(vector.float())
        local.append(feature_map.float().flatten(2).transpose(1, 2).flatten(0, 1))
    return feature_diagnostics(torch.cat(pooled), "pooled") | feature_diagnostics(torch.cat(local), "local")
