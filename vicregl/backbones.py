"""timm networks as (map, pooled): any timm network that gives a map (B, C, h, w), convolutional or a transformer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.layers import to_2tuple
from timm.models import register_model
from timm.models._builder import build_model_with_cfg
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from torch import Tensor, nn

from vicregl.config import BackboneConfig
from vicregl.errors import InvalidInputError

M = TypeVar("M", bound=nn.Module)
# timm's names of the feature maps before the first stage, or how they begin.
STEM_MODULES = (
    *("stem", "stem_dct", "act1", "conv1", "bn1", "relu", "patch_embed"),
    *("conv_stem", "layer0", "conv0", "conv_0"),  # GhostNet; SENet; NASNet; PNASNet
    *("features.norm0", "features.norm2", "features.conv1_1"),  # DenseNet, with its deep stem; DPN
)


class Backbone(nn.Module):
    """A timm network without its classifier.

    The map of a convolutional network is after its last norm where that norm comes before the classifier (ConvNeXt), as
    in the published code. The map of a transformer holds its patch tokens, normed; class and register tokens stay out.
    pooled is the mean of the map over its positions. (BEiT and others pool first and norm then; here every token is
    normed, by the same weights.)
    """

    trunk: Any  # timm's networks share no class that has forward_features

    def __init__(self, name: str, trunk: nn.Module, size: tuple[int, int] | None = None) -> None:
        """`size` is the height and width in pixels that the network was made for; None: that of timm's description."""
        super().__init__()
        if lacking := [part for part in ("forward_features", "num_features") if not hasattr(trunk, part)]:
            raise InvalidInputError(f"backbone {name!r} has no {' and no '.join(lacking)}; expected timm's interface")
        self.name = name
        self.trunk = trunk
        self._grids: dict[tuple[int, int], tuple[int, int]] = {}
        self._has_tokens = False
        self._token_norm = True
        self._stage_indices = _stage_indices(trunk)
        described = getattr(trunk, "pretrained_cfg", None) or {}  # a network of the user's own may have none
        usual = described.get("input_size", (3, 224, 224))[1:]
        self.channels, self.stage_channels = self._probe(size or usual)

    def forward(self, images: Tensor, stages: Sequence[int] = ()) -> tuple[Tensor, ...]:
        """images (B, 3, H, W) -> map (B, C, h, w), pooled (B, C), and the maps of `stages()` with these numbers."""
        maps = self.stages(images) if stages else [self.last_map(images)]
        return maps[-1], maps[-1].mean(dim=(2, 3)), *(maps[number] for number in stages)

    @property
    def has_class_token(self) -> bool:
        """Whether timm gives a class token beside the map: of vision transformers that have one."""
        options = inspect.signature(getattr(self.trunk, "forward_intermediates", len)).parameters
        return getattr(self.trunk, "cls_token", None) is not None and "return_prefix_tokens" in options

    def map_and_class_token(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images (B, 3, H, W) -> map (B, C, h, w), class token (B, C), both normed. InvalidInputError without one."""
        if not self.has_class_token:
            raise InvalidInputError(f"backbone {self.name!r} has no class token; its map can be pooled by the mean")
        images = self._whole_patches(images)
        options = {"norm": self._token_norm, "return_prefix_tokens": True, "intermediates_only": True}
        ((feature_map, prefix),) = self.trunk.forward_intermediates(images, indices=1, output_fmt="NCHW", **options)
        class_token = prefix[:, 0]  # registers and other tokens stand after it
        return self._late_norm(feature_map), self._late_norm(class_token)

    def last_map(self, images: Tensor, final_norm: bool = True) -> Tensor:
        """images (B, 3, H, W) -> the last map (B, C, h, w); without `final_norm`, before the network's last norm."""
        if self._has_tokens:
            return self._token_maps(images, 1, final_norm)[-1]
        feature_map: Tensor = self.trunk.forward_features(images)
        return self._final_norm(feature_map) if final_norm else feature_map

    def stages(self, images: Tensor, final_norm: bool = True) -> list[Tensor]:
        """images (B, 3, H, W) -> the map of each stage (B, C_k, h_k, w_k), shallow to deep; the last is `last_map`.

        Of a transformer without stages (ViT) they are four of its blocks, evenly spaced, and `final_norm` norms all.
        """
        if not self._stage_indices:
            raise InvalidInputError(
                f"backbone {self.name!r} does not give its stages; choose one with forward_intermediates"
            )
        if self._has_tokens:
            return self._token_maps(images, self._stage_indices, final_norm)
        last, maps = self.trunk.forward_intermediates(images, indices=self._stage_indices)
        return [*maps[:-1], self._final_norm(last) if final_norm else last]

    def grid_size(self, side: int, width: int | None = None) -> tuple[int, int]:
        """Return (h, w) of the map of a square image with this side in pixels, from the network's own output.

        With `width`, of an image that is `side` high and so wide. InvalidInputError for a size that the network, made
        for one size, does not take.
        """
        size = (side, side if width is None else width)
        if size not in self._grids:
            try:
                with torch.no_grad():
                    feature_map = _shapes(self).forward(torch.empty(1, 3, *size, device="meta"))[0]
            except (AssertionError, RuntimeError, ValueError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InvalidInputError(
                    f"backbone {self.name!r} takes no images of {size[0]} x {size[1]} pixels: {reason}"
                ) from error
            self._grids[size] = (feature_map.shape[2], feature_map.shape[3])
        return self._grids[size]

    def misfit(self, side: int) -> str:
        """Say why the map's cells do not cover a square image of this side, as locations assume; empty if they do.

        Empty too for a network that does not say its stride.
        """
        maps = list(getattr(self.trunk, "feature_info", None) or ())
        stride = maps[-1].get("reduction") if maps else None
        if not stride or self._cells_fit(side, stride):
            return ""
        text = f"{self.grid_size(side)[0]} cells, {stride} pixels apart, are taken to share {side} pixels"
        near = _up_to_a_multiple(side, stride)
        return f"{text}; {near} fits" if near != side and self._cells_fit(near, stride) else text

    def _cells_fit(self, side: int, stride: int) -> bool:
        """Return whether the cells, `stride` pixels apart, cover a side of the image as the network sees it."""
        patch = self._patch() if self._has_tokens else None  # others do not enlarge images to whole patches
        covered = side if patch is None else _up_to_a_multiple(side, patch[0])
        try:
            return self.grid_size(side)[0] * stride == covered
        except InvalidInputError:
            return False

    def _final_norm(self, feature_map: Tensor) -> Tensor:
        norm = getattr(getattr(self.trunk, "head", None), "norm", None)
        return feature_map if norm is None else norm(feature_map)

    def _token_maps(self, images: Tensor, indices: int | list[int], norm: bool) -> list[Tensor]:
        images = self._whole_patches(images)
        options = {"norm": norm and self._token_norm, "output_fmt": "NCHW", "intermediates_only": True}
        maps: list[Tensor] = self.trunk.forward_intermediates(images, indices=indices, **options)
        return [self._late_norm(each) for each in maps] if norm else maps

    def _late_norm(self, tokens: Tensor) -> Tensor:
        """Norm tokens (B, C, ...) where the network's last norm stands after the pooling (BEiT): maps lack it."""
        norm = getattr(self.trunk, "fc_norm", None)
        if norm is None or not isinstance(getattr(self.trunk, "norm", None), nn.Identity):
            return tokens
        normed: Tensor = norm(tokens.movedim(1, -1)).movedim(-1, 1)
        return normed

    def _whole_patches(self, images: Tensor) -> Tensor:
        """Enlarge images, by less than a patch, to whole patches: the map then covers exactly the image."""
        patch = self._patch()
        if patch is None:
            return images
        size = [_up_to_a_multiple(side, step) for side, step in zip(images.shape[2:], patch, strict=True)]
        if size == list(images.shape[2:]):
            return images
        return F.interpolate(images, size, mode="bilinear", align_corners=False)

    def _patch(self) -> tuple[int, int] | None:
        """Return the height and width of a transformer's patches in pixels."""
        patch: tuple[int, int] | None = getattr(getattr(self.trunk, "patch_embed", None), "patch_size", None)
        return patch

    def _probe(self, size: tuple[int, int]) -> tuple[int, list[int]]:
        """Return the channels of the last map and of each stage. InvalidInputError for a network without maps."""
        images = torch.empty(1, 3, *size, device="meta")
        with torch.no_grad():
            features = _shapes(self.trunk).forward_features(images)
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            if not isinstance(features, Tensor) or features.dim() != 4 or features.shape[1] != self.trunk.num_features:
                self._has_tokens = True
                features = self._probe_tokens(images, shape)
            stages = _shapes(self).stages(images) if self._stage_indices else []
        return features.shape[1], [stage.shape[1] for stage in stages]

    def _probe_tokens(self, images: Tensor, shape: Any) -> Tensor:
        """Return the shape of a transformer's map; some (Hiera) norm only what they pool, so their map has no norm."""
        for self._token_norm in (True, False):
            try:
                feature_map = _shapes(self).last_map(images)
            except (AssertionError, AttributeError, TypeError, ValueError):
                continue
            if feature_map.dim() == 4 and feature_map.shape[1] == self.trunk.num_features:
                return feature_map
        raise InvalidInputError(
            f"backbone {self.name!r} has no map: of images {tuple(images.shape)} its features are {shape}, and timm "
            f"gives no map (B, {self.trunk.num_features}, h, w) of it. Choose another network, for example resnet50 or "
            "vit_small_patch16_224"
        )


def _up_to_a_multiple(side: int, step: int) -> int:
    return -(-side // step) * step


def _shapes(module: Any) -> Any:
    """Return a copy without storage, in eval mode, which computes shapes and nothing else."""
    return copy.deepcopy(module).to("meta").eval()


def _stage_indices(trunk: Any) -> list[int]:
    """Return which feature maps are stages: all but those of STEM_MODULES; of many of one size (ViT) four.

    Empty where timm cannot give them.
    """
    if not hasattr(trunk, "forward_intermediates") or not hasattr(trunk, "feature_info"):
        return []
    maps = list(trunk.feature_info)
    # Not by the name `blocks`: an EfficientNet's five stages have it too.
    if len(maps) > 4 and len({info["reduction"] for info in maps}) == 1:
        return [(k + 1) * len(maps) // 4 - 1 for k in range(4)]
    return [k for k, info in enumerate(maps) if not _is_stem(info["module"])]


def _is_stem(module: str) -> bool:
    return module in STEM_MODULES or module.partition(".")[0] in STEM_MODULES


def create_backbone(config: BackboneConfig) -> Backbone:
    """Create a network with random weights. InvalidInputError for an unknown name, wrong arguments, or no map."""
    make = timm.models.model_entrypoint(config.name)
    try:
        # Not timm.create_model: it drops arguments that are None, and None is what turns ConvNeXt's layer scale off.
        trunk = _make(make, config.args)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error) or type(error).__name__  # timm asserts without a word
        raise InvalidInputError(f"backbone {config.name!r} cannot be made with args {config.args}: {reason}") from error
    size = config.args.get("img_size")
    return Backbone(config.name, trunk, None if size is None else to_2tuple(size))


def without_storage(make: Callable[[], M]) -> M:
    """Return what `make` makes of networks, on the meta device; with storage where a network computes with values."""
    try:
        with torch.device("meta"):
            return make()
    except RuntimeError:  # NotImplementedError too
        return make()
    except InvalidInputError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        return make()


def _make(make: Callable[..., nn.Module], args: dict[str, Any]) -> nn.Module:
    """Make the network for images of any size where that is an option (transformers: position embeddings resized)."""
    try:
        return make(pretrained=False, num_classes=0, **{"dynamic_img_size": True, **args})
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return make(pretrained=False, num_classes=0, **args)


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
