"""How mmengine runs an evaluation here: loop, metric, mixed precision, and a Runner that keeps to its device and log.

Importing this module registers its parts; a config names it in `custom_imports`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmseg.evaluation import IoUMetric
from mmseg.registry import LOOPS, METRICS, OPTIM_WRAPPERS
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data.workers import WatchedLoader
from runtime.errors import CHECKPOINT_ERRORS, unreadable_checkpoint


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, but a resumed run starts at its next batch at once (mmengine's own reads all former ones
    again), and validation comes once, at the end, also where training had ended before the interruption."""

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
    """mmsegmentation's IoUMetric, whose rounded percentages stay, with the exact ones and those of each class."""

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
    """mmengine's Runner that logs to its file alone, and computes on `cfg.device`."""

    def build_logger(self, *arguments: Any, **rest: Any) -> MMLogger:
        logger = super().build_logger(*arguments, **rest)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        return logger

    @staticmethod
    def build_dataloader(*arguments: Any, **rest: Any) -> DataLoader:
        """mmengine names torch's class itself; the other one only watches over what this one made."""
        loader = Runner.build_dataloader(*arguments, **rest)
        loader.__class__ = WatchedLoader
        return loader

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: run.yaml tells where and with what the run was made, and collecting it again takes seconds."""

    def dump_config(self) -> None:
        """Nothing: the config came from the file in the run's directory."""

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """On `cfg.device`; mmengine's own would take the first GPU, and knows no several processes on CPUs."""
        model = model.to(self.cfg.device)
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
