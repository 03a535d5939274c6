"""The run that an evaluation starts from: a pretraining, or weights from a file. Its backbone is loaded strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
from torch import Tensor

from data.config import IMAGENET, Normalisation, NormalisationChoice
from eval.sources import call_loader
from eval.weights_config import STAGE as WEIGHTS_STAGE
from runtime.config import kept_checkpoint
from runtime.errors import UserError
from runtime.imports import import_recorded
from runtime.rundir import Run, finished_run
from vicregl.backbones import Backbone, create_backbone, without_storage
from vicregl.config import BackboneConfig
from vicregl.errors import InvalidInputError
from vicregl.weights import load_weights

STAGE = "pretrain"
WEIGHTS = "backbone.safetensors"  # its keys are the network's own
KEPT_PREFIX = "backbone.trunk."  # of the network's keys in a kept checkpoint


@dataclass(frozen=True)
class Parent:
    """A finished pretraining run, or imported weights."""

    run: Run
    hash: str
    config: dict[str, Any]  # resolved, as run.yaml has it
    normalisation: Normalisation = IMAGENET  # of the images that an evaluation feeds it
    at: str | None = None  # the moment of a kept checkpoint, as "500 steps"; None: the end of training

    @property
    def weights(self) -> Path:
        """The file with the backbone: of a kept checkpoint, with the whole training state."""
        return self.run.path / (WEIGHTS if self.at is None else kept_checkpoint(self.at))


def open_parent(path: str | Path, at: str | None = None) -> Parent:
    """Open the finished pretraining run (or imported weights) at `path`; with `at`, a checkpoint that it kept then.

    UserError as `finished_run`, and where the run lacks the file, or a package that its config imports is not here.
    """
    document = finished_run(Path(path), (STAGE, WEIGHTS_STAGE))
    import_recorded(document["config"], Path(path))  # one of them may have registered the network
    parent = Parent(Run(Path(path)), document["hash"], document["config"], at=at)
    if not parent.weights.is_file():
        raise _missing(parent)
    return parent


def _missing(parent: Parent) -> UserError:
    if parent.at is None:
        return UserError(f"{parent.weights} is missing, though the run is done; restore it or pretrain again")
    if "weights" in parent.config:
        return UserError(f"{parent.run.path} was imported from a file: it has no checkpoint of {parent.at}")
    folder = parent.run.path / "checkpoints"
    kept = ", ".join(sorted(file.stem for file in folder.glob("*.pt"))) or "none"
    return UserError(
        f"{parent.weights} is missing: the run kept no checkpoint after {parent.at}; it kept {kept}. A pretraining "
        f"keeps those that it is asked for at its start: machine.keep_at=[{parent.at}], or machine.keep_every_epochs. "
        f"For this one, delete the folder {parent.run.path} and pretrain again"
    )


def load_parent_backbone(parent: Parent, loaded: Mapping[str, Tensor] | None = None, **overrides: Any) -> Backbone:
    """Return the parent's network with exactly its weights; `overrides` go to timm (as output_stride=8).

    `loaded` are its tensors, if they were read already: the file is not read again. UserError if the file is cut
    off, is no checkpoint, or is of another architecture: the weights are never random.
    """
    backbone = _make_backbone(parent, **overrides)
    if loaded is None:
        # Not recognised by the keys: those of the network may begin as another project's prefix does.
        load_weights(backbone, parent.weights, prefix="" if parent.at is None else KEPT_PREFIX)
    else:
        backbone.trunk.load_state_dict(loaded, strict=True)
    return backbone


def _make_backbone(parent: Parent, **overrides: Any) -> Backbone:
    """Make the parent's network, without its weights unless they are a loader's."""
    described = parent.config["model"]["backbone"]
    name, args = described["name"], {**described.get("args", {}), **overrides}
    if _is_loaders(parent):
        return call_loader(name, args)
    return create_backbone(BackboneConfig(name=name, args=args))


def _is_loaders(parent: Parent) -> bool:
    return "loader" in parent.config.get("weights", {})


def require_sizes(parent: Parent, options: Mapping[tuple[int, int], str], advice: str) -> None:
    """Raise UserError where the parent's network, made for one size, does not take one of several.

    options: for each size, height and width in pixels, the option that makes images of it.
    """
    make = partial(_make_backbone, parent)
    backbone = make() if _is_loaders(parent) else without_storage(make)
    for (height, width), option in options.items():
        try:
            backbone.grid_size(height, width)
        except InvalidInputError as error:
            raise UserError(f"config: {option} is not possible: {error}; {advice}") from error


def require_changes(network: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise UserError where the network cannot be made with the arguments that an evaluation changes.

    network: its name and args, as a run records them; one of a loader is not made.
    """
    name, args = network["name"], {**network.get("args", {}), **changes}
    if not changes or ":" in name:
        return
    try:
        without_storage(lambda: create_backbone(BackboneConfig(name=name, args=args)))
    except InvalidInputError as error:
        options = {"output_stride": "output_stride = 0", "drop_path_rate": "drop_path = null"}
        advice = " and ".join(options[key] for key in changes)
        raise UserError(f"config: {error}; {advice} leaves the network as it was pretrained") from error


