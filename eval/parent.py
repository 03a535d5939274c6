"""The run that an evaluation starts from (a pretraining, or weights from a file), and its backbone, loaded strictly
or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from runtime.rundir import Run, finished_run

if TYPE_CHECKING:
    from vicregl.backbones import Backbone

STAGE = "pretrain"
WEIGHTS_STAGE = "weights"  # a file that eval/weights.py took in
WEIGHTS = "backbone.safetensors"


@dataclass(frozen=True)
class Parent:
    """A pretraining run, or a file's weights, that is done."""

    run: Run
    hash: str
    config: dict[str, Any]  # resolved, as run.yaml has it

    @property
    def weights(self) -> Path:
        return self.run.path / WEIGHTS


def open_parent(path: str | Path) -> Parent:
    """The finished pretraining run (or the weights that were taken from a file) at `path`.

    UserError as `finished_run`, and where the run has lost its backbone file.
    """
    document = finished_run(Path(path), (STAGE, WEIGHTS_STAGE))
    parent = Parent(Run(Path(path)), document["hash"], document["config"])
    if not parent.weights.is_file():
        raise UserError(f"{parent.weights} is missing, though the run is done; restore it or pretrain again")
    return parent


def load_parent_backbone(parent: Parent, **overrides: Any) -> Backbone:
    """The parent's network with exactly its weights; `overrides` go to timm (as output_stride=8).

    UserError where the file is cut off, is no checkpoint, or is of another architecture: never random weights.
    """
    from vicregl.backbones import create_backbone, load_weights
    from vicregl.config import BackboneConfig

    described = parent.config["model"]["backbone"]
    config = BackboneConfig(name=described["name"], args={**described.get("args", {}), **overrides})
    backbone = create_backbone(config)
    load_weights(backbone, parent.weights)
    return backbone
