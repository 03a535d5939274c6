"""Linear classification on frozen features.

python -m eval.linear runs/pretrain/<run> --config eval/configs/linear_scenes.yaml key=value

Every learning rate of the config is trained in one backbone pass; a held-out slice of train chooses among them.
The score is the last epoch's, on val; the best figure over epochs and rates on val stands beside it, labelled.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.catalog import open_dataset
from data.images import ImageList
from data.transforms import Transform, eval_transform, labelled_dataset, train_transform
from eval.checkpoint import UNREADABLE, unreadable
from eval.command import evaluate
from eval.features import Batch, FrozenFeatures, ImageBatches, shuffled, stratified_split, subset
from eval.linear_config import PROTOCOLS, STAGE, LinearConfig, identity
from eval.linear_heads import LinearHeads
from eval.parent import Parent, load_parent_backbone
from eval.progress import Progress
from runtime import files
from runtime.errors import NotFiniteError, UserError, run_command
from runtime.rundir import Run
from runtime.stopping import stop_request


@dataclass
class Splits:
    """The images of an evaluation; train and held_out are disjoint parts of the dataset's train split."""

    train: ImageBatches
    held_out: ImageBatches | None
    val: ImageBatches
    classes: int

    @classmethod
    def open(cls, config: LinearConfig) -> Splits:
        dataset = open_dataset(config.data)
        train, val = dataset.images("train"), dataset.images("val")
        refuse_unusable(config.data.name, train, val)
        central = eval_transform(config.resize, config.image_size)
        crops = train_transform(config.image_size, config.crop_scale, config.flip)
        kept, held_out = stratified_split(train.labels or [], config.held_out, config.seed)

        def batches(images: ImageList, transform: Transform, seed: int | None = None) -> ImageBatches:
            return ImageBatches(labelled_dataset(images, transform, seed or 0), config.batch_size, seed)

        if config.mode == "cached":
            train_batches = batches(subset(train, kept), central)
        else:
            train_batches = batches(subset(train, kept), crops, config.seed)
        return cls(
            train_batches,
            batches(subset(train, held_out), central) if held_out else None,
            batches(val, central),
            len(dataset.classes),
        )


def refuse_unusable(name: str, train: ImageList, val: ImageList) -> None:
    """UserError where a linear classifier cannot be trained on these images, or must not."""
    if train.labels is None or val.labels is None:
        raise UserError(f"dataset {name} has no class labels; choose one that has (data.name)")
    if not train.paths or not val.paths:
        raise UserError(f"dataset {name} has {len(train)} training and {len(val)} validation images; both are needed")
    if shared := set(train.paths) & set(val.paths):
        raise UserError(f"dataset {name}: {len(shared)} images are both in train and val, as {min(shared)}")


