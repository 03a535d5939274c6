"""This project's parts in mmsegmentation's registries: backbone, head, dataset, sampler, loop, metric, runner.

Importing this module registers them; a config names them in `custom_imports`.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from mmseg.datasets import BaseSegDataset
from mmseg.evaluation import IoUMetric
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATA_SAMPLERS, DATASETS, LOOPS, METRICS, MODELS, TRANSFORMS
from torch import Tensor, nn
from torch.utils.data import Sampler

from data.views import sample_generator
from eval.checkpoint import UNREADABLE, unreadable
from eval.parent import load_parent_backbone, open_parent

_ORDER, _AUGMENTATION = 18, 19  # purposes of random streams


@MODELS.register_module()
class PretrainedBackbone(BaseModule):
    """The network of a finished pretraining run, loaded strictly; frozen in eval mode, or finetuned.

    `taps`: last gives one map, all gives every stage's, shallow to deep. `output_stride` 0 is the network's own.
    """

    def __init__(self, run: str, taps: str, finetune: bool, output_stride: int = 0) -> None:
        super().__init__(init_cfg=None)
        dilation = {"output_stride": output_stride} if output_stride else {}
        self.network = load_parent_backbone(open_parent(run), **dilation)
        self.taps, self.finetune = taps, finetune
        self.network.requires_grad_(finetune)

    def init_weights(self) -> None:
        """Nothing: the weights are the file's. Without this, mmengine might call timm's random initialisation."""

    def train(self, mode: bool = True) -> PretrainedBackbone:
        super().train(mode and self.finetune)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> maps (B, C_k, h_k, w_k)."""
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            return self.network.stages(images) if self.taps == "all" else [self.network(images)[0]]


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """BatchNorm and a 1x1 convolution, on one map or on several resized to the first and concatenated."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, norm_cfg: dict[str, Any], **rest: Any) -> None:
        super().__init__(
            in_channels=list(in_channels),
            in_index=list(range(len(in_channels))),
            input_transform="resize_concat",
            channels=sum(in_channels),
            num_classes=num_classes,
            out_channels=num_classes,
            norm_cfg=norm_cfg,
            dropout_ratio=0,
            **rest,
        )
        self.norm: nn.Module = build_norm_layer(norm_cfg, self.channels)[1]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k) -> logits (B, classes, h_0, w_0)."""
        return self.cls_seg(self.norm(self._transform_inputs(maps)))


@TRANSFORMS.register_module()
class MapLabels:
    """Mask values -> classes, by a table of 256; mmsegmentation's own label_map compares once for every value."""

    def __init__(self, values: Sequence[int]) -> None:
        self.table = np.array(values, np.uint8)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = self.table[results["gt_seg_map"]]
        return results


@DATASETS.register_module()
class SeededSegDataset(BaseSegDataset):
    """Training images by (epoch, index): the augmentation of each is a function of (seed, epoch, index) alone.

    mmsegmentation's transforms draw from numpy's and Python's global generators, so those are seeded for each.
    """

    def __init__(self, *arguments: Any, seed: int, **rest: Any) -> None:
        self.seed = seed
        super().__init__(*arguments, **rest)

    def __getitem__(self, number: tuple[int, int]) -> dict[str, Any]:
        epoch, index = number
        drawn = int(sample_generator(self.seed, epoch, index, _AUGMENTATION).integers(2**32))
        np.random.seed(drawn)
        random.seed(drawn)
        return super().__getitem__(index)


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """(epoch, index) of sample number `first`, `first` + 1, ... without end; each epoch shuffled by (seed, epoch)."""

    def __init__(self, dataset: SeededSegDataset, seed: int) -> None:
        self.size, self.seed, self.first = len(dataset), seed, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, position = divmod(self.first, self.size)
        while True:
            order = sample_generator(self.seed, epoch, 0, _ORDER).permutation(self.size).tolist()
            yield from ((epoch, index) for index in order[position:])
            epoch, position = epoch + 1, 0

    def __len__(self) -> int:
        return self.size


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop, but a resumed run starts at its next batch at once (mmengine's own reads all former ones
    again), and validation comes once, at the end, also where training had ended before the interruption."""

    def run(self) -> nn.Module:
        runner = self.runner
        self.dataloader.sampler.first = self._iter * self.dataloader.batch_size
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


class QuietRunner(Runner):
    """mmengine's Runner that logs to its file alone, and computes on `cfg.device`."""

    def build_logger(self, *arguments: Any, **rest: Any) -> MMLogger:
        logger = super().build_logger(*arguments, **rest)
        logger.handlers = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
        return logger

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        """Nothing: run.yaml tells where and with what the run was made, and collecting it again takes seconds."""

    def dump_config(self) -> None:
        """Nothing: the config came from the file in the run's directory."""

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        # mmengine moves the model to the first GPU, whatever was asked for.
        return super().wrap_model(model_wrapper_cfg, model).to(self.cfg.device)

    def load_or_resume(self) -> None:
        """UserError where the checkpoint is cut off or holds anything but tensors and plain values."""
        try:
            super().load_or_resume()
        except UNREADABLE as error:
            raise unreadable(self._load_from, error) from error
