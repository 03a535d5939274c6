"""Linear classification on frozen features, or with the backbone trained too (`finetune: true`).

python -m eval.linear runs/pretrain/<run> --config eval/configs/linear_scenes.yaml key=value

Every learning rate of the config is trained in one backbone pass; a held-out slice of train chooses among them.
The score is the last epoch's, on val; the best figure over epochs and rates on val stands beside it, labelled.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.catalog import open_dataset
from data.config import IMAGENET, Normalisation
from data.images import ImageList
from data.transforms import LabelledDataset, Transform, eval_transform, train_transform
from data.views import Purpose, sample_generator
from eval.command import evaluate
from eval.features import Batch, FrozenFeatures, ImageBatches, PooledFeatures, shuffled
from eval.linear_config import STAGE, LinearConfig, identity
from eval.parent import Parent, load_parent_backbone
from eval.splits import best, hold_out, refuse_unusable, subset
from eval.subset import Subset, take_subset
from runtime import files
from runtime.errors import CHECKPOINT_ERRORS, NotFiniteError, run_command, unreadable_checkpoint
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request


class LinearHeads(nn.Module):
    """k classifiers (classes, features) with the same start: weights N(0, 0.01), biases 0.

    The loss of each is the mean cross-entropy; the sum of the k losses has for each head exactly the
    gradient that it would have alone, because no weight is shared.
    """

    def __init__(self, features: int, classes: int, count: int, seed: int) -> None:
        super().__init__()
        start = 0.01 * torch.randn(classes, features, generator=torch.Generator().manual_seed(seed))
        self.weights = nn.ParameterList([start.clone() for _ in range(count)])
        self.biases = nn.ParameterList([torch.zeros(classes) for _ in range(count)])

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) -> logits (B, k, classes), in one product."""
        logits = F.linear(features, torch.cat(list(self.weights)), torch.cat(list(self.biases)))
        return logits.unflatten(1, (len(self.weights), -1))

    def losses(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, F), (B,) -> (k,) mean cross-entropy of each head."""
        logits = self(features)
        batch, count, _ = logits.shape
        each = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(count), reduction="none")
        return each.view(batch, count).mean(0)

    def parameter_groups(self, learning_rates: Sequence[float]) -> list[dict[str, object]]:
        """One optimiser group a head; `initial_lr` is what the schedule multiplies."""
        return [
            {"params": [weight, bias], "lr": rate, "initial_lr": rate}
            for weight, bias, rate in zip(self.weights, self.biases, learning_rates, strict=True)
        ]

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor, batch_size: int = 8192) -> Tensor:
        """(N, F), (N,) -> (k, 2): top-1 and top-5 in percent; NaN for a head that diverged.

        With five classes or fewer, top-5 is 100 by definition.
        """
        correct = torch.zeros(len(self.weights), 2, dtype=torch.float64, device=features.device)
        for vectors, truth in zip(features.split(batch_size), labels.split(batch_size), strict=True):
            logits = self(vectors)
            best = logits.topk(min(5, logits.shape[2]), dim=2).indices  # (B, k, 5)
            hits = best == truth[:, None, None]
            correct += torch.stack([hits[:, :, 0].sum(0), hits.any(2).sum(0)], dim=1)
        percent = 100 * correct / len(labels)
        diverged = [not bool(torch.isfinite(weight).all()) for weight in self.weights]
        percent[torch.tensor(diverged, device=percent.device)] = torch.nan
        return percent.cpu()


@dataclass
class Splits:
    """The images of an evaluation; train and held_out are disjoint parts of the dataset's train split.

    Of scenes, no digit that a held-out image is labelled by is in a training image (`source_split`).
    """

    train: ImageBatches
    held_out: ImageBatches | None
    val: ImageBatches
    classes: int
    held_out_by: str  # image | source
    subset: Subset | None = None  # that train and held_out are parts of, where not all of train is used

    @classmethod
    def open(cls, config: LinearConfig, normalisation: Normalisation = IMAGENET) -> Splits:
        dataset = open_dataset(config.data)
        train, val = dataset.images("train"), dataset.images("val")
        refuse_unusable(config.data.name, train, val)
        chosen = None
        if config.subset is not None:
            chosen = take_subset(config.subset, train, dataset.classes, dataset.root / "train")
            train = chosen.images
        central = eval_transform(config.resize, config.image_size)
        crops = train_transform(config.image_size, config.crop_scale, config.flip)
        kept, held_out, held_out_by = hold_out(dataset, train, config.held_out, config.seed)

        def batches(images: ImageList, transform: Transform, seed: int | None = None) -> ImageBatches:
            dataset = LabelledDataset(images, transform, seed or 0, normalisation=normalisation)
            return ImageBatches(dataset, config.batch_size, seed)

        if config.mode == "cached":
            train_batches = batches(subset(train, kept), central)
        else:
            train_batches = batches(subset(train, kept), crops, config.seed)
        return cls(
            train_batches,
            batches(subset(train, held_out), central) if held_out else None,
            batches(val, central),
            len(dataset.classes),
            held_out_by,
            chosen,
        )


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
        chosen = 0 if held_out is None else best(held_out)
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


class LinearEvaluation(LinearTraining):
    """Features of the frozen backbone, and k heads on them."""

    def __init__(self, config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> None:
        super().__init__(config, parent, run)
        self.features = FrozenFeatures(load_parent_backbone(parent), device)
        self.tables = self.compute_tables()
        width = self.tables["val"][0].shape[1]
        heads = LinearHeads(width, self.splits.classes, len(config.learning_rates), config.seed).to(device)
        optimizer = torch.optim.SGD(
            heads.parameter_groups(config.learning_rates),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.state = LinearState(heads, optimizer, torch.zeros(len(config.learning_rates), device=device))

    def compute_tables(self) -> dict[str, Batch]:
        """Features that never change: of val, of the held-out slice and, in cached mode, of train."""
        parts = {"val": self.splits.val}
        if self.splits.held_out is not None:
            parts["held_out"] = self.splits.held_out
        if self.config.mode == "cached":
            parts["train"] = self.splits.train
        total, done = sum(len(part) for part in parts.values()), 0
        progress = Progress(self.run, "linear features", total, "images", self.config.machine.log_seconds)
        tables: dict[str, Batch] = {}
        with stop_request() as stop:

            def on_batch(images: int) -> None:
                progress.update(done + images)
                if stop:
                    stop.leave()

            for name, part in parts.items():
                tables[name] = self.features.table(part, self.config.machine.workers, on_batch)
                done += len(part)
        return tables

    def train_batches(self) -> Iterator[Batch]:
        """(features, labels)."""
        epoch, first = self.state.epoch, self.state.step
        if self.config.mode != "cached":
            for images, labels in self.splits.train.of_epoch(epoch, first, self.config.machine.workers):
                yield self.features(images), labels.to(self.features.device, non_blocking=True)
            return
        vectors, labels = self.tables["train"]
        order = torch.tensor(shuffled(len(labels), self.config.seed, epoch), device=vectors.device)
        for chosen in order.split(self.config.batch_size)[first:]:
            yield vectors[chosen], labels[chosen]

    def train_step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of every head on (B, F) features."""
        self.descend(self.state.heads.losses(inputs, labels))

    def accuracy(self, part: str) -> Tensor:
        return self.state.heads.accuracy(*self.tables[part])


