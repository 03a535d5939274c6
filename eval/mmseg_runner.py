"""How mmengine runs an evaluation here: Runner, loop, metric, mixed precision, and the hooks that make it a run.

The hooks log, save, stop and keep predictions. Of several processes only the first writes; stops and losses are
agreed on by all. Importing this module registers its parts; a config names it in `custom_imports`.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import all_gather_object, all_reduce, get_rank, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmseg.evaluation import IoUMetric
from mmseg.registry import LOOPS, METRICS, OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.layout import SegmentationLayout
from data.views import Purpose, sample_generator
from data.workers import WatchedLoader
from eval.predictions import PICTURE, draw_predictions, save_predictions, spread
from eval.segmentation_config import SegmentationConfig
from runtime import files
from runtime.distributed import any_stop
from runtime.errors import CHECKPOINT_ERRORS, NotFiniteError, UserError, unreadable_checkpoint
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import StopRequest

FROZEN_PREFIX = "backbone."


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, but a resumed run starts at its next batch at once, where mmengine reads all earlier ones again.

    Validation comes once, at the end, even if the run was interrupted after its training.
    """

    def run(self) -> nn.Module:
        runner = self.runner
        self.dataloader.sampler.first = self._iter * self.dataloader.sampler.batch_size
        self.dataloader_iterator = _InfiniteDataloaderIterator(self.dataloader)
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        runner.model.train()
        while self._iter < self._max_iters:
            self.run_iter(next(self.dataloader_iterator))
        runner.call_hook("after_train_epoch")
        runner.val_loop.run()
        runner.call_hook("after_train")
        return runner.model


@METRICS.register_module()
class ClassIoUMetric(IoUMetric):
    """mmsegmentation's IoUMetric, whose percentages are rounded, plus exact ones and those of each class."""

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        super().process(data_batch, data_samples)
        before = len(self.results) - len(data_samples)
        self.results[before:] = [tuple(area.cpu() for area in areas) for areas in self.results[before:]]

    def compute_metrics(self, results: list[tuple[Tensor, ...]]) -> dict[str, float]:
        """`results`: areas (classes,) of intersection, union, prediction and label of each image."""
        # Sums of float32 areas stop being exact at 2^24 pixels.
        exact = [tuple(area.double() for area in areas) for areas in results]
        metrics: dict[str, float] = super().compute_metrics(exact)
        sums = [sum(areas) for areas in zip(*exact, strict=True)]
        shares = self.total_area_to_metrics(*sums, self.metrics, self.nan_to_num, self.beta)
        metrics |= {f"exact.m{name}": 100 * float(np.nanmean(shares[name])) for name in ("IoU", "Acc")}
        metrics["exact.aAcc"] = 100 * float(shares["aAcc"])
        iou = zip(self.dataset_meta["classes"], shares["IoU"], strict=True)
        return metrics | {f"class.{name}": 100 * float(share) for name, share in iou}


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(AmpOptimWrapper):
    """mmengine's AmpOptimWrapper, on CPUs too; only float16 has its loss scaled."""

    def __init__(self, dtype: str, **rest: Any) -> None:
        OptimWrapper.__init__(self, **rest)  # AmpOptimWrapper's own refuses to run without a GPU
        self._scale_update_param = None
        self.cast_dtype = getattr(torch, dtype)
        self.loss_scaler = torch.amp.GradScaler("cuda", enabled=dtype == "float16")

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        device = self.param_groups[0]["params"][0].device.type
        with OptimWrapper.optim_context(self, model), torch.autocast(device, self.cast_dtype):
            yield


