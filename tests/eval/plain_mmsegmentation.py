"""The published protocols as plain mmsegmentation: configs written by hand, its own parts, mmengine's Runner.

The facts are those of the published configs and of the mmsegmentation files that they build on; sizes and durations are
smaller. Images come in this project's order and from its random numbers; all else is mmsegmentation's. Import this
module after runtime.compat.prepare_mmcv().
"""

import random

import numpy as np
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from mmseg.datasets import PascalVOCDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATASETS, MODELS
from timm.models.convnext import convnext_atto
from torch import nn

from data.views import Purpose, sample_generator

BATCH = 4
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "ls_init_value": None}


@DATASETS.register_module()
class OrderedVOC(PascalVOCDataset):
    """Images by their number in the whole training, in this project's order and from its random numbers."""

    def __init__(self, *arguments, count, **rest):
        self.count = count
        super().__init__(*arguments, **rest)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        images = super().__len__()
        epoch, position = divmod(number, images)
        index = int(sample_generator(0, epoch, 0, Purpose.SEGMENTATION_ORDER).permutation(images)[position])
        seed = int(sample_generator(0, epoch, index, Purpose.SEGMENTATION_AUGMENTATION).integers(2**32))
        np.random.seed(seed)
        random.seed(seed)
        return super().__getitem__(index)


@MODELS.register_module()
class PublishedLinearHead(BaseDecodeHead):
    """Batch norm, then what every head of mmsegmentation ends with: dropout and a 1x1 convolution."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.norm = nn.BatchNorm2d(self.in_channels)

    def forward(self, maps):
        return self.cls_seg(self.norm(self._transform_inputs(maps)))


@MODELS.register_module()
class FrozenStages(BaseModule):
    """timm's ConvNeXt, stage by stage."""

    def __init__(self):
        super().__init__()
        self.trunk = convnext_atto(pretrained=False, num_classes=0, **TINY_CONVNEXT).requires_grad_(False)

    def train(self, mode=True):
        return super().train(False)

    def forward(self, images):
        maps = [self.trunk.stem(images)]
        for stage in self.trunk.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


def groups(runner):
    """The settings of the optimiser, and the shapes of what it trains."""
    names = ("lr", "initial_lr", "momentum", "betas", "weight_decay", "dampening", "nesterov", "eps")
    return [
        {name: group.get(name) for name in names}
        | {"trained": sorted(tuple(p.shape) for p in group["params"] if p.requires_grad)}
        for group in runner.optim_wrapper.param_groups
    ]


class Watch(Hook):
    """Begins with given weights and random numbers, and keeps what is seen of each iteration."""

    def __init__(self, backbone, head):
        self.backbone, self.head, self.rows = backbone, head, []

    def before_train(self, runner):
        getattr(runner.model.backbone, "trunk", runner.model.backbone).load_state_dict(self.backbone)
        runner.model.decode_head.load_state_dict(self.head)
        self.groups = groups(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.manual_seed(int(sample_generator(0, runner.iter, 0, Purpose.DROPOUT).integers(2**63)))
        self.rate = runner.optim_wrapper.param_groups[0]["lr"]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.rows.append((outputs["loss"].item(), outputs["decode.acc_seg"].item(), self.rate))

    def after_val_epoch(self, runner, metrics=None):
        self.metrics = metrics


def pipelines():
    load, mask, pack = ({"type": name} for name in ("LoadImageFromFile", "LoadAnnotations", "PackSegInputs"))
    train = [
        *(load, mask),
        {"type": "RandomResize", "scale": (256, 64), "ratio_range": (0.5, 2.0), "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": (64, 64), "cat_max_ratio": 0.75},
        *({"type": "RandomFlip", "prob": 0.5}, {"type": "PhotoMetricDistortion"}, pack),
    ]
    return train, [load, {"type": "Resize", "scale": (256, 64), "keep_ratio": True}, mask, pack]


def loaders(root, iterations):
    train, val = pipelines()
    prefix = {"img_path": "JPEGImages", "seg_map_path": "SegmentationClass"}
    shared, lists = {"data_root": str(root), "data_prefix": prefix}, "ImageSets/Segmentation"
    trained = {"type": "OrderedVOC", "count": BATCH * iterations, "ann_file": f"{lists}/train.txt", "pipeline": train}
    scored = {"type": "PascalVOCDataset", "ann_file": f"{lists}/val.txt", "pipeline": val}
    return {
        "train_dataloader": {
            "batch_size": BATCH,
            "num_workers": 0,
            "dataset": trained | shared,
            "sampler": {"type": "InfiniteSampler", "shuffle": False},
        },
        "val_dataloader": {
            "batch_size": 1,
            "num_workers": 0,
            "dataset": scored | shared,
            "sampler": {"type": "DefaultSampler", "shuffle": False},
        },
    }


RESNET = {
    "backbone": {
        "type": "ResNet",
        "depth": 50,
        "dilations": (1, 1, 2, 4),
        "strides": (1, 2, 1, 1),
        "style": "pytorch",
        "contract_dilation": True,
        "frozen_stages": 4,
        "norm_eval": True,
    },
    "head": {"in_channels": 2048, "in_index": 3, "channels": 2048, "dropout_ratio": 0.1},
    "test_cfg": {"mode": "whole"},
    "optimizer": {"type": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005},
}
CONVNEXT = {
    "backbone": {"type": "FrozenStages"},
    "head": {
        "in_channels": [8, 16, 24, 32],
        "in_index": [0, 1, 2, 3],
        "channels": 80,
        "dropout_ratio": 0,
        "input_transform": "resize_concat",
    },
    "test_cfg": {"mode": "slide", "crop_size": (64, 64), "stride": (43, 43)},
    "optimizer": {"type": "AdamW", "lr": 0.0001, "betas": (0.9, 0.999), "weight_decay": 0.05},
}


def schedules(kind, iterations, warmup):
    if kind is RESNET:
        return [{"type": "PolyLR", "eta_min": 1e-4, "power": 0.9, "begin": 0, "end": iterations, "by_epoch": False}]
    return [
        {"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": warmup, "by_epoch": False},
        {"type": "PolyLR", "eta_min": 0.0, "power": 1.0, "begin": 0, "end": iterations, "by_epoch": False},
    ]


def plain_runner(kind, root, work_dir, iterations, warmup):
    head = {"type": "PublishedLinearHead", "num_classes": 21, "align_corners": False} | kind["head"]
    preprocessor = {
        "type": "SegDataPreProcessor",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": 255,
        "size": (64, 64),
    }
    model = {
        "type": "EncoderDecoder",
        "data_preprocessor": preprocessor,
        "backbone": kind["backbone"],
        "decode_head": head,
        "train_cfg": {},
        "test_cfg": kind["test_cfg"],
    }
    settings = {
        **loaders(root, iterations),
        "model": model,
        "optim_wrapper": {"type": "OptimWrapper", "optimizer": kind["optimizer"]},
        "param_scheduler": schedules(kind, iterations, warmup),
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations, "val_interval": iterations},
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {"type": "IoUMetric", "iou_metrics": ["mIoU"]},
        "default_hooks": {"checkpoint": None, "logger": {"type": "LoggerHook", "log_metric_by_epoch": False}},
        "default_scope": "mmseg",
        "work_dir": str(work_dir),
        "experiment_name": work_dir.name,
    }
    return Runner.from_cfg(Config(settings))
