"""The options of the network, as a config file gives them. Light: planning imports them, and neither torch nor timm."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from runtime.config import require

# Arguments of a timm network that are vicregl/backbones.py's own business.
RESERVED_ARGS = ("pretrained", "num_classes", "features_only", "global_pool", "in_chans", "checkpoint_path")
# Of the recipes and studies: known without asking timm, whose import takes seconds.
STUDIED = (
    *("scenes_resnet", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("convnext_small", "convnext_base", "convnext_xlarge"),
)


@dataclass
class BackboneConfig:
    name: str = "resnet50"  # timm.list_models() has the names
    args: dict[str, Any] = field(default_factory=dict)  # of timm.create_model; null is passed on as None

    def check(self) -> None:
        if self.name not in STUDIED:
            _require_of_timm(self.name)
        for key in self.args:
            require(key not in RESERVED_ARGS, "backbone.args", key, f"any argument of the network but {RESERVED_ARGS}")


def _require_of_timm(name: str) -> None:
    import timm

    import vicregl.backbones  # noqa: F401  (registers this project's own networks)

    known = timm.is_model(name) and "." not in name
    near = [] if known else get_close_matches(name.partition(".")[0], timm.list_models(), n=4, cutoff=0.5)
    hint = f"; near it: {', '.join(near)}" if near else ""
    require(known, "backbone.name", name, f"a network of timm, without the tag of its weights{hint}")


@dataclass
class ModelConfig:
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    expander: str = "8192-8192-8192"  # widths of the layers after pooling; the last is D
    projector: str = "512-512-512"  # widths of the layers on every position of the map; the last is C
    projector_norm: str = "batch"  # batch (the paper's ResNets) | layer (its ConvNeXts); of both heads
    local_stages: list[int] = field(
        default_factory=lambda: [-1]
    )  # backbone stages with a local criterion; -1: the last

    def check(self) -> None:
        for key in ("expander", "projector"):
            text = getattr(self, key)
            widths = text.split("-")
            require(all(w.isdigit() and int(w) > 0 for w in widths), f"model.{key}", text, "widths, as 512-512-512")
        require(self.projector_norm in ("batch", "layer"), "model.projector_norm", self.projector_norm, "batch, layer")
        stages = self.local_stages
        unique = len(set(stages)) == len(stages) > 0
        require(unique, "model.local_stages", stages, "stages of the backbone, each once, as [-2, -1]")