def require_class_token(parent: Parent) -> None:
    """Raise UserError where the parent's network has no class token."""
    if not load_parent_backbone(parent).has_class_token:
        name = parent.config["model"]["backbone"]["name"]
        raise UserError(f"config: pooled = 'class_token' is not possible: {name} has no class token; allowed: mean")


def choose_normalisation(parent: Parent, choice: NormalisationChoice) -> Normalisation:
    """Return the mean and deviation for the parent's images, by its pretraining, its own weights, or timm's of it."""
    if "weights" not in parent.config:
        return normalisation_of_run(parent, choice)
    network, known = parent.config["model"]["backbone"]["name"], _stated(parent)
    if known is not None:
        if choice is None and "loader" in parent.config["weights"] and _differs(known):
            print(
                f"normalised with mean {list(known[0])} and deviation {list(known[1])}, which timm states of the "
                f"network that {network} returns; if its weights were trained with ImageNet's: normalisation=imagenet",
                flush=True,
            )
        return _resolve_normalisation(network, known, "network" if choice is None else choice)
    if "loader" not in parent.config["weights"]:
        return normalisation_of_weights(network, choice)
    if choice == "network":
        raise UserError(
            f"config: normalisation = network is not possible: the module of {network} does not state its own"
        )
    return _resolve_normalisation(network, IMAGENET, choice)


def normalisation_source(parent: Parent, choice: NormalisationChoice) -> str:
    """Return what the mean and deviation are taken from, for result.json."""
    if choice is not None:
        return "config"
    if "weights" not in parent.config:
        return "pretraining"
    return "assumed: the file does not say which" if _stated(parent) is None else "weights"


def _stated(parent: Parent) -> Normalisation | None:
    """Return the mean and deviation that came with imported weights (a tag of timm's, a network of timm's), if any."""
    stated = (parent.run.result() or {}).get("normalisation")
    return None if stated is None else (tuple(stated[0]), tuple(stated[1]))


def normalisation_of_run(parent: Parent, choice: NormalisationChoice) -> Normalisation:
    """Do as `_resolve_normalisation`, by the mean and deviation of the run's pretraining."""
    views = parent.config.get("views", {})
    own = views.get("mean", IMAGENET[0]), views.get("std", IMAGENET[1])
    return _resolve_normalisation(parent.run.path.name, own, choice)


def normalisation_of_weights(arch: str, choice: NormalisationChoice) -> Normalisation:
    """Do as `_resolve_normalisation`, by those of timm's default weights of the network.

    Prints which of timm's other weights have others, because a file does not say which weights it holds.
    """
    default = timm.get_pretrained_cfg(arch)
    own = IMAGENET if default is None else (default.mean, default.std)
    chosen = _resolve_normalisation(arch, own, choice)
    others = [tag for tag in _tags(arch) if _normalisation_of_tag(arch, tag) != own]
    if choice is None and others:
        print(
            f"normalised with ImageNet's mean and deviation; for {len(others)} of timm's weights of {arch} others are "
            f"right: normalisation={others[0]}",
            flush=True,
        )
    return chosen


def _resolve_normalisation(network: str, own: Normalisation, choice: NormalisationChoice) -> Normalisation:
    """Return the mean and deviation that were chosen: ImageNet's, `own` of the network, or those of a timm tag.

    UserError where ImageNet's and the network's differ and the config does not choose.
    """
    if isinstance(choice, list):
        return tuple(choice[0]), tuple(choice[1])
    if choice not in (None, "imagenet", "network"):
        return _normalisation_of_tag(network, str(choice))
    if choice is None and _differs(own):
        raise UserError(
            f"config: normalisation is not set, and {network} has mean {list(own[0])} and deviation {list(own[1])} "
            f"where ImageNet has {list(IMAGENET[0])} and {list(IMAGENET[1])}. Choose what the weights "
            "were trained with: normalisation=network or normalisation=imagenet"
        )
    return own if choice == "network" else IMAGENET


def _differs(own: Normalisation) -> bool:
    """Return whether it is not ImageNet's; red divided by 0.228, as in the published pretraining, is no difference."""
    return max(abs(a - b) for pair in zip(own, IMAGENET, strict=True) for a, b in zip(*pair, strict=True)) > 0.005


def _normalisation_of_tag(arch: str, tag: str) -> Normalisation:
    if tag not in (tags := _tags(arch)):
        allowed = ", ".join(["imagenet", "network", *tags])
        raise UserError(f"config: normalisation = {tag!r} is not possible for {arch}; allowed: {allowed}")
    known: Any = timm.get_pretrained_cfg(f"{arch}.{tag}")
    return known.mean, known.std


def _tags(arch: str) -> list[str]:
    """List the tags of timm's weights of a network."""
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{arch}.*")]
