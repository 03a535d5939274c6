"""The config of a pretraining run, and the name that it gives the run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from data.config import WORKER_KINDS, DataConfig, ViewsConfig
from runtime.config import Config, Duration, MachineConfig, added_later, require, split_machine
from runtime.errors import UserError
from runtime.rundir import Identity
from vicregl.config import CriterionConfig, ModelConfig

DurationText = Annotated[str, Field(description='a number and its unit, as "1000 steps" or "100 epochs"')]
STAGE = "pretrain"
PRECISIONS = ("float32", "bfloat16", "float16")
FORMAT = 1  # raise it when the same config comes to train something else


class OptimizerConfig(Config):
    """LARS (the paper's ResNet recipe) or AdamW (its ConvNeXt recipe), warmed up and annealed by a cosine."""

    name: str = "lars"  # lars | adamw
    base_lr: float = 0.3  # the peak learning rate is base_lr * batch_size / 256
    end_lr_ratio: float = 0.001  # of the peak, at the last step
    warmup: DurationText = "10 epochs"
    weight_decay: float = 1e-6  # not on biases and norms
    momentum: float = 0.9  # of LARS
    trust_coefficient: float = 0.001  # of LARS: eta in arXiv 1708.03888
    betas: list[float] = [0.9, 0.999]  # of AdamW

    def check(self) -> None:
        require(self.name in ("lars", "adamw"), "optimizer.name", self.name, "lars or adamw")
        require(self.base_lr > 0, "optimizer.base_lr", self.base_lr, "a number above 0")
        require(0 <= self.end_lr_ratio <= 1, "optimizer.end_lr_ratio", self.end_lr_ratio, "0 to 1")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "0 or more")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 to below 1")
        require(self.trust_coefficient > 0, "optimizer.trust_coefficient", self.trust_coefficient, "above 0")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "optimizer.betas", self.betas, "[b1, b2]")
        Duration.parse(self.warmup, "optimizer.warmup")


class TrainConfig(Config):
    batch_size: int = 512  # images a step, of all processes together
    duration: DurationText = "100 epochs"  # "0 steps" saves the random initialisation: the control of a study
    precision: str = "float32"  # float32 | bfloat16 | float16 (autocast; the criterion stays in float32)
    channels_last: bool = True
    clip_norm: float = 0.0  # of all gradients; 0: no clipping
    # BatchNorm over the batch of all processes. Without it, what it learns depends on the number of processes.
    sync_batch_norm: bool = added_later(True)
    # Parts that a process's share of the batch goes through the network in; the criterion still sees it whole.
    accumulate: int = added_later(1)

    def check(self) -> None:
        require(self.batch_size >= 2, "train.batch_size", self.batch_size, "2 or more: statistics need two samples")
        require(self.precision in PRECISIONS, "train.precision", self.precision, ", ".join(PRECISIONS))
        parts = self.accumulate
        whole = parts >= 1 and self.batch_size % parts == 0
        require(whole, "train.accumulate", parts, f"a divisor of train.batch_size = {self.batch_size}")
        require(self.clip_norm >= 0, "train.clip_norm", self.clip_norm, "0 (off) or more")
        Duration.parse(self.duration, "train.duration")

    def share(self, processes: int) -> int:
        """Images of each process; UserError where they cannot be divided equally."""
        parts = processes * self.accumulate
        allowed = f"a multiple of {parts}: {processes} processes with train.accumulate = {self.accumulate}"
        require(self.batch_size % parts == 0, "train.batch_size", self.batch_size, allowed)
        return self.batch_size // processes


class ProbeConfig(Config):
    """A linear classifier on detached pooled features, with its own optimiser: it never touches the network."""

    enabled: bool = True  # needs labels; left out where a dataset has none
    learning_rate: float = 0.1
    momentum: float = 0.9

    def check(self) -> None:
        require(self.learning_rate > 0, "probe.learning_rate", self.learning_rate, "a number above 0")
        require(0 <= self.momentum < 1, "probe.momentum", self.momentum, "0 to below 1")


class PretrainMachineConfig(MachineConfig):
    log_steps: int = 50  # between two rows of metrics.jsonl
    save_minutes: float = 2.0  # between two checkpoints
    keep_last: int = 0  # checkpoints kept beside checkpoint.pt, as checkpoints/step-00001200.pt
    keep_every_epochs: int = 0  # keep checkpoints/epoch-0010.pt and so on; 0: none
    max_minutes: float = 0.0  # then save and end with exit code 75: repeat the command; 0: no limit
    compile: bool = False  # torch.compile: minutes at the start, quicker steps on a GPU
    worker_kind: str = "processes"  # processes | threads: what `workers` are; data/workers.py tells them apart

    def check(self) -> None:
        super().check()
        require(self.log_steps >= 1, "machine.log_steps", self.log_steps, "1 or more")
        require(self.save_minutes >= 0, "machine.save_minutes", self.save_minutes, "0 (every step) or more")
        require(self.max_minutes >= 0, "machine.max_minutes", self.max_minutes, "0 (no limit) or more")
        for key in ("keep_last", "keep_every_epochs"):
            require(getattr(self, key) >= 0, f"machine.{key}", getattr(self, key), "0 (none) or more")
        require(self.worker_kind in WORKER_KINDS, "machine.worker_kind", self.worker_kind, ", ".join(WORKER_KINDS))


class PretrainConfig(Config):
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    loss: CriterionConfig = CriterionConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    diagnostics_images: int = 1024  # the final diagnostics are over this many images
    seed: int = 0
    machine: PretrainMachineConfig = PretrainMachineConfig()

    def check(self) -> None:
        require(self.diagnostics_images >= 2, "diagnostics_images", self.diagnostics_images, "2 or more")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        weights, stages = self.loss.local_stage_weights, len(self.model.local_stages)
        fits = len(weights) in (0, stages)
        require(fits, "loss.local_stage_weights", weights, f"one for each of the {stages} model.local_stages, or none")


def durations(config: PretrainConfig, steps_per_epoch: int) -> tuple[int, int]:
    """(steps in all, steps of the warm-up); UserError where the warm-up is not shorter."""
    total = Duration.parse(config.train.duration).steps(steps_per_epoch)
    warmup = Duration.parse(config.optimizer.warmup).steps(steps_per_epoch)
    if total and warmup >= total:
        raise UserError(
            f"config: optimizer.warmup = {config.optimizer.warmup!r} is {warmup} steps, and the whole training "
            f"(train.duration = {config.train.duration!r}) has {total}; make the warm-up shorter"
        )
    return total, warmup


def identity(config: PretrainConfig) -> Identity:
    values: dict[str, Any] = split_machine(config)[0]
    if config.train.duration.split()[0].strip("0.") == "":
        slug = f"{config.model.backbone.name}-untrained-seed{config.seed}"
    else:
        slug = f"{config.model.backbone.name}-{config.loss.local}-alpha{config.loss.alpha:g}-seed{config.seed}"
    return Identity(STAGE, slug, FORMAT, values)
