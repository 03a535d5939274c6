"""A segmentation evaluation as one plain mmsegmentation config, which is written to a file and run from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.layout import SegmentationLayout, SegmentationPart
from eval.parent import Parent
from eval.segmentation_config import OptimizerConfig, SegmentationConfig


def plain_config(
    config: SegmentationConfig,
    layout: SegmentationLayout,
    parent: Parent,
    channels: list[int],
    work_dir: Path,
    device: torch.device,
    processes: int = 1,
) -> dict[str, Any]:
    """Return the config for mmengine's Runner; `channels` are those of the maps that the head gets."""
    own = ["eval.mmseg_parts", "eval.mmseg_runner"]
    return {
        "custom_imports": {"imports": own, "allow_failed_imports": False},
        "default_scope": "mmseg",
        "model": model(config, parent, channels, len(layout.classes), processes > 1),
        "train_dataloader": train_loader(config, layout, device, processes),
        "val_dataloader": val_loader(config, layout, device),
        "train_cfg": {"type": "ResumableTrainLoop", "max_iters": config.iterations},
        "val_cfg": {"type": "ValLoop"},
        "val_evaluator": {
            "type": "ClassIoUMetric",
            "iou_metrics": ["mIoU"],
            "ignore_index": layout.ignore_index,
            "collect_device": "gpu",  # by the processes' own connection, on CPUs too, and not by a shared folder
        },
        "optim_wrapper": optimizer(config),
        "param_scheduler": schedule(config.optimizer, config.iterations),
        # TrainingWatch of mmseg_runner.py saves checkpoints: mmengine's are not atomic.
        "default_hooks": {
            "checkpoint": None,
            "sampler_seed": None,
            "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
        },
        "log_processor": {"by_epoch": False},
        "env_cfg": {"cudnn_benchmark": False},
        "randomness": {"seed": config.seed},
        "device": str(device),
        "launcher": "pytorch" if processes > 1 else "none",
        "channels_last": config.channels_last,
        "find_unused_parameters": config.finetune,  # some networks have layers after their map, which get no gradient
        "work_dir": str(work_dir),
    }


def model(config: SegmentationConfig, parent: Parent, channels: list[int], classes: int, sync: bool) -> dict[str, Any]:
    norm = {"type": "SharedBN" if sync else "BN"}  # SharedBN: of eval/mmseg_parts.py
    mean, std = parent.normalisation
    window = {"crop_size": list(config.crop), "stride": [config.slide_stride] * 2}
    return {
        "type": "EncoderDecoder",
        "data_preprocessor": {
            "type": "SegDataPreProcessor",
            "mean": [255 * value for value in mean],
            "std": [255 * value for value in std],
            "bgr_to_rgb": True,  # mmcv decodes to BGR
            "pad_val": 0,
            "seg_pad_val": 255,
            "size": list(config.crop),
        },
        "backbone": {
            "type": "PretrainedBackbone",
            "run": str(parent.run.path.resolve()),
            **({} if parent.at is None else {"at": parent.at}),
            "taps": config.taps,
            "finetune": config.finetune,
            "final_norm": config.final_norm,
            "drop_path": config.drop_path,
            "output_stride": config.output_stride,
            "sync": sync and config.finetune,
        },
        "decode_head": {**head(config, channels), "num_classes": classes, "norm_cfg": norm},
        "train_cfg": {},
        "test_cfg": {"mode": "slide", **window} if config.inference == "slide" else {"mode": "whole"},
    }


def head(config: SegmentationConfig, channels: list[int]) -> dict[str, Any]:
    loss = {"loss_decode": {"type": "CrossEntropyLoss", "use_sigmoid": False, "loss_weight": 1.0}}
    if config.head == "linear":
        return {"type": "LinearHead", "in_channels": channels, "dropout_ratio": config.dropout or 0, **loss}
    # As mmsegmentation's fcn_r50-d8 configs, without their auxiliary head.
    maps = {"in_channels": channels, "in_index": list(range(len(channels))), "input_transform": "resize_concat"}
    return {
        "type": "FCNHead",
        **maps,
        "channels": 512,
        "num_convs": 2,
        "concat_input": True,
        "dropout_ratio": 0.1 if config.dropout is None else config.dropout,
        "align_corners": False,
        **loss,
    }


