"""Linear classification on frozen features, or with the backbone trained too (`finetune: true`).

python -m eval.linear runs/pretrain/<run> --config eval/configs/linear_scenes.yaml key=value

Every learning rate of the config is trained in one backbone pass; a held-out slice of train chooses among them.
The score is the last epoch's, on val; best_on_val in result.json is the best over epochs and rates, which papers often
report.

Features that do not change are computed once: those of val and of the held-out slice, and with mode=cached those of
train. With random crops (mode=augmented) or a backbone that is trained (finetune) an epoch needs a pass of its own.
Kept checkpoints of one pretraining are different networks and share nothing.

On several GPUs, the same command by `torchrun --nproc-per-node 8 -m eval.linear ...` or srun. batch_size is of all
processes together: each computes its share of every batch, and their gradients are summed, so the heads are those of
one process but for rounding; only drop path (finetune) draws otherwise. Heads on cached features, which take little
time, are trained by every process alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.views import Purpose, sample_generator
from eval.command import evaluate
from eval.config import LinearConfig
from eval.features import ImageBatches, Labelled, PooledFeatures, open_batches, shuffled
from eval.linear_heads import LinearHeads
from eval.parent import Parent, load_parent_backbone
from eval.splits import Splits, best, is_at_edge
from runtime import files
from runtime.device import choose_convolutions
from runtime.distributed import add_up, any_stop, broadcast
from runtime.errors import CHECKPOINT_ERRORS, NotFiniteError, UserError, run_command, unreadable_checkpoint
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request
from runtime.world import World
from vicregl.sync_norm import synchronise


@dataclass
class LinearState:
    """Everything that the next step depends on, besides the config and what is frozen."""

    parts: dict[str, Any]  # heads, optimizer and, where it is trained, backbone
    loss_sums: Tensor  # (k,) of this epoch's steps
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the next epoch
    seconds: float = 0.0  # over all attempts
    best_on_val: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        contents = {name: value for name, value in vars(self).items() if name != "parts"}
        contents |= {name: part.state_dict() for name, part in self.parts.items()}
        files.write_atomic(path, lambda temporary: torch.save(contents, temporary))

    def load(self, path: Path) -> None:
        """UserError where the file is cut off or is no checkpoint of this evaluation."""
        try:
            contents = torch.load(path, map_location=self.loss_sums.device, weights_only=True)
            for name, part in self.parts.items():
                part.load_state_dict(contents.pop(name))
        except CHECKPOINT_ERRORS as error:
            raise unreadable_checkpoint(path, error) from error
        vars(self).update(contents)


class LinearTraining:
    """k heads on the features of a frozen backbone or, with `finetune`, one head trained together with its backbone.

    A finetuned backbone trains in train mode (its BatchNorm takes the batch's statistics and keeps averaging the
    running ones, its drop path drops) and is scored in eval mode. It has a learning rate of its own; momentum, weight
    decay and cosine are the head's.
    """

    def __init__(self, config: LinearConfig, parent: Parent, run: Run, device: torch.device, world: World) -> None:
        self.config, self.run, self.device, self.world = config, run, device, world
        self.started = time.monotonic()
        self.checkpoint = run.path / "checkpoint.pt"
        self.splits = Splits.open(config.data, config.held_out, config.seed, config.subset)
        self.batches = open_batches(config, self.splits, parent.normalisation, world)
        self.backbone = load_parent_backbone(parent).to(device).requires_grad_(config.finetune)
        choose_convolutions(device, deterministic=config.finetune)
        self.features = PooledFeatures(self.backbone, device, config, world)
        self.tables: dict[str, Labelled] = {}
        if not config.finetune:
            constant = {k: v for k, v in self.batches.items() if k != "train" or config.mode == "cached"}
            self.tables = self.features.tables(constant, run, "linear features", config.machine)
        count = len(config.learning_rates)
        self.heads = LinearHeads(self.backbone.channels, self.splits.classes, count, config.seed).to(device)
        groups = self.heads.parameter_groups(config.learning_rates)
        parts: dict[str, Any] = {"heads": self.heads}
        if config.finetune:
            if world.size > 1:
                refuse_idle_processes(self.batches["train"], world)
                synchronise(self.backbone)
            rate = config.backbone_learning_rate
            groups.insert(0, {"params": list(self.backbone.parameters()), "lr": rate, "initial_lr": rate})
            parts["backbone"] = self.backbone
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
        self.state = LinearState(parts | {"optimizer": self.optimizer}, torch.zeros(count, device=device))

    def train(self) -> None:
        """Train the epochs that are still to do; save now and then, and on a stop request before leaving."""
        config, state = self.config, self.state
        if broadcast(self.checkpoint.exists()):
            state.load(self.checkpoint)
            print(f"going on at epoch {state.epoch} of {config.epochs}", flush=True)
        # A former attempt may have logged epochs after its last checkpoint: they are done again.
        if self.world.is_main:
            self.run.resume_metrics_after(state.epoch)
        steps, saved, before = self.batches["train"].steps, time.monotonic(), state.seconds
        position = state.epoch + state.step / steps
        progress = Progress(self.run, "linear", config.epochs, "epochs", config.machine.log_seconds, position)
        with stop_request() as stop:
            while state.epoch < config.epochs:
                set_rates(self.optimizer, state.epoch, config.epochs)
                for inputs, labels in self.train_batches():
                    self.train_step(inputs, labels)
                    state.step += 1
                    state.seconds = before + time.monotonic() - self.started
                    stopping = any_stop(stop)
                    if stopping or time.monotonic() - saved >= config.machine.save_seconds:
                        self.save()
                        saved = time.monotonic()
                    if stopping:
                        stop.leave()
                    progress.update(state.epoch + state.step / steps)
                self.end_epoch()
        self.save()

    def save(self) -> None:
        """Write the state, which is the same in every process."""
        if self.world.is_main:
            self.state.save(self.checkpoint)

    def train_batches(self) -> Iterator[Labelled]:
        """Yield (images (B, 3, S, S) or, where they are constant, features (B, F); labels) of the rest of the epoch.

        Images are this process's share of the batch, features all of it.
        """
        state, config = self.state, self.config
        if "train" not in self.tables:
            for images, labels in self.batches["train"].of_epoch(state.epoch, state.step, config.machine.workers):
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            return
        features, labels = self.tables["train"]
        order = torch.tensor(shuffled(len(labels), config.seed, state.epoch), device=self.device)
        for indices in order.split(config.batch_size)[state.step :]:
            yield features[indices], labels[indices]

    def train_step(self, inputs: Tensor, labels: Tensor) -> None:
        """Take one step of every head and, when finetuning, of the backbone."""
        if self.config.finetune:
            # Drop path draws as a function of (seed, epoch, step, process), so a resumed run repeats its draws.
            number = self.world.rank * self.batches["train"].steps + self.state.step
            stream = sample_generator(self.config.seed, self.state.epoch, number, Purpose.DROPOUT)
            torch.manual_seed(int(stream.integers(2**32)))
            self.backbone.train()
            features = self.features.forward(inputs)[1]
        else:
            features = inputs if "train" in self.tables else self.features(inputs)
        losses = self.heads.losses(features, labels, self.batches["train"].size(self.state.step))
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        losses = losses.detach()
        if "train" not in self.tables:
            parameters = (p for group in self.optimizer.param_groups for p in group["params"])
            add_up([losses, *(p.grad for p in parameters if p.grad is not None)], self.world)
        self.optimizer.step()
        self.state.loss_sums += losses

    def accuracy(self, part: str) -> Tensor:
        """Return (k, 2) top-1 and top-5 of every head, percent, on "val" or "held_out"."""
        if part in self.tables:
            return self.heads.accuracy(*self.tables[part])
        with stop_request() as stop:

            def on_batch(_done: int) -> None:
                if any_stop(stop):
                    self.save()  # at the end of an epoch's steps: only their scores are missing
                    stop.leave()

            self.backbone.eval()
            table = self.features.table(self.batches[part], self.config.machine.workers, on_batch)
        return self.heads.accuracy(*table)

    def end_epoch(self) -> None:
        """Score every head on val, for the log and the best-on-val figure."""
        state, rates = self.state, self.config.learning_rates
        losses = (state.loss_sums / self.batches["train"].steps).tolist()
        top1 = self.accuracy("val")[:, 0].tolist()
        state.epoch, state.step = state.epoch + 1, 0
        state.loss_sums.zero_()
        if all(math.isnan(score) for score in top1):
            raise NotFiniteError(
                f"every head diverged by epoch {state.epoch} (mean losses {losses}); lower learning_rates, now {rates}"
            )
        for rate, score in zip(rates, top1, strict=True):
            if score > state.best_on_val.get("top1", -1.0):
                state.best_on_val = {"top1": score, "epoch": state.epoch, "learning_rate": rate}
        row: dict[str, Any] = {"step": state.epoch, "epoch": state.epoch, "time": time.time(), "seconds": state.seconds}
        row |= {"loss": files.finite(losses), "val_top1": files.finite(top1), "learning_rates": rates}
        if self.world.is_main:
            self.run.append_metrics(row)

    def choose_learning_rate(self) -> tuple[int, list[float] | None]:
        """Return (index of the rate that is the result, the held-out top-1 of each); (0, None) of a single rate.

        Held-out images of train choose, never val: the best of several scores on val is too high a score on val.
        """
        if "held_out" not in self.batches:
            return 0, None
        top1 = self.accuracy("held_out")[:, 0]
        return best(top1), top1.tolist()

    def scores(self) -> dict[str, Any]:
        """Return the dict of result.json; percent."""
        state, rates, val = self.state, self.config.learning_rates, self.accuracy("val")
        chosen, held_out = self.choose_learning_rate()
        return {
            "protocol": self.config.protocol,
            "top1": float(val[chosen, 0]),
            "top5": float(val[chosen, 1]),
            "learning_rate": rates[chosen],
            "learning_rate_at_edge": is_at_edge(rates[chosen], rates),
            **{f"best_on_val_{name}": value for name, value in state.best_on_val.items()},
            "learning_rates": rates,
            "held_out_top1_each": None if held_out is None else files.finite(held_out),
            "val_top1_each": files.finite(val[:, 0].tolist()),
            "epochs": state.epoch,
            "seconds": state.seconds,
            **self.splits.describe(),
        }


def refuse_idle_processes(batches: ImageBatches, world: World) -> None:
    """UserError where a process would have no image of an epoch's last batch: BatchNorm needs one of each."""
    if (last := batches.size(batches.steps - 1)) < world.size:
        raise UserError(
            f"config: batch_size = {batches.batch_size} leaves {last} of {len(batches)} training images for the last "
            f"batch, fewer than the {world.size} processes; take another batch_size or fewer processes"
        )


def set_rates(optimizer: torch.optim.Optimizer, epoch: int, epochs: int) -> None:
    """Lower each group's learning rate along a cosine to 0, stepped once an epoch."""
    factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def classify(config: LinearConfig, parent: Parent, run: Run, device: torch.device, world: World) -> dict[str, Any]:
    """Train and score; return the dict of result.json."""
    training = LinearTraining(config, parent, run, device, world)
    training.train()
    scores = training.scores()
    figures = f"top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, learning rate {scores['learning_rate']:g}"
    edge = " (at the edge of the rates tried)" if scores["learning_rate_at_edge"] else ""
    print(f"{config.protocol}: {figures}{edge}; best on val {scores['best_on_val_top1']:.2f} %", flush=True)
    return scores


def main(argv: Sequence[str]) -> None:
    evaluate(argv, LinearConfig, classify)


if __name__ == "__main__":
    run_command(main)
