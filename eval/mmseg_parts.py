"""This project's networks in mmsegmentation's registry: the pretrained backbone and the linear head.

Importing this module registers them; a config names it in `custom_imports`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmengine.registry import FUNCTIONS
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from eval.parent import load_parent_backbone, open_parent
from runtime.stopping import outlive_stops
from vicregl.sync_norm import SharedBatchNorm, synchronise

MODELS.register_module(name="SharedBN", module=SharedBatchNorm)

FUNCTIONS.register_module(name="outlive_stops", module=outlive_stops)  # of a loader's workers


@MODELS.register_module()
class PretrainedBackbone(BaseModule):
    """The network of a finished pretraining run, loaded strictly; frozen in eval mode, or finetuned.

    `taps`: last gives one map, all gives every stage's, shallow to deep; the deepest after the network's last norm, if
    `final_norm`. `drop_path` null is the pretraining's own, `output_stride` 0 the network's own. With `sync` the
    statistics of BatchNorm are those of all processes.
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
    ) -> None:
        super().__init__(init_cfg=None)
        changed: dict[str, Any] = {"output_stride": output_stride} if output_stride else {}
        if drop_path is not None:
            changed["drop_path_rate"] = drop_path
        self.network = load_parent_backbone(open_parent(run), **changed)
        self.taps, self.finetune, self.final_norm = taps, finetune, final_norm
        self.network.requires_grad_(finetune)
        if sync:
            self.network.trunk = synchronise(self.network.trunk)

    def init_weights(self) -> None:
        """Nothing: the weights are the file's. Without this, mmengine might call timm's random initialisation."""

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
