"""Load weights from a file into a backbone: every tensor must match, or nothing is loaded."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import VisionTransformer
from torch import Tensor, nn

from vicregl.errors import InvalidInputError
from vicregl.weight_names import to_timm

# Where training scripts put the state dict in their checkpoints, the first that is there. DINO's, iBOT's and DINOv2's
# hold a student beside the teacher, and are evaluated by the teacher.
CONTAINERS = ("model", "state_dict", "backbone", "teacher")
# MoCo 3's ViT-S, and its heads: timm's network of this width has 6, and the tensors are the same for any number.
MOCO3_PREFIX, MOCO3_WIDTH, MOCO3_HEADS = "base_encoder.", 384, 12
# What training scripts put before the backbone's keys; each is taken off in turn where it is there, and keys without it
# are other networks' (a momentum encoder, projectors). Of MoCo 1 and 2 the query encoder is the one that is evaluated.
PREFIXES = (
    "module.",  # of DistributedDataParallel
    "encoder_q.",  # MoCo 1 and 2
    MOCO3_PREFIX,
    "online_network.",  # BYOL
    "encoder.",  # SimSiam, BYOL
    "backbone.",  # VICRegL, DINO, solo-learn, lightly
    "trunk.",  # this project's whole model
)
# Classifiers and projectors beside the backbone's keys, under the same prefix (torchvision, timm, SwAV, MoCo). Of
# `head` the classifier (or MoCo's layers) alone: head.norm belongs to a ConvNeXt. DINOv3's ConvNeXts hold their last
# norm twice, once in `norms`; DINOv2's mask token is of its pretraining.
HEADS = re.compile(
    r"(fc|classifier|projection_head|prototypes|projector|predictor)\..+"
    r"|head(\.fc)?\.(weight|bias)|head\.\d+\.\w+|norms\.3\.(weight|bias)|mask_token"
)
LISTED_KEYS = 12


@dataclass
class LoadReport:
    """What `load_weights` did."""

    path: Path
    tensors: int  # loaded: all of the network's
    values: int  # numbers in them
    container: str  # under which the file has the state dict, as "state_dict" or "teacher"; "": at its top
    beside: list[str]  # other containers in the file, as "student"
    prefix: str  # that the backbone's keys had in the file
    names: str  # whose names for the tensors became timm's, as "DINOv3's"; "": they were timm's
    ignored: list[str] = field(default_factory=list)  # keys beside the backbone's, as heads in a full checkpoint

    def __str__(self) -> str:
        container = f", from {self.container!r}" if self.container else ""
        container += f" (beside it: {', '.join(self.beside)})" if self.beside else ""
        prefix = f", prefix {self.prefix!r} taken off" if self.prefix else ""
        names = f", {self.names} names" if self.names else ""
        parts = sorted({key.removeprefix("module.").partition(".")[0] for key in self.ignored})
        ignored = f"; left out {len(self.ignored)} tensors of {', '.join(parts)}" if parts else ""
        matched = f"{self.path}: all {self.tensors} tensors ({self.values:,} values) matched"
        return f"{matched}{container}{prefix}{names}{ignored}"


def load_weights(backbone: Any, path: str | Path, prefix: str | None = None, ignore: Sequence[str] = ()) -> LoadReport:
    """Load a backbone's weights, strictly, from a file of this project, of VICRegL, torchvision, timm, MoCo, DINO,
    DINOv2, DINOv3, SwAV, BYOL, SimSiam, solo-learn or lightly: a backbone, or a checkpoint with heads, which are
    left out.

    Other files: `prefix` is what the backbone's keys have before them (keys without it are left out), `ignore` the
    beginnings of further keys (after the prefix) to leave out.

    `backbone` has the timm network as `trunk`. Raises InvalidInputError, with nothing loaded, if the file is missing,
    cut off or no checkpoint, if any key is missing, unexpected, of another shape, or not finite, or if the network has
    another number of heads than MoCo 3's: what tensors do not show is not checked of other files.
    """
    path = Path(path)
    trunk: nn.Module = backbone.trunk
    name = getattr(backbone, "name", type(trunk).__name__)
    state, container, beside = _state_dict(_read(path), path)
    wanted = trunk.state_dict()
    state, taken_off, ignored = _backbone_part(state, prefix, wanted)
    if prefix and taken_off != prefix:
        raise InvalidInputError(f"weights file {path}: no key begins with {prefix!r}; keys are {_listed(list(state))}")
    heads = [key for key in state if key not in wanted and (HEADS.fullmatch(key) or key.startswith(tuple(ignore)))]
    ignored += [taken_off + key for key in heads]
    state = {key: value for key, value in state.items() if key not in heads}
    unused: list[str] = []
    state, names = to_timm(state, trunk, unused)
    ignored += [taken_off + key for key in unused]
    _compare(state, wanted, path, name)
    if MOCO3_PREFIX in taken_off:
        _refuse_other_heads(trunk, path, name)
    trunk.load_state_dict(state, strict=True)
    values = sum(tensor.numel() for tensor in wanted.values())
    return LoadReport(path, len(wanted), values, container, beside, taken_off, names, ignored)


class _Inert:
    """Stands in for other pickled objects (an optimiser's functions, parsed arguments): does nothing."""

    def __init__(self, *_: object, **__: object) -> None:
        pass


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InvalidInputError(f"weights file {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # No code of the file is ever run: what weights_only does not know becomes an inert object.
        unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Inert, name) for name in unknown]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise InvalidInputError(
            f"weights file {path} ({path.stat().st_size:,} bytes) cannot be read: it is cut off, or not a checkpoint "
            f"in torch's zip format or safetensors ({type(error).__name__}: {reason}). Download or copy it again"
        ) from error


