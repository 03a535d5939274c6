"""What training heads on a frozen backbone and finetuning it share: the state, the loop over epochs, the scores."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eval.features import Batch
from eval.linear_config import LinearConfig
from eval.linear_heads import LinearHeads
from eval.linear_splits import Splits
from eval.parent import Parent
from runtime import files
from runtime.errors import CHECKPOINT_ERRORS, NotFiniteError, unreadable_checkpoint
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request


@dataclass
class LinearState:
    """Everything that the next step depends on, besides the config and what is frozen."""

    heads: LinearHeads
    optimizer: torch.optim.SGD
    loss_sums: Tensor  # (k,) of this epoch's steps
    backbone: nn.Module | None = None  # only where it is trained
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the next epoch
    seconds: float = 0.0  # over all attempts
    best_on_val: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        contents = {name: getattr(self, name) for name in ("loss_sums", "epoch", "step", "seconds", "best_on_val")}
        contents |= {name: part.state_dict() for name, part in self._parts().items()}
        files.write_atomic(path, lambda temporary: torch.save(contents, temporary))

    def load(self, path: Path) -> None:
        """UserError where the file is cut off or is no checkpoint of this evaluation."""
        try:
            contents = torch.load(path, map_location=self.loss_sums.device, weights_only=True)
            for name, part in self._parts().items():
                part.load_state_dict(contents.pop(name))
        except CHECKPOINT_ERRORS as error:
            raise unreadable_checkpoint(path, error) from error
        for name, value in contents.items():
            setattr(self, name, value)

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"heads": self.heads, "optimizer": self.optimizer}
        return parts if self.backbone is None else parts | {"backbone": self.backbone}


class LinearTraining(ABC):
    """The loop over epochs. A subclass makes `state` and says what a batch, a step and a score are."""

    state: LinearState

    def __init__(self, config: LinearConfig, parent: Parent, run: Run) -> None:
        self.config, self.run = config, run
        self.started = time.monotonic()
        self.splits = Splits.open(config, parent.normalisation)
        self.checkpoint = run.path / "checkpoint.pt"

    @abstractmethod
    def train_batches(self) -> Iterator[Batch]:
        """(what `train_step` takes, labels) of the rest of the epoch that the state stands in."""

    @abstractmethod
    def train_step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of the optimiser."""

    @abstractmethod
    def accuracy(self, part: str) -> Tensor:
        """(k, 2) top-1 and top-5 of every head, percent, on "val" or "held_out"."""

    def train(self) -> None:
        """All epochs that are still to do; saves now and then, and on a stop request before ending."""
        config, state = self.config, self.state
        if self.checkpoint.exists():
            state.load(self.checkpoint)
            print(f"going on at epoch {state.epoch} of {config.epochs}", flush=True)
        self.run.drop_metrics_after(state.epoch)
        steps, saved, before = self.splits.train.steps, time.monotonic(), state.seconds
        position = state.epoch + state.step / steps
        progress = Progress(self.run, "linear", config.epochs, "epochs", config.machine.log_seconds, position)
        with stop_request() as stop:
            while state.epoch < config.epochs:
                set_rates(state.optimizer, state.epoch, config.epochs)
                for inputs, labels in self.train_batches():
                    self.train_step(inputs, labels)
                    state.step += 1
                    state.seconds = before + time.monotonic() - self.started
                    if stop or time.monotonic() - saved >= config.machine.save_seconds:
                        state.save(self.checkpoint)
                        saved = time.monotonic()
                    if stop:
                        stop.leave()
                    progress.update(state.epoch + state.step / steps)
                self.end_epoch()
        state.save(self.checkpoint)

    def descend(self, losses: Tensor) -> None:
        """One step of the optimiser on the (k,) losses."""
        self.state.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.state.optimizer.step()
        self.state.loss_sums += losses.detach()

    def end_epoch(self) -> None:
        """Score every head on val, for the log and the best-on-val figure."""
        state, rates = self.state, self.config.learning_rates
        losses = (state.loss_sums / self.splits.train.steps).tolist()
        top1 = self.accuracy("val")[:, 0].tolist()
        state.epoch, state.step = state.epoch + 1, 0
        state.loss_sums.zero_()
        if all(math.isnan(score) for score in top1):
            raise NotFiniteError(
                f"every head diverged by epoch {state.epoch} (mean losses {losses}); "
                f"lower learning_rates, now {list(rates)}"
            )
        for rate, score in zip(rates, top1, strict=True):
            if score > state.best_on_val.get("top1", -1.0):
                state.best_on_val = {"top1": score, "epoch": state.epoch, "learning_rate": rate}
        row = {"step": state.epoch, "epoch": state.epoch, "time": time.time(), "seconds": state.seconds}
        self.run.append_metrics(row | {"loss": finite(losses), "val_top1": finite(top1), "learning_rates": list(rates)})

    def scores(self) -> dict[str, Any]:
        """What result.json holds; percent."""
        state, rates, splits = self.state, list(self.config.learning_rates), self.splits
        val = self.accuracy("val")
        held_out = None if splits.held_out is None else self.accuracy("held_out")[:, 0]
        # The first of the rates that are best on the held-out slice; a diverged head never is.
        chosen = 0 if held_out is None else int(held_out.nan_to_num(-1.0).argmax())
        return {
            "protocol": self.config.protocol,
            "top1": float(val[chosen, 0]),
            "top5": float(val[chosen, 1]),
            "learning_rate": rates[chosen],
            "learning_rate_at_edge": len(rates) > 1 and rates[chosen] in (min(rates), max(rates)),
            "best_on_val_top1": state.best_on_val["top1"],
            "best_on_val_epoch": state.best_on_val["epoch"],
            "best_on_val_learning_rate": state.best_on_val["learning_rate"],
            "learning_rates": rates,
            "held_out_top1_each": None if held_out is None else finite(held_out.tolist()),
            "val_top1_each": finite(val[:, 0].tolist()),
            "epochs": state.epoch,
            "classes": splits.classes,
            "train_images": len(splits.train),
            "held_out_images": len(splits.held_out or ()),
            "held_out_by": None if splits.held_out is None else splits.held_out_by,
            "val_images": len(splits.val),
            "seconds": state.seconds,
        } | ({} if splits.subset is None else splits.subset.described())


def set_rates(optimizer: torch.optim.Optimizer, epoch: int, epochs: int) -> None:
    """A cosine from each group's own learning rate to 0, stepped once an epoch."""
    factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def finite(values: Sequence[float]) -> list[float | None]:
    """NaN and infinity have no place in JSON."""
    return [value if math.isfinite(value) else None for value in values]