@dataclass
class LinearState:
    """Everything that the next step depends on, besides the config and the features."""

    heads: LinearHeads
    optimizer: torch.optim.SGD
    loss_sums: Tensor  # (k,) of this epoch's steps
    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the next epoch
    seconds: float = 0.0  # over all attempts
    best_on_val: dict[str, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        contents = {name: getattr(self, name) for name in ("loss_sums", "epoch", "step", "seconds", "best_on_val")}
        contents |= {"heads": self.heads.state_dict(), "optimizer": self.optimizer.state_dict()}
        files.write_atomic(path, lambda temporary: torch.save(contents, temporary))

    def load(self, path: Path) -> None:
        """UserError where the file is cut off or is no checkpoint of this evaluation."""
        try:
            contents = torch.load(path, map_location=self.loss_sums.device, weights_only=True)
            self.heads.load_state_dict(contents.pop("heads"))
            self.optimizer.load_state_dict(contents.pop("optimizer"))
        except UNREADABLE as error:
            raise unreadable(path, error) from error
        for name, value in contents.items():
            setattr(self, name, value)


class LinearEvaluation:
    """Features of the frozen backbone, the heads on them, and the loop over epochs."""

    def __init__(self, config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> None:
        self.config, self.run = config, run
        self.started = time.monotonic()
        self.splits = Splits.open(config)
        self.features = FrozenFeatures(load_parent_backbone(parent), device)
        self.compute_tables()
        heads = LinearHeads(self.val[0].shape[1], self.splits.classes, len(config.learning_rates), config.seed)
        heads = heads.to(device)
        optimizer = torch.optim.SGD(
            heads.parameter_groups(config.learning_rates),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.state = LinearState(heads, optimizer, torch.zeros(len(config.learning_rates), device=device))
        self.checkpoint = run.path / "checkpoint.pt"

    def compute_tables(self) -> None:
        """Features that never change: of val, of the held-out slice and, in cached mode, of train."""
        parts = {"val": self.splits.val}
        if self.splits.held_out is not None:
            parts["held_out"] = self.splits.held_out
        if self.config.mode == "cached":
            parts["train"] = self.splits.train
        total, done = sum(len(part) for part in parts.values()), 0
        progress = Progress(self.run, "linear features", total, "images", self.config.machine.log_seconds)
        tables: dict[str, Batch] = {}
        for name, part in parts.items():
            tables[name] = self.features.table(part, self.config.machine.workers, partial(progress.add, done))
            done += len(part)
        self.val, self.held_out, self.cached = tables["val"], tables.get("held_out"), tables.get("train")

    def train_batches(self) -> Iterator[Batch]:
        """(features, labels) of the rest of the epoch that the state stands in."""
        epoch, first = self.state.epoch, self.state.step
        if self.cached is None:
            for images, labels in self.splits.train.of_epoch(epoch, first, self.config.machine.workers):
                yield self.features(images), labels.to(self.features.device, non_blocking=True)
            return
        vectors, labels = self.cached
        order = torch.tensor(shuffled(len(labels), self.config.seed, epoch), device=vectors.device)
        for chosen in order.split(self.config.batch_size)[first:]:
            yield vectors[chosen], labels[chosen]

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
                for vectors, labels in self.train_batches():
                    self.train_step(vectors, labels)
                    state.seconds = before + time.monotonic() - self.started
                    if stop or time.monotonic() - saved >= config.machine.save_seconds:
                        state.save(self.checkpoint)
                        saved = time.monotonic()
                    if stop:
                        stop.leave()
                    progress.update(state.epoch + state.step / steps)
                self.end_epoch()
        state.save(self.checkpoint)

    def train_step(self, vectors: Tensor, labels: Tensor) -> None:
        """One step of every head on (B, F) features."""
        losses = self.state.heads.losses(vectors, labels)
        self.state.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.state.optimizer.step()
        self.state.loss_sums += losses.detach()
        self.state.step += 1

    def end_epoch(self) -> None:
        """Score every head on val, for the log and the best-on-val figure."""
        state, rates = self.state, self.config.learning_rates
        losses = (state.loss_sums / self.splits.train.steps).tolist()
        top1 = state.heads.accuracy(*self.val)[:, 0].tolist()
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
        val = state.heads.accuracy(*self.val)
        held_out = val.new_zeros(len(rates)) if self.held_out is None else state.heads.accuracy(*self.held_out)[:, 0]
        # The first of the rates that are best on the held-out slice; a diverged head never is.
        chosen = int(held_out.nan_to_num(-1.0).argmax())
        return {
            "protocol": PROTOCOLS[self.config.mode],
            "top1": float(val[chosen, 0]),
            "top5": float(val[chosen, 1]),
            "learning_rate": rates[chosen],
            "learning_rate_at_edge": len(rates) > 1 and rates[chosen] in (min(rates), max(rates)),
            "best_on_val_top1": state.best_on_val["top1"],
            "best_on_val_epoch": state.best_on_val["epoch"],
            "best_on_val_learning_rate": state.best_on_val["learning_rate"],
            "learning_rates": rates,
            "held_out_top1_each": None if self.held_out is None else finite(held_out.tolist()),
            "val_top1_each": finite(val[:, 0].tolist()),
            "epochs": state.epoch,
            "classes": splits.classes,
            "train_images": len(splits.train),
            "held_out_images": len(splits.held_out or ()),
            "val_images": len(splits.val),
            "seconds": state.seconds,
        }


def set_rates(optimizer: torch.optim.Optimizer, epoch: int, epochs: int) -> None:
    """A cosine from each head's own learning rate to 0, stepped once an epoch."""
    factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def finite(values: Sequence[float]) -> list[float | None]:
    """NaN and infinity have no place in JSON."""
    return [value if math.isfinite(value) else None for value in values]


def classify(config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> dict[str, Any]:
    """Train and score; the dict of result.json."""
    evaluation = LinearEvaluation(config, parent, run, device)
    evaluation.train()
    scores = evaluation.scores()
    edge = " (at the edge of the rates tried)" if scores["learning_rate_at_edge"] else ""
    print(
        f"{scores['protocol']}: top-1 {scores['top1']:.2f} %, top-5 {scores['top5']:.2f} %, "
        f"learning rate {scores['learning_rate']:g}{edge}; best on val {scores['best_on_val_top1']:.2f} %",
        flush=True,
    )
    return scores


def main(argv: Sequence[str]) -> None:
    evaluate(argv, STAGE, LinearConfig, identity, classify)


if __name__ == "__main__":
    run_command(main)