def _state_dict(contents: Any, path: Path) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the names with tensors, the container that holds them, and other containers beside it."""
    container = ""
    beside: list[str] = []
    for _ in range(3):
        if not isinstance(contents, Mapping):
            break
        if contents and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in contents.items()):
            return dict(contents), container, beside
        container = next((key for key in CONTAINERS if key in contents), "")
        beside += [str(key) for key, value in contents.items() if key != container and _holds_tensors(value)]
        contents = contents.get(container)
    raise InvalidInputError(
        f"weights file {path} holds no state dict: expected names with tensors, "
        f"at the top or under one of the keys {', '.join(CONTAINERS)}"
    )


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _backbone_part(
    state: dict[str, Tensor], given: str | None, wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str, list[str]]:
    """Return the backbone's tensors, the prefix removed from their keys, and the keys of other parts.

    `given` is the prefix, or None where it is to be recognised.
    """
    prefix, ignored = "", []
    for part in PREFIXES if given is None else (given,):
        if given is None and wanted.keys() <= state.keys():
            break  # the network's own keys may begin as a prefix does, as "encoder."
        inside = {key.removeprefix(part): value for key, value in state.items() if key.startswith(part)}
        if inside:
            ignored += [prefix + key for key in state if not key.startswith(part)]
            state, prefix = inside, prefix + part
    return state, prefix, ignored


def _compare(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path, name: str) -> None:
    problems = []
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    both = [key for key in wanted if key in state]
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in both
        if state[key].shape != wanted[key].shape
    ]
    broken = [key for key in both if not torch.isfinite(state[key]).all()]
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("shape", shapes), ("not finite", broken)):
        if keys:
            problems.append(f"{what} ({len(keys)}): {_listed(keys)}")
    if not problems:
        return
    hint = ""
    if missing and not unexpected and all(key.endswith(".gamma") for key in missing):
        hint = ". The file has no layer scale, as the published ConvNeXts: make the network with ls_init_value: null"
    raise InvalidInputError(
        f"weights file {path} does not fit the backbone {name!r}: {len(both)} of {len(wanted)} keys match; "
        f"{'; '.join(problems)}{hint}. Nothing was loaded. Where the network's keys have an unknown prefix, or the "
        "file has more of other parts, give prefix and ignore"
    )


def _refuse_other_heads(trunk: Any, path: Path, name: str) -> None:
    """InvalidInputError for a network of the width of MoCo 3's ViT-S whose attention has another number of heads."""
    if not isinstance(trunk, VisionTransformer) or trunk.embed_dim != MOCO3_WIDTH:
        return
    heads = trunk.blocks[0].attn.num_heads
    if heads != MOCO3_HEADS:
        raise InvalidInputError(
            f"weights file {path} is MoCo 3's ViT-S, with {MOCO3_HEADS} attention heads, and the backbone {name!r} has "
            f"{heads}. Its tensors would fit, and it would be another network. Nothing was loaded; make the network "
            f"with num_heads: {MOCO3_HEADS}"
        )


def _listed(keys: list[str]) -> str:
    more = f" and {len(keys) - LISTED_KEYS} more" if len(keys) > LISTED_KEYS else ""
    return ", ".join(keys[:LISTED_KEYS]) + more
