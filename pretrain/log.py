"""What a training writes down: rows of metrics.jsonl, the heartbeat's progress, lines, result.json."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch
from torch import Tensor

from data.loader import ViewBatch
from pretrain.diagnostics import view_diagnostics
from pretrain.training import Training
from runtime.distributed import gather_rows, largest
from runtime.progress import describe_seconds
from vicregl.model import ModelOutput

GB = 1e9  # bytes
LAST_ROW_SCORES = ("probe_top1", "images_skipped")  # of result.json, from the last row of metrics.jsonl


class ThroughputMeter:
    """Measures images per second and the share of time spent waiting for data, between two calls of `read`."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.last = self._now()

    def _now(self) -> tuple[float, int, float]:
        return time.monotonic(), self.training.state.step, self.training.loader.wait_seconds

    def read(self) -> tuple[float, float]:
        """Return images per second of all processes, and the percent of its time that this process waited for data."""
        (since, step, waited), self.last = self.last, self._now()
        seconds = self.last[0] - since
        images = (self.last[1] - step) * self.training.config.train.batch_size
        return images / seconds, 100 * (self.last[2] - waited) / seconds


class TrainingLog:
    """Every process has one, because all give their features for a row's diagnostics; process 0 writes and prints."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.printed = time.monotonic()
        self.seconds_before = training.state.seconds  # of earlier attempts
        self.row_meter, self.line_meter = ThroughputMeter(training), ThroughputMeter(training)
        if training.world.is_main:
            training.run.set_progress(training.state.step, training.total_steps, "steps")

    def after_step(self, batch: ViewBatch, lr: float, losses: dict[str, Tensor], output: ModelOutput) -> None:
        training = self.training
        step, total = training.state.step, training.total_steps
        training.state.seconds = self.seconds_before + time.monotonic() - training.started
        training.run.set_progress(step, total, "steps")
        if step % training.config.machine.log_steps == 0 or step == total:
            self.write_row(batch, lr, losses, output)
        if time.monotonic() - self.printed > training.config.machine.log_seconds or step == total:
            self.print_line(float(losses["loss"].detach()))

    def write_row(self, batch: ViewBatch, lr: float, losses: dict[str, Tensor], output: ModelOutput) -> None:
        training, state = self.training, self.training.state
        # Before the return, because every process takes part in them.
        diagnostics = view_diagnostics(output.pooled[0].detach(), output.features[0].flatten(0, 1), training.world)
        # VICRegL's are those of the whole batch in each; those of the user's own are each share's.
        terms = torch.stack([value.detach().double().reshape(()) for value in losses.values()])
        terms = gather_rows(terms[None], training.world)
        skipped = len(state.gather_skipped())
        if not training.world.is_main:
            return
        images_per_second, waited = self.row_meter.read()
        values = dict(zip(losses, terms.mean(0).tolist(), strict=True))
        values |= {"learning_rate": lr, "seconds": state.seconds, "data_wait_percent": waited}
        values |= {"images_per_second": images_per_second} | diagnostics
        if training.device.type == "cuda":
            values["peak_gpu_gb"] = peak_memory(training.device) / GB
        if state.probe is not None:
            values["probe_top1"] = state.probe.accuracy()
        if skipped:
            values["images_skipped"] = skipped
        training.run.append_metrics({"step": state.step, "epoch": batch.epoch, "time": time.time(), **values})

    def print_line(self, loss: float) -> None:
        training = self.training
        self.printed = time.monotonic()
        if not training.world.is_main:
            return
        step, total = training.state.step, training.total_steps
        images_per_second, waited = self.line_meter.read()
        left = (self.printed - training.started) / (step - training.first_step) * (total - step)
        # VICRegL's loss is that of the whole batch in every process, one of the user's own that of its share.
        share = " in process 0" if training.config.loss.is_own and training.world.size > 1 else ""
        parts = [f"step {step}/{total}", f"loss {loss:.3f}{share}"]
        if training.state.probe is not None:
            parts.append(f"probe top-1 {training.state.probe.accuracy():.1f} %")
        parts += [f"{images_per_second:.0f} images/s", f"{waited:.0f} % waiting for data"]
        if training.device.type == "cuda":
            total_memory = torch.cuda.get_device_properties(training.device).total_memory
            parts.append(f"{peak_memory(training.device) / GB:.1f} of {total_memory / GB:.0f} GB GPU memory")
        print(", ".join([*parts, f"{describe_seconds(left)} left"]), flush=True)


@torch.no_grad()
def final_scores(training: Training) -> dict[str, Any]:
    """Return result.json: diagnostics of the frozen backbone on views of the first images, cost, and last losses."""
    state, config = training.state, training.config
    state.model.eval()
    steps = -(-config.diagnostics_images // config.train.batch_size)
    scores: dict[str, Any] = {"steps": state.step, "seconds": state.seconds, "precision": state.precision}
    scores |= backbone_diagnostics(training, steps)
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


def backbone_diagnostics(training: Training, steps: int) -> dict[str, float]:
    """Diagnose the backbone's features of the first view, over the batches of the first `steps` steps."""
    pooled, local = [], []
    for batch in training.loader.batches(0, steps):
        feature_map, vector = training.state.model.backbone(batch.images[0].to(training.device))
        pooled.append(vector.float())
        local.append(feature_map.float().flatten(2).transpose(1, 2).flatten(0, 1))
    return view_diagnostics(torch.cat(pooled), torch.cat(local), training.world)
