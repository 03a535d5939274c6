"""The hooks that make an mmengine training one of this project's runs: progress, checkpoints, stops, a picture.

Of several processes the first alone writes; what the others must know is agreed on.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from data.layout import SegmentationLayout
from data.views import Purpose, sample_generator
from eval.predictions import draw_predictions, spread
from eval.segmentation_config import SegmentationConfig
from runtime import files
from runtime.distributed import largest
from runtime.errors import NotFiniteError, UserError
from runtime.progress import Progress
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
        if not is_main_process():
            return
        if runner.iter:
            print(f"going on at iteration {runner.iter} of {runner.max_iters}", flush=True)
        self.run.drop_metrics_after(runner.iter)
        if rows := self.run.metrics():
            self.loss = rows[-1]["loss"]  # of a run that had only its score to get
        every = self.config.machine.log_seconds
        self.progress = Progress(self.run, "segmentation", runner.max_iters, "iterations", every, runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Dropout and drop path are functions of (seed, iteration, process): a resumed run repeats them."""
        stream = sample_generator(self.config.seed, runner.iter, get_rank(), Purpose.DROPOUT)
        torch.manual_seed(int(stream.integers(2**63)))
        self.learning_rate = runner.optim_wrapper.get_lr()["lr"][0]  # of this iteration; its hooks set the next one's

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        done, last = runner.iter + 1, runner.iter + 1 == runner.max_iters
        self.loss = outputs["loss"].item()
        self.seconds = self.seconds_before + time.monotonic() - self.started
        if not math.isfinite(self.loss):
            raise NotFiniteError(
                f"the loss is {self.loss} at iteration {done}; the last checkpoint is kept. Lower optimizer.lr, "
                "or lengthen optimizer.warmup_iterations"
            )
        if done % self.config.machine.log_steps == 0 or last:
            self.write_row(runner, done, data_batch, outputs)
        stop = largest(self.stop.signal or 0)  # one process's stop is everyone's
        if is_main_process():
            if stop or last or time.monotonic() - self.saved >= self.config.machine.save_seconds:
                self.save(runner)
            self.progress.update(done, f"loss {self.loss:.3f}")
        if stop:
            self.stop.signal = stop
            self.stop.leave()

    def write_row(self, runner: Runner, done: int, data_batch: Any, outputs: dict[str, Any]) -> None:
        """The loss is the mean over all pixels, the accuracy over those with a label: of all processes together."""
        ignored = getattr(runner.model, "module", runner.model).decode_head.ignore_index
        labelled = sum((sample.gt_sem_seg.data != ignored).sum().item() for sample in data_batch["data_samples"])
        loss, share = outputs["loss"].detach().double(), outputs["decode.acc_seg"].detach().double().mean()
        sums = torch.stack([loss, share * labelled, torch.full_like(loss, labelled), torch.ones_like(loss)])
        all_reduce(sums)
        losses, right, labelled, processes = sums.tolist()
        self.loss, accuracy = losses / processes, right / max(labelled, 1)
        if not is_main_process():
            return
        epoch = done * self.config.batch_size / len(runner.train_dataloader.dataset)
        row = {"step": done, "epoch": epoch, "time": time.time(), "seconds": self.seconds, "loss": self.loss}
        self.run.append_metrics(row | {"pixel_accuracy": accuracy, "learning_rate": self.learning_rate})

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
        keys = getattr(runner.model, "module", runner.model).state_dict()
        return [key for key in keys if self.config.finetune or not key.startswith(FROZEN_PREFIX)]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = dict(metrics or {})
        self.seconds = self.seconds_before + time.monotonic() - self.started


class PredictionPicture(Hook):
    """Keeps what was predicted for a few validation images, spread over the list, and draws them at the end."""

    def __init__(self, layout: SegmentationLayout, count: int, path: Path) -> None:
        self.layout, self.path = layout, path
        names = layout.names("val")
        self.names = {str(layout.image("val", names[k]).resolve()): names[k] for k in spread(len(names), count)}
        self.kept: dict[str, np.ndarray] = {}

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for sample in outputs:
            name = self.names.get(str(Path(sample.img_path).resolve()))
            if name is not None:
                self.kept[name] = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        parts = all_gather_object(self.kept)
        if is_main_process():
            found = {name: prediction for part in parts for name, prediction in part.items()}
            draw_predictions(self.layout, {name: found[name] for name in self.names.values()}, self.path)
