"""The full training state in one file: replaced in one step, loaded without running any code of the file."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from pretrain.probe import OnlineProbe
from runtime import files
from runtime.errors import UserError
from vicregl.model import VICRegLModel

FORMAT = 1


@dataclass
class TrainingState:
    """Everything that the next step depends on, besides the config."""

    model: VICRegLModel
    optimizer: torch.optim.Optimizer
    probe: OnlineProbe | None
    step: int = 0  # steps done
    seconds: float = 0.0  # of training, over all attempts

    def save(self, path: Path) -> None:
        contents = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "probe": None if self.probe is None else self.probe.state_dict(),
            "probe_optimizer": None if self.probe is None else self.probe.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "rng_cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
        files.write_atomic(path, lambda temporary: torch.save(contents, temporary))

    def load(self, path: Path) -> None:
        """Go on from the file. UserError if it is cut off, not a checkpoint, or of another network."""
        contents = _read(path)
        try:
            self.model.load_state_dict(contents["model"])
            self.optimizer.load_state_dict(contents["optimizer"])
            if self.probe is not None:
                self.probe.load_state_dict(contents["probe"])
                self.probe.optimizer.load_state_dict(contents["probe_optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is a checkpoint of another network or optimiser: {error}") from error
        self.step, self.seconds = contents["step"], contents["seconds"]
        torch.set_rng_state(contents["rng"])
        if contents["rng_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(contents["rng_cuda"])


def load_model(model: VICRegLModel, path: Path) -> None:
    """Only the network of a run's checkpoint, strictly, to look at it. UserError as `TrainingState.load`."""
    try:
        model.load_state_dict(_read(path)["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{path} is a checkpoint of another network: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(
            f"{path} cannot be read: it is cut off or not a checkpoint ({type(error).__name__}). "
            "Delete it to start this run over, or put a good copy in its place"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        found = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise UserError(f"{path} is not a checkpoint of this version: format {found!r}, expected {FORMAT}")
    return contents


def save_backbone(model: VICRegLModel, path: Path) -> None:
    """The timm network alone, with its own key names, on the CPU."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.backbone.trunk.state_dict().items()}
    files.write_atomic(path, lambda temporary: save_file(tensors, temporary))
