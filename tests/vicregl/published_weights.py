"""The golden backbones' weights by formula, in the key layouts that checkpoint files come in."""

import json
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
BACKBONES = {entry["arch"]: entry for entry in json.loads((GOLDEN / "backbones.json").read_text())}
# The published ConvNeXts have no layer scale.
ARGS = {"resnet50": {}, "convnext_small": {"ls_init_value": None}}


def formula(name: str, shape: list[int], k: int) -> Tensor:
    """The tensor that stands k-th in the sorted state dict; the formula is golden/README.md's."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.long)
    numbers = int(torch.tensor(shape).prod()) if shape else 1
    v = torch.sin(0.37 * torch.arange(numbers, dtype=torch.float64) + k).reshape(shape)
    if name.endswith("running_var"):
        return 1 + 0.5 * v.abs()
    if len(shape) <= 1:
        return 1 + 0.1 * v if name.endswith("weight") else 0.1 * v
    return v * (2 / (numbers / shape[0])) ** 0.5


def published_state(arch: str) -> dict[str, Tensor]:
    keys = BACKBONES[arch]["keys"]
    return {name: formula(name, keys[name], k) for k, name in enumerate(sorted(keys))}


def golden_images(seed: int, shape: tuple[int, ...] = (2, 3, 96, 64)) -> Tensor:
    numbers = int(torch.tensor(shape).prod())
    return torch.sin(0.11 * torch.arange(numbers, dtype=torch.float64) + seed).reshape(shape)


def as_full_checkpoint(state: dict[str, Tensor]) -> dict:
    """As a training script of several processes saves it: with heads, an optimiser and a step count."""
    heads = {"module.projector.0.weight": torch.zeros(3, 2), "module.maps_projector.0.weight": torch.zeros(3, 2)}
    model = {f"module.backbone.{key}": value for key, value in state.items()} | heads
    return {"epoch": 3, "model": model, "optimizer": {"state": {0: {"mu": torch.zeros(2)}}, "param_groups": []}}
