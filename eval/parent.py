"""The run that an evaluation starts from (a pretraining, or weights from a file), and its backbone, loaded strictly
or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import IMAGENET, Normalisation
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
    normalisation: Normalisation = IMAGENET  # of the images that an evaluation feeds it

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
    from vicregl.backbones import create_backbone
    from vicregl.config import BackboneConfig
    from vicregl.weights import load_weights

    described = parent.config["model"]["backbone"]
    config = BackboneConfig(name=described["name"], args={**described.get("args", {}), **overrides})
    backbone = create_backbone(config)
    load_weights(backbone, parent.weights)
    return backbone


def choose_normalisation(name: str, own: Normalisation, asked: str | None) -> Normalisation:
    """ImageNet's mean and deviation, or `own`, those of the network, as an evaluation's config asks.

    UserError where they differ and the config does not say which. The published pretraining divides red by 0.228 and
    its evaluations by 0.229: that is no difference.
    """
    if asked not in (None, "imagenet", "network"):
        return _of_tag(name, str(asked))
    differ = max(abs(a - b) for pair in zip(own, IMAGENET, strict=True) for a, b in zip(*pair, strict=True)) > 0.005
    if asked is None and differ:
        raise UserError(
            f"config: normalisation is not set, and {name} has mean {list(own[0])} and deviation {list(own[1])} where "
            f"ImageNet has {list(IMAGENET[0])} and {list(IMAGENET[1])}. Say which the weights were trained with: "
            "normalisation=network or normalisation=imagenet"
        )
    return own if asked == "network" else IMAGENET


def normalisation_of_weights(arch: str, asked: str | None) -> Normalisation:
    """As `choose_normalisation`, by what timm knows of the network's default weights.

    Prints which of its other weights differ, because a file does not say which it is.
    """
    import timm

    default = timm.get_pretrained_cfg(arch)
    own = IMAGENET if default is None else (default.mean, default.std)
    chosen = choose_normalisation(arch, own, asked)
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    others = [tag for tag in tags if _of_tag(arch, tag) != own]
    if asked is None and others:
        print(
            f"normalised with ImageNet's mean and deviation; for {len(others)} of timm's weights of {arch} others are "
            f"right: normalisation={others[0]}",
            flush=True,
        )
    return chosen


def normalisation_of_run(parent: Parent, asked: str | None) -> Normalisation:
    """As `choose_normalisation`, by what the run was pretrained with."""
    views = parent.config.get("views", {})
    own = views.get("mean", IMAGENET[0]), views.get("std", IMAGENET[1])
    return choose_normalisation(parent.run.path.name, own, asked)


def _of_tag(arch: str, tag: str) -> Normalisation:
    import timm

    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
    if tag not in tags:
        allowed = ", ".join(["imagenet", "network", *tags])
        raise UserError(f"config: normalisation = {tag!r} is not possible for {arch}; allowed: {allowed}")
    known: Any = timm.get_pretrained_cfg(f"{arch}.{tag}")
    return known.mean, known.std
