"""The full training state in one file, written atomically and loaded without running code from it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pretrain.diagnostics import OnlineProbe
from runtime import files
from runtime.config import kept_checkpoint
from runtime.distributed import gather_objects
from runtime.errors import CHECKPOINT_ERRORS, UserError, unreadable_checkpoint
from runtime.world import World
from vicregl.model import VICRegLModel

FORMAT = 2  # format 1 had the random state of one process, under "rng", and no scaler
READABLE = (1, FORMAT)
RandomState = dict[str, Tensor | None]


@dataclass
class TrainingState:
    """Everything that the next step depends on, apart from the config."""

    model: VICRegLModel
    optimizer: torch.optim.Optimizer
    probe: OnlineProbe | None
    scaler: torch.amp.GradScaler  # of float16 gradients; disabled for other precisions
    device: torch.device
    world: World
    precision: str  # of the network; a resumed run keeps it
    criterion: nn.Module  # VICRegL's has no state of its own
    skipped: set[int] = field(default_factory=set)  # unreadable images that were met: the loader's set, which grows
    step: int = 0  # finished steps
    seconds: float = 0.0  # of training, over all attempts

    def save(self, path: Path) -> None:
        """Write the state. Every process calls this, for its random state and skipped images; process 0 writes."""
        random = gather_objects(random_state(self.device), self.world)
        skipped = self.gather_skipped()
        if not self.world.is_main:
            return
        contents = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "precision": self.precision,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "probe": None if self.probe is None else self.probe.state_dict(),
            "probe_optimizer": None if self.probe is None else self.probe.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": random,  # a list with one entry per process
        }
        contents |= {"criterion": state} if (state := self.criterion.state_dict()) else {}
        contents |= {"skipped": skipped} if skipped else {}
        files.write_atomic(path, lambda temporary: torch.save(contents, temporary))

    def gather_skipped(self) -> list[int]:
        """Return the numbers of all images that were skipped, by any process in any attempt; [] but for process 0."""
        return sorted({number for part in gather_objects(sorted(self.skipped), self.world) for number in part})

    def load(self, path: Path) -> bool:
        """Load the file; return whether it restored this process's random state too.

        It cannot where another number of processes saved it. UserError if the file is cut off, not a checkpoint, or of
        another network.
        """
        contents = _read(path)
        try:
            self.model.load_state_dict(contents["model"])
            self.criterion.load_state_dict(contents.get("criterion", {}))
            self.optimizer.load_state_dict(contents["optimizer"])
            if self.probe is not None:
                self.probe.load_state_dict(contents["probe"])
                self.probe.optimizer.load_state_dict(contents["probe_optimizer"])
            if contents.get("scaler"):
                self.scaler.load_state_dict(contents["scaler"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is a checkpoint of another network or optimiser: {error}") from error
        self.step, self.seconds = contents["step"], contents["seconds"]
        self.precision = contents.get("precision", self.precision)
        self.skipped.update(contents.get("skipped", []))
        random = _random_states(contents)
        if len(random) != self.world.size:
            return False
        set_random_state(random[self.world.rank], self.device)
        return True


def _random_states(contents: dict[str, Any]) -> list[RandomState]:
    if contents["format"] > 1:
        return contents["random"]
    cuda = contents["rng_cuda"]  # one entry per GPU of the machine
    return [{"cpu": contents["rng"], "cuda": cuda[0] if cuda else None}]


def _read(path: Path) -> dict[str, Any]:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except CHECKPOINT_ERRORS as error:
        raise unreadable_checkpoint(path, error) from error
    if not isinstance(contents, dict) or contents.get("format") not in READABLE:
        version = contents.get("format") if isinstance(contents, dict) else type(contents).__name__
        raise UserError(f"{path} is not a checkpoint of this version: format {version!r}, expected {READABLE}")
    return contents


def keep_checkpoint(checkpoint: Path, name: str) -> None:
    """Link the current checkpoint.pt as `name` (see kept_checkpoint), without a second copy on the disk."""
    kept = checkpoint.parent / name
    kept.parent.mkdir(exist_ok=True)
    kept.unlink(missing_ok=True)
    try:
        os.link(checkpoint, kept)  # the next save replaces checkpoint.pt by a new file, which leaves this one unchanged
    except OSError:  # a file system without hard links
        files.write_atomic(kept, lambda temporary: shutil.copyfile(checkpoint, temporary))


def drop_old_checkpoints(checkpoint: Path, count: int, moments: Sequence[str]) -> None:
    """Delete all but the last `count` checkpoints that are named by their step, and those of `moments`."""
    kept = {checkpoint.parent / kept_checkpoint(moment) for moment in moments}
    for old in sorted(set((checkpoint.parent / "checkpoints").glob("step-*.pt")) - kept)[:-count]:
        old.unlink()


def save_backbone(model: VICRegLModel, path: Path) -> None:
    """Write the weights of the timm network alone, with timm's key names."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.backbone.trunk.state_dict().items()}
    files.write_tensors(path, tensors)


def random_state(device: torch.device) -> RandomState:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None}


def set_random_state(state: RandomState, device: torch.device) -> None:
    if (cpu := state["cpu"]) is not None:
        torch.set_rng_state(cpu)
    if device.type == "cuda" and (cuda := state["cuda"]) is not None:
        torch.cuda.set_rng_state(cuda, device)


def seed_process(seed: int, step: int, world: World) -> None:
    """Seed each process differently, so that drop path does not drop the same positions in every process."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, world.rank)).generate_state(1, np.uint64)[0] >> 1))
