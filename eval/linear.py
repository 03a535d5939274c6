"""Linear classification on frozen features, or with the backbone trained too (`finetune: true`).

python -m eval.linear runs/pretrain/<run> --config eval/configs/linear_scenes.yaml key=value

Every learning rate of the config is trained in one backbone pass; a held-out slice of train chooses among them.
The score is the last epoch's, on val; best_on_val in result.json is the best over epochs and rates, which papers often
report.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.config import Normalisation
from data.transforms import LabelledDataset, train_transform
from data.views import Purpose, sample_generator
from eval.command import evaluate
from eval.config import LinearConfig
from eval.features import ImageBatches, Labelled, PooledFeatures, central_crops, shuffled
from eval.parent import Parent, load_parent_backbone
from eval.splits import Splits, best, is_at_edge
from runtime import files
from runtime.errors import CHECKPOINT_ERRORS, NotFiniteError, run_command, unreadable_checkpoint
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request
from runtime.world import World


class LinearHeads(nn.Module):
    """k classifiers (classes, features) with the same start: weights N(0, 0.01), biases 0.

    The loss of each is the mean cross-entropy; the sum of the k losses has for each head exactly the gradient that it
    would have alone, because no weight is shared.
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
        heads = zip(self.weights, self.biases, learning_rates, strict=True)
        return [{"params": [weight, bias], "lr": rate, "initial_lr": rate} for weight, bias, rate in heads]

    @torch.no_grad()
    def accuracy(self, features: Tensor, labels: Tensor, batch_size: int = 8192) -> Tensor:
        """(N, F), (N,) -> (k, 2): top-1 and top-5 in percent; NaN for a head that diverged.

        With five classes or fewer, top-5 is 100 by definition.
        """
        correct = torch.zeros(len(self.weights), 2, dtype=torch.float64, device=features.device)
        for batch, truth in zip(features.split(batch_size), labels.split(batch_size), strict=True):
            logits = self(batch)
            ranked = logits.topk(min(5, logits.shape[2]), dim=2).indices  # (B, k, 5)
            hits = ranked == truth[:, None, None]
            correct += torch.stack([hits[:, :, 0].sum(0), hits.any(2).sum(0)], dim=1)
        percent = 100 * correct.cpu() / len(labels)
        # A head of NaN predicts class 0 always, which would be a score.
        diverged = [not weight.isfinite().all() for weight in self.weights]
        percent[torch.tensor(diverged)] = torch.nan
        return percent


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

    def __init__(self, config: LinearConfig, parent: Parent, run: Run, device: torch.device) -> None:
        self.config, self.run, self.device = config, run, device
        self.started = time.monotonic()
        self.checkpoint = run.path / "checkpoint.pt"
        self.splits = Splits.open(config.data, config.held_out, config.seed, config.subset)
        self.batches = open_batches(config, self.splits, parent.normalisation)
        self.backbone = load_parent_backbone(parent).to(device).requires_grad_(config.finetune)
        self.features = PooledFeatures(self.backbone, device)
        self.tables: dict[str, Labelled] = {}
        if not config.finetune:
            constant = {k: v for k, v in self.batches.items() if k != "train" or config.mode == "cached"}
            self.tables = self.features.tables(constant, run, "linear features", config.machine)
        count = len(config.learning_rates)
        self.heads = LinearHeads(self.backbone.channels, self.splits.classes, count, config.seed).to(device)
        groups = self.heads.parameter_groups(config.learning_rates)
        parts: dict[str, Any] = {"heads": self.heads}
        if config.finetune:
            torch.backends.cudnn.deterministic = True
            rate = config.backbone_learning_rate
            groups.insert(0, {"params": list(self.backbone.parameters()), "lr": rate, "initial_lr": rate})
            parts["backbone"] = self.backbone
        self.optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
        self.state = LinearState(parts | {"optimizer": self.optimizer}, torch.zeros(count, device=device))

    def train(self) -> None:
        """All epochs that are still to do; saves now and then, and on a stop request before ending."""
        config, state = self.config, self.state
        if self.checkpoint.exists():
            state.load(self.checkpoint)
            print(f"going on at epoch {state.epoch} of {config.epochs}", flush=True)
        # A former attempt may have logged epochs after its last checkpoint: they are done again.
        self.run.drop_metrics_after(state.epoch)
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
                    if stop or time.monotonic() - saved >= config.machine.save_seconds:
                        state.save(self.checkpoint)
                        saved = time.monotonic()
                    if stop:
                        stop.leave()
                    progress.update(state.epoch + state.step / steps)
                self.end_epoch()
        state.save(self.checkpoint)

    def train_batches(self) -> Iterator[Labelled]:
        """(images (B, 3, S, S) or, where they are constant, features (B, F); labels) of the rest of the epoch."""
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
        """One step of every head and, when finetuning, of the backbone."""
        if self.config.finetune:
            # Drop path draws as a function of (seed, epoch, step), so a resumed run repeats its draws.
            stream = sample_generator(self.config.seed, self.state.epoch, self.state.step, Purpose.DROPOUT)
            torch.manual_seed(int(stream.integers(2**32)))
            features = self.backbone.train()(inputs)[1].float()
        else:
            features = inputs if "train" in self.tables else self.features(inputs)
        losses = self.heads.losses(features, labels)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()
        self.optimizer.step()
        self.state.loss_sums += losses.detach()

    def accuracy(self, part: str) -> Tensor:
        """(k, 2) top-1 and top-5 of every head, percent, on "val" or "held_out"."""
        if part in self.tables:
            return self.heads.accuracy(*self.tables[part])
        with stop_request() as stop:

            def on_batch(_done: int) -> None:
                if stop:
                    self.state.save(self.checkpoint)  # at the end of an epoch's steps: only their scores are missing
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
        self.run.append_metrics(row)

    def choose_learning_rate(self) -> tuple[int, list[float] | None]:
        """(index of the rate that is the result, the held-out top-1 of each); (0, None) of a single rate.

        Held-out images of train choose, never val: the best of several scores on val is too high a score on val.
        """
        if "held_out" not in self.batches:
            return 0, None
        top1 = self.accuracy("held_out")[:, 0]
        return best(top1), top1.tolist()

    def scores(self) -> dict[str, Any]:
        """The dict of result.json; percent."""
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


def open_batches(config: LinearConfig, splits: Splits, normalisation: Normalisation) -> dict[str, ImageBatches]:
    """Batches of "train", "val" and, if there is such a slice, "held_out"."""
    parts = {"train": splits.train, "val": splits.val, "held_out": splits.held_out}
    train = parts.pop("train") if config.mode == "augmented" else None
    batches = {name: central_crops(images, config, normalisation, splits) for name, images in parts.items() if images}
    if train is not None:
        crops = train_transform(config.image_size, config.crop_scale, config.flip, config.interpolation)
        source = splits.source(train)
        dataset = LabelledDataset(train, crops, config.seed, normalisation=normalisation, source=source)
        batches["train"] = ImageBatches(dataset, config.batch_size, config.seed)
    return batches


def set_rates(optimizer: torch.optim.Optimizer, epoch: int, epochs: int) -> None:
    """A cosine from each group's own learning rate to 0, stepped once an epoch."""
    factor = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def classify(config: LinearConfig, parent: Parent, run: Run, device: torch.device, _world: World) -> dict[str, Any]:
    """Train and score; the dict of result.json."""
    training = LinearTraining(config, parent, run, device)
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
