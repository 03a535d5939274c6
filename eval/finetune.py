"""Classification with the backbone trained as well: `finetune: true` of a linear config.

The backbone trains in train mode (its BatchNorm takes the batch's statistics and keeps averaging the running ones, its
drop path drops) and is scored in eval mode. It has a learning rate of its own; momentum, weight decay and cosine are
the head's. One head at a time: several heads would train one backbone together, which is not what each would do alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from data.views import Purpose, sample_generator
from eval.features import Batch, PooledFeatures
from eval.linear_config import LinearConfig
from eval.linear_heads import LinearHeads
from eval.linear_training import LinearState, LinearTraining
from eval.parent import Parent, load_parent_backbone
from runtime.rundir import Run
from runtime.stopping import stop_request


class Finetuning(LinearTraining):
    """A backbone and one head, trained together."""

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
