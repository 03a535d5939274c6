"""The hook that makes an mmengine training one of this project's runs: progress, metrics, checkpoints, stops."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from eval.progress import Progress
from eval.segmentation_config import SegmentationConfig
from runtime import files
from runtime.errors import NotFiniteError, UserError
from runtime.rundir import Run
from runtime.stopping import StopRequest

FROZEN_PREFIX = "backbone."


class TrainingWatch(Hook):
    """Register it last (VERY_LOW), so that what it saves is the state after the whole iteration."""

    def __init__(self, config: SegmentationConfig, run: Run, stop: StopRequest, checkpoint: Path) -> None:
        self.config, self.run, self.stop, self.checkpoint = config, run, stop, checkpoint
        self.metrics: dict[str, float] = {}
        self.loss = math.nan
        self.seconds = self.seconds_before = 0.0  # over all attempts
        self.started = self.saved = time.monotonic()

    def before_train(self, runner: Runner) -> None:
        if runner.iter:
            print(f"going on at iteration {runner.iter} of {runner.max_iters}", flush=True)
        self.run.drop_metrics_after(runner.iter)
        every = self.config.machine.log_seconds
        self.progress = Progress(self.run, "segmentation", runner.max_iters, "iterations", every, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done = runner.iter + 1
        self.loss = outputs["loss"].item()
        self.seconds = self.seconds_before + time.monotonic() - self.started
        if not math.isfinite(self.loss):
            raise NotFiniteError(
                f"the loss is {self.loss} at iteration {done}; the last checkpoint is kept. Lower optimizer.lr, "
                "or lengthen optimizer.warmup_iterations"
            )
        if done % self.config.machine.log_steps == 0 or done == runner.max_iters:
            self.write_row(runner, done, outputs)
        due = time.monotonic() - self.saved >= self.config.machine.save_seconds
        if self.stop or due or done == runner.max_iters:
            self.save(runner)
        if self.stop:
            self.stop.leave()
        self.progress.update(done, f"loss {self.loss:.3f}")

    def write_row(self, runner: Runner, done: int, outputs: dict[str, Any]) -> None:
        epoch = done * self.config.batch_size / len(runner.train_dataloader.dataset)
        row = {"step": done, "epoch": epoch, "time": time.time(), "seconds": self.seconds, "loss": self.loss}
        accuracy = float(outputs["decode.acc_seg"])
        self.run.append_metrics(
            row | {"pixel_accuracy": accuracy, "learning_rate": runner.optim_wrapper.get_lr()["lr"][0]}
        )

    def save(self, runner: Runner) -> None:
        def write(temporary: Path) -> None:
            meta = {"seconds": self.seconds}
            runner.save_checkpoint(str(temporary.parent), temporary.name, meta=meta, by_epoch=False)

        files.write_atomic(self.checkpoint, write)
        self.saved = time.monotonic()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Tensors and plain values alone, so that the file loads with weights_only=True.

        mmengine's log histories would need `getattr` to be allowed; they only smooth its own log. A frozen
        backbone is in the pretraining run already.
        """
        checkpoint["state_dict"] = {key: checkpoint["state_dict"][key] for key in self.trained_keys(runner)}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """mmengine loads what it finds and ignores the rest, so the keys are compared here."""
        found, wanted = set(checkpoint["state_dict"]), set(self.trained_keys(runner))
        if found != wanted:
            raise UserError(
                f"{self.checkpoint} is of another evaluation: missing {sorted(wanted - found)}, "
                f"unexpected {sorted(found - wanted)}. Delete it to start this run over"
            )
        self.seconds_before = self.seconds = checkpoint["meta"]["seconds"]

    def trained_keys(self, runner: Runner) -> list[str]:
        keys = runner.model.state_dict()
        return [key for key in keys if self.config.finetune or not key.startswith(FROZEN_PREFIX)]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = dict(metrics or {})
        self.seconds = self.seconds_before + time.monotonic() - self.started