class Finetuning(LinearTraining):
    """A backbone and one head, trained together (`finetune: true`).

    The backbone trains in train mode (its BatchNorm takes the batch's statistics and keeps averaging the running ones,
    its drop path drops) and is scored in eval mode. It has a learning rate of its own; momentum, weight decay and
    cosine are the head's. One head at a time: several would train one backbone together, which none would do alone.
    """

    def __init__(self, config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> None:
        super().__init__(config, parent, run)
        torch.backends.cudnn.deterministic = True
        self.device = device
        self.backbone = load_parent_backbone(parent).to(device)
        heads = LinearHeads(self.backbone.channels, self.splits.classes, 1, config.seed).to(device)
        rate = config.backbone_learning_rate
        groups = [{"params": list(self.backbone.parameters()), "lr": rate, "initial_lr": rate}]
        optimizer = torch.optim.SGD(
            [*groups, *heads.parameter_groups(config.learning_rates)],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.state = LinearState(heads, optimizer, torch.zeros(1, device=device), self.backbone)

    def train_batches(self) -> Iterator[Batch]:
        """(images, labels)."""
        epoch, first = self.state.epoch, self.state.step
        for images, labels in self.splits.train.of_epoch(epoch, first, self.config.machine.workers):
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)

    def train_step(self, inputs: Tensor, labels: Tensor) -> None:
        """One step of backbone and head on (B, 3, S, S) images."""
        # What drop path drops is a function of (seed, epoch, step), so a resumed run goes on as if it had not stopped.
        drawn = sample_generator(self.config.seed, self.state.epoch, self.state.step, Purpose.DROPOUT).integers(2**32)
        torch.manual_seed(int(drawn))
        self.backbone.train()
        _, pooled = self.backbone(inputs)
        self.descend(self.state.heads.losses(pooled.float(), labels))

    def accuracy(self, part: str) -> Tensor:
        batches = self.splits.val if part == "val" else self.splits.held_out
        assert batches is not None
        features = PooledFeatures(self.backbone.eval(), self.device)
        with stop_request() as stop:

            def on_batch(_done: int) -> None:
                if stop:
                    self.state.save(self.checkpoint)  # at the end of an epoch's steps: what is left is to score them
                    stop.leave()

            return self.state.heads.accuracy(*features.table(batches, self.config.machine.workers, on_batch))


def classify(config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> dict[str, Any]:
    """Train and score; the dict of result.json."""
    evaluation = (Finetuning if config.finetune else LinearEvaluation)(config, parent, run, device)
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