def train_loader(
    config: SegmentationConfig, layout: SegmentationLayout, device: torch.device, processes: int
) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "ReadImage"}, read_mask(layout)]
    if config.image_scale is not None:
        scale = {"scale": tuple(config.image_scale), "ratio_range": tuple(config.scale_range), "keep_ratio": True}
        steps.append({"type": "RandomResize", **scale})
    steps.append({"type": "RandomCrop", "crop_size": config.crop, "cat_max_ratio": config.cat_max_ratio})
    if config.flip:
        steps.append({"type": "RandomFlip", "prob": 0.5})
    if config.photometric_distortion:
        steps.append({"type": "PhotoMetricDistortion"})
    images = dataset(layout, layout.train, steps)
    return {
        "batch_size": config.batch_size // processes,
        "num_workers": config.machine.workers,
        "pin_memory": device.type == "cuda",
        "worker_init_fn": {"type": "outlive_stops"},
        "sampler": {"type": "ResumableSampler", "seed": config.seed, "batch_size": config.batch_size},
        "dataset": {**images, "type": "SeededSegDataset", "seed": config.seed},
    }


def val_loader(config: SegmentationConfig, layout: SegmentationLayout, device: torch.device) -> dict[str, Any]:
    """Masks are read after the resizing, so predictions are compared at the image's own size."""
    steps: list[dict[str, Any]] = [{"type": "ReadImage"}]
    if config.image_scale is not None:
        steps.append({"type": "Resize", "scale": tuple(config.image_scale), "keep_ratio": True})
    steps.append(read_mask(layout))
    return {
        "batch_size": config.machine.val_batch_size,
        "num_workers": config.machine.workers,
        "pin_memory": device.type == "cuda",
        "worker_init_fn": {"type": "outlive_stops"},
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {**dataset(layout, layout.val, steps), "type": "PartsDataset", "test_mode": True},
    }


def read_mask(layout: SegmentationLayout) -> dict[str, Any]:
    labels = layout.labels
    values = None if labels.values is None else list(labels.values)
    return {"type": "ReadMask", "classes": labels.classes, "values": values, "ignore": labels.ignore}


def dataset(
    layout: SegmentationLayout, parts: Sequence[SegmentationPart], steps: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "data_root": str(layout.root.resolve()),
        "parts": [asdict(part) for part in parts],
        "img_suffix": layout.img_suffix,
        "seg_map_suffix": layout.mask_suffix,
        "metainfo": {"classes": list(layout.classes), "palette": [list(colour) for colour in layout.palette]},
        "ignore_index": layout.ignore_index,
        "reduce_zero_label": False,
        "serialize_data": False,  # mmengine collects garbage for it, which takes seconds
        "pipeline": [*steps, {"type": "PackSegInputs"}],
    }


def optimizer(config: SegmentationConfig) -> dict[str, Any]:
    settings = config.optimizer
    kind: dict[str, Any] = {"type": "AdamW"}
    if settings.name == "sgd":
        kind = {"type": "SGD", "momentum": settings.momentum}
    wrapper: dict[str, Any] = {
        "type": "OptimWrapper",
        "optimizer": {**kind, "lr": settings.lr, "weight_decay": settings.weight_decay},
    }
    if config.precision != "float32":
        wrapper |= {"type": "AutocastOptimWrapper", "dtype": config.precision}
    if config.finetune:
        wrapper["paramwise_cfg"] = {"custom_keys": {"backbone": {"lr_mult": config.backbone_lr_multiplier}}}
    return wrapper


def schedule(settings: OptimizerConfig, iterations: int) -> list[dict[str, Any]]:
    """Linear warm-up, and poly or cosine decay to end_lr at the last iteration."""
    warmup = settings.warmup_iterations
    begin = warmup if settings.decay_start == "warmup_end" else 0
    span = {"begin": begin, "end": iterations, "by_epoch": False, "eta_min": settings.end_lr}
    if settings.schedule == "poly":
        decay: dict[str, Any] = {"type": "PolyLR", "power": settings.power, **span}
    else:
        decay = {"type": "CosineAnnealingLR", "T_max": iterations - begin - 1, **span}
    if warmup == 0:
        return [decay]
    return [{"type": "LinearLR", "start_factor": 1e-6, "begin": 0, "end": warmup, "by_epoch": False}, decay]
