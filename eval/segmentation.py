"""Semantic segmentation with a linear head, run by mmsegmentation.

python -m eval.segmentation runs/pretrain/<run> --config eval/configs/seg_scenes.yaml key=value

mmengine's Runner trains mmsegmentation's EncoderDecoder (frozen or finetuned backbone; BatchNorm + 1x1 convolution, or
an FCN head) and scores it once, at the end, by IoUMetric. The config that ran is mmseg_config.py in the run's
directory; a few predicted maps are kept in predictions.npz and drawn in predictions.png; mmengine's log is under
mmseg/. On several GPUs, the same command by `torchrun --nproc-per-node 8 -m eval.segmentation ...` or srun: the batch
is shared out, the run is the same.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from data.catalog import open_dataset
from eval.command import evaluate
from eval.mmseg_config import plain_config
from eval.parent import Parent, load_parent_backbone
from eval.segmentation_config import SegmentationConfig
from runtime import compat, files
from runtime.device import choose_convolutions
from runtime.distributed import barrier, broadcast
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from runtime.stopping import stop_request
from runtime.world import World
from vicregl.backbones import Backbone

if TYPE_CHECKING:
    from mmengine.runner import Runner

CHECKPOINT = "checkpoint.pth"
MMSEG_CONFIG = "mmseg_config.py"


def segment(config: SegmentationConfig, parent: Parent, run: Run, device: torch.device, world: World) -> dict[str, Any]:
    """Train and score; the dict of result.json. Called by every process of the run."""
    refuse_impossible(config, world.size, device)
    layout = open_dataset(config.data).segmentation()
    backbone = load_parent_backbone(parent)  # stays as the file has it: the model gets copies of its tensors
    channels = tapped_channels(config, backbone)
    cfg = plain_config(config, layout, parent, channels, run.path / "mmseg", device, world.size)
    runner = build_runner(cfg, backbone, run, device)
    from eval.mmseg_runner import PredictionKeeper, TrainingWatch

    with stop_request() as stop:
        watch = TrainingWatch(config, run, stop, run.path / CHECKPOINT)
        # Of the hooks after an iteration the last, so that a checkpoint has the state after the whole of it: mmengine's
        # own hooks step the learning rates there.
        runner.register_hook(watch, priority="VERY_LOW")
        if config.machine.predictions:
            runner.register_hook(PredictionKeeper(layout, config.machine.predictions, run), priority="LOW")
        runner.train()
    if not config.finetune:
        refuse_changed_backbone(runner, backbone)
    iou = files.finite([watch.metrics[f"class.{name}"] for name in layout.classes])  # NaN: nowhere in val
    if world.is_main:
        miou = watch.metrics["exact.mIoU"]
        print(f"segmentation, {config.protocol}, taps {config.taps}: mIoU {miou:.2f} %", flush=True)
    return {
        "protocol": config.protocol,
        "taps": config.taps,
        "miou": watch.metrics["exact.mIoU"],
        "macc": watch.metrics["exact.mAcc"],
        "aacc": watch.metrics["exact.aAcc"],
        "iou": dict(zip(layout.classes, iou, strict=True)),
        "loss": watch.loss,
        "iterations": config.iterations,
        "train_images": len(layout.names("train")),
        "val_images": len(layout.names("val")),
        "seconds": watch.seconds,
    }


def refuse_impossible(config: SegmentationConfig, processes: int, device: torch.device) -> None:
    """UserError for what depends on this machine's processes and device."""
    if config.batch_size % processes:
        raise UserError(
            f"config: batch_size = {config.batch_size} cannot be shared out among {processes} processes; "
            "allowed: a multiple of their number (batch_size is of all processes together)"
        )
    if config.precision == "float16" and device.type != "cuda":
        raise UserError(f"config: precision = 'float16' on {device}; allowed: float32 or bfloat16 there, any on CUDA")


def tapped_channels(config: SegmentationConfig, backbone: Backbone) -> list[int]:
    """Channels of each map that the head gets. UserError for a network that does not give its stages."""
    if config.taps == "last":
        return [backbone.channels]
    if not backbone.stage_channels:
        raise UserError(f"config: taps = 'all' is not possible: backbone {backbone.name} does not give its stages")
    return list(backbone.stage_channels)


def build_runner(cfg: dict[str, Any], backbone: Backbone, run: Run, device: torch.device) -> Runner:
    """Return the Runner of the file that process 0 writes to the run's directory; it goes on from a checkpoint."""
    compat.prepare_mmcv()
    warnings.filterwarnings("ignore", module=r"mm(engine|cv|seg)\.")
    from mmengine.config import Config
    from mmengine.dist import is_main_process

    from eval.mmseg_runner import QuietRunner

    choose_convolutions(device, deterministic=True)
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
    return QuietRunner(loaded, backbone.trunk.state_dict())


def refuse_changed_backbone(runner: Runner, backbone: Backbone) -> None:
    """Raise unless a frozen backbone ends with exactly the file's weights and statistics: else it is a bug of ours."""
    model = getattr(runner.model, "module", runner.model)  # within DistributedDataParallel
    trained = model.backbone.network.trunk.state_dict()
    for name, value in backbone.trunk.state_dict().items():
        if not torch.equal(trained[name].cpu(), value):
            raise RuntimeError(f"the frozen backbone's {name} changed during the evaluation")


def main(argv: Sequence[str]) -> None:
    evaluate(argv, SegmentationConfig, segment)


if __name__ == "__main__":
    run_command(main)
