"""timm networks as (map, pooled): any timm network whose features are a map (B, C, h, w)."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from vicregl.config import BackboneConfig
from vicregl.errors import InvalidInputError

# timm's names of the feature maps before the first stage.
STEM_MODULES = ("stem", "act1", "conv1", "bn1", "relu", "patch_embed")


class Backbone(nn.Module):
    """A timm network without its classifier.

    Its map is after the network's last norm where that norm comes before the classifier (ConvNeXt), as in the
    published code; pooled is the mean of the map over its positions.
    """

    trunk: Any  # timm's networks share no class that has forward_features

    def __init__(self, name: str, trunk: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self._grids: dict[int, tuple[int, int]] = {}
        self._stage_indices = _stage_indices(trunk)
        self.channels, self.stage_channels = self._probe()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) -> map (B, C, h, w), pooled (B, C)."""
        feature_map = self.last_map(images)
        return feature_map, feature_map.mean(dim=(2, 3))

    def last_map(self, images: Tensor, final_norm: bool = True) -> Tensor:
        """images (B, 3, H, W) -> the last map (B, C, h, w); without `final_norm`, before the network's last norm."""
        feature_map: Tensor = self.trunk.forward_features(images)
        return self._final_norm(feature_map) if final_norm else feature_map

    def stages(self, images: Tensor, final_norm: bool = True) -> list[Tensor]:
        """images (B, 3, H, W) -> the map of each stage (B, C_k, h_k, w_k), shallow to deep; the last is `last_map`."""
        if not self._stage_indices:
            raise InvalidInputError(
                f"backbone {self.name!r} does not give its stages; choose one with forward_intermediates"
            )
        last, maps = self.trunk.forward_intermediates(images, indices=self._stage_indices)
        return [*maps[:-1], self._final_norm(last) if final_norm else last]

    def grid_size(self, side: int) -> tuple[int, int]:
        """Return (h, w) of the map of a square image with this side in pixels, from the network's own output."""
        if side not in self._grids:
            with torch.no_grad():
                feature_map = _shapes(self).forward(torch.empty(1, 3, side, side, device="meta"))[0]
            self._grids[side] = (feature_map.shape[2], feature_map.shape[3])
        return self._grids[side]

    def _final_norm(self, feature_map: Tensor) -> Tensor:
        norm = getattr(getattr(self.trunk, "head", None), "norm", None)
        return feature_map if norm is None else norm(feature_map)

    def _probe(self) -> tuple[int, list[int]]:
        """Return the channels of the last map and of each stage. InvalidInputError for a network without maps."""
        side = self.trunk.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        images = torch.empty(1, 3, side, side, device="meta")
        with torch.no_grad():
            features = _shapes(self.trunk).forward_features(images)
        shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[1] != self.trunk.num_features:
            raise InvalidInputError(
                f"backbone {self.name!r} has no map: at {side} pixels its features are {shape}, expected "
                f"(B, {self.trunk.num_features}, h, w). Choose a convolutional network, for example resnet50"
            )
        if not self._stage_indices:
            return features.shape[1], []
        with torch.no_grad():
            return features.shape[1], [stage.shape[1] for stage in _shapes(self).stages(images)]


def _shapes(module: Any) -> Any:
    """Return a copy without storage, in eval mode, which computes shapes and nothing else."""
    return copy.deepcopy(module).to("meta").eval()


def _stage_indices(trunk: Any) -> list[int]:
    """Return which feature maps are stages: all but the stem's. Empty where timm cannot give them."""
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "feature_info"):
        return []
    modules = [info["module"] for info in trunk.feature_info]
    return [k for k, module in enumerate(modules) if module.partition(".")[0] not in STEM_MODULES]


def create_backbone(config: BackboneConfig) -> Backbone:
    """Create a network with random weights. InvalidInputError for an unknown name, wrong arguments, or no map."""
    make = timm.models.model_entrypoint(config.name)
    try:
        # Not timm.create_model: it drops arguments that are None, and None is what turns ConvNeXt's layer scale off.
        trunk = make(pretrained=False, num_classes=0, **config.args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise InvalidInputError(f"backbone {config.name!r} cannot be made with args {config.args}: {error}") from error
    return Backbone(config.name, trunk)


@register_model
def scenes_resnet(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """Create three residual blocks with stride 4 for images of 32 pixels: stages 32 x 16 x 16 and 128 x 8 x 8.

    0.31 M parameters, 23 M multiply-adds an image. `width_factor` scales the channels.
    """
    blocks = (
        ByoBlockCfg("basic", d=1, c=32, s=1),  # 16 x 16
        (ByoBlockCfg("basic", d=1, c=64, s=2), ByoBlockCfg("basic", d=1, c=128, s=1)),  # 8 x 8
    )
    config = ByoModelCfg(blocks=blocks, stem_type="3x3", stem_pool="", stem_chs=32)
    return build_model_with_cfg(
        ByobNet,
        "scenes_resnet",
        pretrained,
        pretrained_cfg={"input_size": (3, 32, 32), "first_conv": "stem.conv", "classifier": "head.fc"},
        model_cfg=config,
        feature_cfg={"flatten_sequential": True},
        **kwargs,
    )
