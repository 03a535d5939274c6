"""What the tests of segmentation share: small runs, and mIoU computed without mmsegmentation."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from data.catalog import open_dataset
from eval import segmentation
from eval.mmseg_config import plain_config
from eval.parent import load_parent_backbone, open_parent
from eval.segmentation_config import SegmentationConfig
from runtime import config as configs
from runtime.rundir import Run

IN_OPEN, IN_CLOSE_NOWRITE = 0x20, 0x10  # of <sys/inotify.h>
CONFIG = "eval/configs/seg_scenes.yaml"
SMALL = ["iterations=6", "batch_size=8", "machine.val_batch_size=8", "machine.log_steps=1"]
HEAD = "decode_head."


@contextmanager
def count_opens(file: Path) -> Iterator[list[int]]:
    """A list that has, after the block, an entry for each time that the file was opened in it."""
    libc = ctypes.CDLL(None)
    handle = libc.inotify_init1(os.O_NONBLOCK)
    # Equal events in a row are one; a closing comes between two openings.
    libc.inotify_add_watch(handle, os.fsencode(file), IN_OPEN | IN_CLOSE_NOWRITE)
    opens: list[int] = []
    yield opens
    events = os.read(handle, 1 << 16)
    os.close(handle)
    opens += [mask for _, mask, _, _ in struct.iter_unpack("iIII", events) if mask & IN_OPEN]


def head_of(run: Run | Path) -> dict[str, torch.Tensor]:
    """The tensors in the run's checkpoint, which needs no class but torch's own."""
    path = run.path if isinstance(run, Run) else run
    return torch.load(path / "checkpoint.pth", weights_only=True)["state_dict"]


def read_pixels(image: Path) -> torch.Tensor:
    """(1, 3, H, W), normalised as the backbone expects it."""
    pixels = torch.tensor(cv2.imread(str(image))[:, :, ::-1] / 255).permute(2, 0, 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((pixels - mean[:, None, None]) / deviation[:, None, None]).float()[None]


def logits_of(backbone: torch.nn.Module, state: dict[str, torch.Tensor], x: torch.Tensor, taps: str) -> torch.Tensor:
    """(1, 3, H, W) -> (classes, H, W), without mmsegmentation: from the backbone and the head's tensors."""
    with torch.no_grad():
        maps = backbone.stages(x) if taps == "all" else [backbone(x)[0]]
        size, shape = maps[0].shape[2:], x.shape[2:]
        x = torch.cat([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps], 1)
        norm = {
            key: state[f"{HEAD}norm.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        }
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        weight, bias = state[f"{HEAD}conv_seg.weight"][:, :, 0, 0], state[f"{HEAD}conv_seg.bias"]
        logits = torch.einsum("kc,bchw->bkhw", weight, x) + bias[:, None, None]
        return F.interpolate(logits, shape, mode="bilinear", align_corners=False)[0]


def predict(backbone: torch.nn.Module, state: dict[str, torch.Tensor], image: Path, taps: str) -> np.ndarray:
    """The classes of one image, (H, W)."""
    return logits_of(backbone, state, read_pixels(image), taps).argmax(0).numpy()


def brute_force_iou(predictions: list[np.ndarray], masks: list[np.ndarray], classes: int) -> list[float | None]:
    """Intersection over union in percent by counting pixels one class at a time; 255 is ignored."""
    shares: list[float | None] = []
    for k in range(classes):
        intersection = sum(int(((p == k) & (m == k)).sum()) for p, m in zip(predictions, masks, strict=True))
        union = sum(int((((p == k) | (m == k)) & (m != 255)).sum()) for p, m in zip(predictions, masks, strict=True))
        shares.append(100 * intersection / union if union else None)
    return shares


def runner_of(parent: Path, tmp_path: Path, overrides: list[str]):
    """mmengine's Runner for the parent, and the dataset's layout."""
    config = configs.load(SegmentationConfig, CONFIG, [*overrides, *SMALL])
    layout = open_dataset(config.data).segmentation()
    opened = open_parent(parent)
    backbone = load_parent_backbone(opened)
    channels = segmentation.tapped_channels(config, backbone)
    run = Run(tmp_path / "here")
    run.path.mkdir()
    cpu = torch.device("cpu")
    cfg = plain_config(config, layout, opened, channels, run.path / "mmseg", cpu)
    return segmentation.build_runner(cfg, backbone, run, cpu), layout
