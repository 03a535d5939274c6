"""Linear classification on frozen features, or with the backbone trained too (`finetune: true`, eval/finetune.py).

python -m eval.linear runs/pretrain/<run> --config eval/configs/linear_scenes.yaml key=value

Every learning rate of the config is trained in one backbone pass; a held-out slice of train chooses among them.
The score is the last epoch's, on val; the best figure over epochs and rates on val stands beside it, labelled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.command import evaluate
from eval.features import Batch, FrozenFeatures, shuffled
from eval.finetune import Finetuning
from eval.linear_config import STAGE, LinearConfig, identity
from eval.linear_heads import LinearHeads
from eval.linear_training import LinearState, LinearTraining
from eval.parent import Parent, load_parent_backbone
from runtime.errors import run_command
from runtime.progress import Progress
from runtime.rundir import Run
from runtime.stopping import stop_request


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
