"""The run that an evaluation starts from (a pretraining, or weights from a file), and its backbone, loaded strictly
or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.config import identity_hash
from runtime.errors import UserError
from runtime.rundir import Run

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

    UserError where the folder is missing, is no run directory, is of another stage, is not done, was
    edited by hand, or has lost its backbone file.
    """
    run = Run(Path(path))
    if not run.path.is_dir():
        raise UserError(
            f"{run.path} is not a folder; expected the directory of a pretraining run, as runs/pretrain/<run>"
        )
    document = run.document()
    stage = document["stage"]
    if stage not in (STAGE, WEIGHTS_STAGE):
        raise UserError(f"{run.path} is a run of the stage {stage!r}; expected one of {STAGE!r}")
    if run.state() != "done":
        raise UserError(
            f"{run.path} is {run.state()}, and only a pretraining run that is done can be evaluated; "
            "repeat its `python -m pretrain` command until it is"
        )
    expected = identity_hash(stage, document.get("format"), document["config"], document.get("parent"))
    if document["hash"] != expected:
        raise UserError(
            f"{run.path / 'run.yaml'} was changed: its config hashes to {expected}, and it says {document['hash']}. "
            "Restore it, or pretrain again: a score must name the config it came from"
        )
    parent = Parent(run, document["hash"], document["config"])
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
