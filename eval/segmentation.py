"""Semantic segmentation with a linear head, run by mmsegmentation.

python -m eval.segmentation runs/pretrain/<run> --config eval/configs/seg_scenes.yaml key=value

mmengine's Runner trains mmsegmentation's EncoderDecoder (frozen or finetuned backbone; BatchNorm + 1x1 convolution, or
an FCN head) and scores it once, at the end, by IoUMetric. The config that ran is mmseg_config.py in the run's
directory, a few predicted maps are predictions.png there; mmengine's log is under mmseg/. On several GPUs, the same
command by `torchrun --nproc-per-node 8 -m eval.segmentation ...` or srun: the batch is shared out, the run is the same.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from data.catalog import open_dataset
from data.layout import SegmentationLayout
from eval.command import evaluate
from eval.mmseg_config import plain_config
from eval.parent import Parent, load_parent_backbone
from eval.segmentation_config import STAGE, SegmentationConfig, identity
from runtime import compat, files
from runtime.distributed import barrier, broadcast
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from runtime.stopping import StopRequest, stop_request
from runtime.world import world_from_environment

if TYPE_CHECKING:
    from mmengine.runner import Runner

CHECKPOINT = "checkpoint.pth"
MMSEG_CONFIG = "mmseg_config.py"
PREDICTIONS = "predictions.png"


def segment(config: SegmentationConfig, parent: Parent, run: Run, device: torch.device) -> dict[str, Any]:
    """Train and score; the dict of result.json. Called by every process of the run."""
    world = world_from_environment()
    refuse_impossible(config, world.size, device)
    layout = open_dataset(config.data).segmentation()
    channels = tapped_channels(config, parent)
    cfg = plain_config(config, layout, parent.run.path, channels, run.path / "mmseg", device, world.size)
    mean, std = ([255 * value for value in values] for values in parent.normalisation)
    cfg["model"]["data_preprocessor"] |= {"mean": mean, "std": std}
    runner = build_runner(cfg, run, device)
    with stop_request() as stop:
        watch = watch_training(runner, config, run, stop, layout)
        runner.train()
    if not config.finetune:
        refuse_changed_backbone(runner, parent)
    scores = {
        "protocol": config.protocol,
        "taps": config.taps,
        "miou": watch.metrics["exact.mIoU"],
        "macc": watch.metrics["exact.mAcc"],
        "aacc": watch.metrics["exact.aAcc"],
        "iou": {name: finite(watch.metrics[f"class.{name}"]) for name in layout.classes},
        "loss": watch.loss,
        "iterations": config.iterations,
        "train_images": len(layout.names("train")),
        "val_images": len(layout.names("val")),
        "seconds": watch.seconds,
    }
    if world.is_main:
        print(f"segmentation, {config.protocol}, taps {config.taps}: mIoU {scores['miou']:.2f} %", flush=True)
    return scores


def refuse_impossible(config: SegmentationConfig, processes: int, device: torch.device) -> None:
    """UserError for what only this machine's processes and device can tell."""
    if config.batch_size % processes:
        raise UserError(
            f"config: batch_size = {config.batch_size} cannot be shared out among {processes} processes; "
            "allowed: a multiple of their number (batch_size is of all processes together)"
        )
    if config.precision == "float16" and device.type != "cuda":
        raise UserError(f"config: precision = 'float16' on {device}; allowed: float32 or bfloat16 there, any on CUDA")


def finite(value: float) -> float | None:
    """None for the IoU of a class that is nowhere in val, predicted or labelled."""
    return value if math.isfinite(value) else None


def tapped_channels(config: SegmentationConfig, parent: Parent) -> list[int]:
    """Channels of each map that the head sees. UserError for a network that does not give its stages."""
    backbone = load_parent_backbone(parent)
    if config.taps == "last":
        return [backbone.channels]
    if not backbone.stage_channels:
        raise UserError(f"config: taps = 'all' is not possible: backbone {backbone.name} does not give its stages")
    return list(backbone.stage_channels)


def build_runner(cfg: dict[str, Any], run: Run, device: torch.device) -> Runner:
    """The Runner of the plain file that process 0 leaves in the run's directory."""
    compat.prepare_mmcv()
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|seg)\.")
    from mmengine.config import Config
    from mmengine.dist import is_main_process

    from eval.mmseg_loop import QuietRunner

    torch.backends.cudnn.deterministic = True
    file = run.path / MMSEG_CONFIG
    if is_main_process():
        files.write_text(file, Config(cfg).pretty_text)
    barrier()
    loaded = Config.fromfile(file)
    loaded.device = str(device)  # of this process
    # mmengine keeps loggers and message hubs by this name for the life of the process.
    loaded.experiment_name = f"{run.name}-{time.time_ns()}"
    if broadcast((run.path / CHECKPOINT).exists()):
        loaded.load_from, loaded.resume = str(run.path / CHECKPOINT), True
    runner: Runner = QuietRunner.from_cfg(loaded)
    return runner


def watch_training(
    runner: Runner, config: SegmentationConfig, run: Run, stop: StopRequest, layout: SegmentationLayout
) -> Any:
    """Register the hooks that log, save, stop and draw; the first holds the metrics at the end."""
    from eval.mmseg_hook import PredictionPicture, TrainingWatch

    watch = TrainingWatch(config, run, stop, run.path / CHECKPOINT)
    runner.register_hook(watch, priority="VERY_LOW")
    if config.machine.predictions:
        picture = PredictionPicture(layout, config.machine.predictions, run.path / PREDICTIONS)
        runner.register_hook(picture, priority="LOW")
    return watch


def refuse_changed_backbone(runner: Runner, parent: Parent) -> None:
    """A frozen backbone must end with exactly the file's weights and statistics; anything else is a bug of ours."""
    model = getattr(runner.model, "module", runner.model)  # within DistributedDataParallel
    trained = model.backbone.network.trunk.state_dict()
    for name, value in load_file(parent.weights).items():
        if not torch.equal(trained[name].cpu(), value):
            raise RuntimeError(f"the frozen backbone's {name} changed during the evaluation of {parent.run.path}")


def main(argv: Sequence[str]) -> None:
    evaluate(argv, STAGE, SegmentationConfig, identity, segment, several=True)


if __name__ == "__main__":
    run_command(main)
