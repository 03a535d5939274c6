"""What a plain config names by its type: this project's networks and data in mmsegmentation's registries.

The networks are the pretrained backbone and the linear head. Images and masks are read and checked as everywhere else
here; those of training are augmented as a function of (seed, epoch, index), in an order that resumes.

Importing this module registers them; a config names it in `custom_imports`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.cnn import build_norm_layer
from mmengine.dist import get_dist_info
from mmengine.model import BaseModule
from mmengine.registry import FUNCTIONS
from mmseg.datasets import BaseSegDataset
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import DATA_SAMPLERS, DATASETS, MODELS, TRANSFORMS
from torch import Tensor, nn
from torch.utils.data import Sampler

from data.images import read_image
from data.layout import IGNORE, MaskLabels, SegmentationPart, parts_by_name, size_fault
from data.views import Purpose, sample_generator
from eval.parent import load_parent_backbone, open_parent
from eval.segmentation_config import network_changes
from runtime.errors import UserError
from runtime.stopping import outlive_stops
from vicregl.sync_norm import SharedBatchNorm, synchronise

MODELS.register_module(name="SharedBN", module=SharedBatchNorm)

FUNCTIONS.register_module(name="outlive_stops", module=outlive_stops)  # of a loader's workers


@MODELS.register_module()
class PretrainedBackbone(BaseModule):
    """The network of a finished pretraining run, loaded strictly; frozen in eval mode, or finetuned.

    `at` is the moment of a checkpoint that the run kept, as "500 steps"; null: the end of training.

    `taps`: last gives one map, all gives every stage's, shallow to deep; the deepest after the network's last norm, if
    `final_norm`. `drop_path` null is the pretraining's own, `output_stride` 0 the network's own. With `sync` the
    statistics of BatchNorm are those of all processes. `loaded` are the run's tensors, if they were read already.
    """

    def __init__(
        self,
        run: str,
        taps: str,
        finetune: bool,
        final_norm: bool = True,
        drop_path: float | None = None,
        output_stride: int = 0,
        sync: bool = False,
        at: str | None = None,
        loaded: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(init_cfg=None)
        changes = network_changes(output_stride, drop_path)
        self.network = load_parent_backbone(open_parent(run, at), loaded, **changes)
        self.taps, self.finetune, self.final_norm = taps, finetune, final_norm
        self.network.requires_grad_(finetune)
        if sync:
            self.network.trunk = synchronise(self.network.trunk)

    def init_weights(self) -> None:
        """Do nothing: mmengine might otherwise call timm's random initialisation over the file's weights."""

    def train(self, mode: bool = True) -> PretrainedBackbone:
        super().train(mode and self.finetune)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """images (B, 3, H, W) -> maps (B, C_k, h_k, w_k)."""
        with torch.set_grad_enabled(self.finetune and torch.is_grad_enabled()):
            if self.taps == "all":
                return self.network.stages(images, self.final_norm)
            return [self.network.last_map(images, self.final_norm)]


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """BatchNorm, dropout of channels and a 1x1 convolution, on one map or on several resized to the first and
    concatenated."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, norm_cfg: dict[str, Any], **rest: Any) -> None:
        super().__init__(
            in_channels=list(in_channels),
            in_index=list(range(len(in_channels))),
            input_transform="resize_concat",
            channels=sum(in_channels),
            num_classes=num_classes,
            out_channels=num_classes,
            norm_cfg=norm_cfg,
            **rest,
        )
        self.norm: nn.Module = build_norm_layer(norm_cfg, self.channels)[1]

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, C_k, h_k, w_k) -> logits (B, classes, h_0, w_0)."""
        return self.cls_seg(self.norm(self._transform_inputs(maps)))


@TRANSFORMS.register_module()
class ReadImage:
    """Replaces mmcv's LoadImageFromFile, which rotates images by their EXIF tag and fills in truncated files.

    A mask has no such tag, so a rotated image would no longer fit it. Raises UserError, naming the file, if it is not a
    whole image.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = np.ascontiguousarray(read_image(Path(results["img_path"]))[:, :, ::-1])  # BGR, as mmcv's
        results["img"] = image
        results["img_shape"] = results["ori_shape"] = image.shape[:2]
        return results


@TRANSFORMS.register_module()
class ReadMask:
    """Reads a mask as classes, after ReadImage. Replaces mmsegmentation's LoadAnnotations, which checks nothing.

    Raises UserError, naming the file, if it is not a whole mask, not of the image's size, or has a label of no class.
    """

    def __init__(self, classes: int, values: Sequence[int] | None = None, ignore: int = IGNORE) -> None:
        self.labels = MaskLabels(classes, None if values is None else tuple(values), ignore)

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        path = Path(results["seg_map_path"])
        labels = self.labels.read(path)
        if fault := size_fault(labels.shape, results["ori_shape"]) or self.labels.fault(labels):
            raise UserError(f"the mask {path} {fault}")
        results["gt_seg_map"] = labels
        results["seg_fields"].append("gt_seg_map")
        return results


@DATASETS.register_module()
class PartsDataset(BaseSegDataset):
    """The images and masks of a split's parts (dicts of SegmentationPart's fields), in the layout's order."""

    def __init__(self, *, parts: Sequence[dict[str, str]], **rest: Any) -> None:
        self.parts = [SegmentationPart(**part) for part in parts]
        super().__init__(**rest)

    def load_data_list(self) -> list[dict[str, Any]]:
        root = Path(self.data_root)
        return [
            {
                "img_path": str(root / part.image_dir / f"{name}{self.img_suffix}"),
                "seg_map_path": str(root / part.mask_dir / f"{name}{self.seg_map_suffix}"),
                "label_map": None,
                "reduce_zero_label": False,
                "seg_fields": [],
            }
            for name, part in parts_by_name(root, self.parts, self.img_suffix).items()
        ]


@DATASETS.register_module()
class SeededSegDataset(PartsDataset):
    """Training images by (epoch, index): the augmentation of each is a function of (seed, epoch, index) alone.

    mmsegmentation's transforms draw from the global generators of numpy and Python, so both are seeded for each image.
    """

    def __init__(self, *, seed: int, **rest: Any) -> None:
        self.seed = seed
        super().__init__(**rest)

    def __getitem__(self, number: tuple[int, int]) -> dict[str, Any]:
        epoch, index = number
        drawn = int(sample_generator(self.seed, epoch, index, Purpose.SEGMENTATION_AUGMENTATION).integers(2**32))
        np.random.seed(drawn)
        random.seed(drawn)
        return super().__getitem__(index)


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """(epoch, index) of sample number `first`, `first` + 1, ... without end; each epoch shuffled by (seed, epoch).

    `batch_size` is of all processes; this one takes its consecutive share of every batch, so that together they get the
    batches that a single process would get. `first` is the first sample of a batch.
    """

    def __init__(self, dataset: SeededSegDataset, seed: int, batch_size: int) -> None:
        self.size, self.seed, self.batch_size, self.first = len(dataset), seed, batch_size, 0
        rank, processes = get_dist_info()
        share = batch_size // processes
        self.mine = range(rank * share, (rank + 1) * share)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        number, drawn = self.first, -1
        order: list[int] = []
        while True:
            for offset in self.mine:
                epoch, position = divmod(number + offset, self.size)
                if epoch != drawn:
                    drawn, order = epoch, self._order(epoch)
                yield epoch, order[position]
            number += self.batch_size

    def _order(self, epoch: int) -> list[int]:
        return sample_generator(self.seed, epoch, 0, Purpose.SEGMENTATION_ORDER).permutation(self.size).tolist()

    def __len__(self) -> int:
        return self.size
