"""The names that other projects give to the tensors of timm's networks, and the reverse for the published VICRegL."""

from __future__ import annotations

import re
from typing import Any

import torch
from timm.models import convnext, eva, resnet, vision_transformer
from torch import Tensor, nn

from vicregl.errors import InvalidInputError

State = dict[str, Tensor]
# lightly makes a backbone of torchvision's ResNet by nn.Sequential(*children), which numbers the parts.
SEQUENTIAL_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
# timm's ConvNeXt names in the published ones; the inverse of timm's checkpoint_filter_fn.
PUBLISHED_CONVNEXT = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d+)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
    (r"^head\.norm\.", "norm."),
)
PUBLISHED_CONVNEXT_KEY = re.compile(
    r"(downsample_layers\.\d\.\d|stages\.\d\.\d+\.(dwconv|norm|pwconv1|pwconv2)|norm)\.(weight|bias)|stages\.\d\.\d+\.gamma"
)
# Of a vision transformer: Meta's names and timm's. SwiGLU's layers are w1, w2, w3 (DINOv3), w12, w3 (DINOv2).
DINO = (
    (r"^(storage|register)_tokens$", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w1\.", ".mlp.fc1_g."),
    (r"\.mlp\.w2\.", ".mlp.fc1_x."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
)
DINOV3 = (*DINO, (r"\.ls(\d)\.gamma$", r".gamma_\1"))
# Of a DINOv3 file: a mask that is the same in all, and a norm that its evaluations do not use.
DINOV3_UNUSED = re.compile(r"blocks\.\d+\.attn\.qkv\.bias_mask|local_cls_norm\.(weight|bias)")
PERIODS = "rope_embed.periods"


def to_timm(state: State, trunk: nn.Module, beside: list[str]) -> tuple[State, str]:
    """Return the tensors under timm's names, and whose names they had ("": timm's own).

    Keys that no network needs are put into `beside`; unknown ones stay as they are.
    """
    if isinstance(trunk, convnext.ConvNeXt) and any(key.startswith("downsample_") for key in state):
        return _timm_convnext(state, trunk), "the published ConvNeXts'"
    if isinstance(trunk, resnet.ResNet) and "0.weight" in state:
        return {_named_resnet(key): value for key, value in state.items()}, "lightly's"
    if isinstance(trunk, eva.Eva) and not {"storage_tokens", PERIODS}.isdisjoint(state):
        return _timm_dinov3(state, trunk, beside), "DINOv3's"
    dinov2 = "register_tokens" in state or any(".mlp.w12." in key for key in state)
    if isinstance(trunk, vision_transformer.VisionTransformer) and dinov2:
        return _timm_dinov2(state), "DINOv2's"
    return state, ""


def _replaced(key: str, patterns: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in patterns:
        key = re.sub(pattern, name, key)
    return key


def _timm_dinov2(state: State) -> State:
    """Rename DINOv2's tensors.

    timm adds no position embedding to the class token of a network with registers: it is added here, once.
    """
    renamed = {_replaced(key, DINO): value for key, value in state.items()}
    if {"reg_token", "cls_token", "pos_embed"} <= renamed.keys():
        positions = renamed["pos_embed"]
        renamed |= {"cls_token": renamed["cls_token"] + positions[:, :1], "pos_embed": positions[:, 1:]}
    return renamed


def _timm_dinov3(state: State, trunk: Any, beside: list[str]) -> State:
    """Rename DINOv3's tensors; timm computes the periods of positions, and has biases for queries and values alone.

    InvalidInputError where the file's periods are others, or where the network has no place for biases that are not 0.
    """
    beside += [key for key in state if key == PERIODS or DINOV3_UNUSED.fullmatch(key)]
    periods = state.get(PERIODS)
    if periods is not None and not _equal(periods, trunk.rope.periods):
        raise InvalidInputError(
            f"weights file: {PERIODS} is {_few(periods)}, and the network has {_few(trunk.rope.periods)}; "
            "choose the network of the file, or positions would mean something else"
        )
    renamed: State = {}
    for key, value in state.items():
        if key in beside:
            continue
        if not key.endswith(".attn.qkv.bias"):
            renamed[_replaced(key, DINOV3)] = value
            continue
        query, _, values = value.chunk(3)  # those of keys are masked: they change nothing
        names = [key.replace("qkv.bias", name) for name in ("q_bias", "v_bias")]
        if names[0] in dict(trunk.named_parameters()):
            renamed |= dict(zip(names, (query, values), strict=True))
        elif query.any() or values.any():
            raise InvalidInputError(
                f"weights file: {key} is not 0, and the network has no biases there; choose the network with them, "
                "as vit_small_patch16_dinov3_qkvb"
            )
        else:
            beside.append(key)
    return renamed


def _equal(ours: Tensor, theirs: Tensor) -> bool:
    """Return whether they are equal up to the precision of bfloat16, in which some files hold them."""
    same = ours.shape == theirs.shape
    return same and torch.allclose(ours.float(), theirs.float().cpu(), rtol=1e-2)


def _few(values: Tensor) -> str:
    return f"[{', '.join(f'{value:.3g}' for value in values[:4].tolist())}, ...] ({len(values)})"


def _named_resnet(key: str) -> str:
    """Rename "4.0.conv1.weight" of lightly to "layer1.0.conv1.weight"; other keys stay as they are."""
    number, dot, rest = key.partition(".")
    return f"{SEQUENTIAL_RESNET.get(number, number)}{dot}{rest}"


def _timm_convnext(state: State, trunk: nn.Module) -> State:
    """Rename published keys to timm's. One key at a time: timm's filter silently drops unknown keys."""
    renamed: State = {}
    for key, value in state.items():
        try:
            in_timm = convnext.checkpoint_filter_fn({key: value}, trunk)
        except (KeyError, RuntimeError):
            in_timm = {}
        renamed |= in_timm or {key: value}
    return renamed


def published_state(backbone: Any) -> State:
    """Return the backbone's tensors (copies on the CPU) under the names of the published VICRegL checkpoints.

    A ResNet's are torchvision's, which timm shares. Raises InvalidInputError for a network that has no published names.
    """
    trunk: nn.Module = backbone.trunk
    state = {key: value.detach().cpu().clone().contiguous() for key, value in trunk.state_dict().items()}
    if isinstance(trunk, resnet.ResNet):
        return state
    if not isinstance(trunk, convnext.ConvNeXt):
        raise InvalidInputError(
            f"backbone {backbone.name!r} has no published names: VICRegL was published for ResNets and ConvNeXts. "
            "Take timm's names (--format timm)"
        )
    # In a published block the two linear layers are matrices; some of timm's have them as 1x1 convolutions.
    published = {
        _replaced(key, PUBLISHED_CONVNEXT): value.flatten(1) if ".mlp." in key and value.ndim == 4 else value
        for key, value in state.items()
    }
    if strange := [key for key in published if not PUBLISHED_CONVNEXT_KEY.fullmatch(key)]:
        raise InvalidInputError(
            f"backbone {backbone.name!r} with these args has no published names: {strange[0]} is in no published "
            "ConvNeXt. Take timm's names (--format timm)"
        )
    return published