class QuietRunner(Runner):
    """mmengine's Runner that logs to its file alone, computes on `cfg.device`, and gets the backbone's tensors.

    Its config names the pretraining run alone, from which the backbone would read them again.
    """

    def __init__(self, cfg: Config, backbone: Mapping[str, Tensor]) -> None:
        self.loaded_backbone = backbone
        parameters = inspect.signature(Runner).parameters
        super().__init__(**{key: value for key, value in cfg.items() if key in parameters}, cfg=cfg)

    def build_model(self, model: dict[str, Any]) -> nn.Module:
        return super().build_model({**model, "backbone": {**model["backbone"], "loaded": self.loaded_backbone}})

    def build_logger(self, *arguments: Any, **rest: Any) -> MMLogger:
        logger = super().build_logger(*arguments, **rest)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        return logger

    @staticmethod
    def build_dataloader(*arguments: Any, **rest: Any) -> DataLoader:
        """Watch the workers: mmengine names torch's class itself, so the class of its loader is changed."""
        loader = Runner.build_dataloader(*arguments, **rest)
        loader.__class__ = WatchedLoader
        return loader

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Do nothing: run.yaml has the machine and the versions, and collecting them again takes seconds."""

    def dump_config(self) -> None:
        """Do nothing: the config came from the file in the run's directory."""

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Move the model to `cfg.device`: mmengine takes the first GPU, and knows no distributed training on CPUs."""
        layout = torch.channels_last if self.cfg.channels_last else torch.preserve_format
        model = model.to(self.cfg.device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        if not self.distributed:
            return model
        device = torch.device(self.cfg.device)
        return MMDistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.find_unused_parameters,
        )

    def load_or_resume(self) -> None:
        """UserError where the checkpoint is cut off or holds anything but tensors and plain values."""
        try:
            super().load_or_resume()
        except CHECKPOINT_ERRORS as error:
            raise unreadable_checkpoint(self._load_from, error) from error


class TrainingWatch(Hook):
    """Makes a training a run: logs its metrics, saves its checkpoints, stops on request, and keeps its scores.

    Register it last (VERY_LOW): see segmentation.py.
    """

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
        self.run.resume_metrics_after(runner.iter)
        if rows := self.run.metrics():
            self.loss = rows[-1]["loss"]  # of a run that was interrupted after training, before its score
        every = self.config.machine.log_seconds
        self.progress = Progress(self.run, "segmentation", runner.max_iters, "iterations", every, runner.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Make dropout and drop path functions of (seed, iteration, process), so that a resumed run repeats them."""
        stream = sample_generator(self.config.seed, runner.iter, get_rank(), Purpose.DROPOUT)
        torch.manual_seed(int(stream.integers(2**63)))
        # The head's, which is the optimiser's last group, in this iteration; its hooks set the next one's.
        self.learning_rate = runner.optim_wrapper.get_lr()["lr"][-1]

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
        stop = any_stop(self.stop)
        if is_main_process():
            if stop or last or time.monotonic() - self.saved >= self.config.machine.save_seconds:
                self.save(runner)
            self.progress.update(done, f"loss {self.loss:.3f}")
        if stop:
            self.stop.leave()

    def write_row(self, runner: Runner, done: int, data_batch: Any, outputs: dict[str, Any]) -> None:
        """Log the mean loss over all pixels and the accuracy over labelled ones, of all processes together."""
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
        """Keep tensors and plain values only, so that the file loads with weights_only=True.

        mmengine's log histories would need `getattr` to be allowed; they only smooth its own log. A frozen backbone is
        in the pretraining run already.
        """
        checkpoint["state_dict"] = {key: checkpoint["state_dict"][key] for key in self.trained_keys(runner)}
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """mmengine loads the keys that fit and ignores the others, so they are compared here."""
        saved, expected = set(checkpoint["state_dict"]), set(self.trained_keys(runner))
        if saved != expected:
            raise UserError(
                f"{self.checkpoint} is of another evaluation: missing {sorted(expected - saved)}, "
                f"unexpected {sorted(saved - expected)}. Delete it to start this run over"
            )
        self.seconds_before = self.seconds = checkpoint["meta"]["seconds"]

    def trained_keys(self, runner: Runner) -> list[str]:
        keys = getattr(runner.model, "module", runner.model).state_dict()
        return [key for key in keys if self.config.finetune or not key.startswith(FROZEN_PREFIX)]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = dict(metrics or {})
        self.seconds = self.seconds_before + time.monotonic() - self.started


class PredictionKeeper(Hook):
    """Keeps the predictions of a few validation images, spread over the list, and draws them at the end."""

    def __init__(self, layout: SegmentationLayout, count: int, run: Run) -> None:
        self.layout, self.run = layout, run
        names = layout.names("val")
        self.names = {str(layout.image("val", names[k]).resolve()): names[k] for k in spread(len(names), count)}
        self.kept: dict[str, np.ndarray] = {}

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        for sample in outputs:
            name = self.names.get(str(Path(sample.img_path).resolve()))
            if name is not None:
                self.kept[name] = sample.pred_sem_seg.data[0].cpu().numpy().astype(np.uint8)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        parts = all_gather_object(self.kept)  # each process predicts its share of val
        if is_main_process():
            by_name = {name: prediction for part in parts for name, prediction in part.items()}
            predictions = {name: by_name[name] for name in self.names.values()}
            save_predictions(self.run, predictions)
            draw_predictions(self.layout, predictions, self.run.path / PICTURE)
