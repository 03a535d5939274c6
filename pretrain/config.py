"""The config of a pretraining run, and its identity."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from data.config import DataConfig, ViewsConfig, WorkerKind
from pretrain.criterion import LossConfig, check_criterion
from runtime.config import (
    Config,
    Duration,
    DurationText,
    Fraction,
    MachineConfig,
    Moment,
    Momentum,
    PositiveInt,
    added_later,
    require,
    split_machine,
)
from runtime.errors import UserError
from runtime.imports import Imports
from runtime.loggers import LoggerName
from runtime.rundir import Identity
from vicregl.config import ModelConfig

STAGE = "pretrain"
FORMAT = 1  # raise it when equal configs come to give other results


class OptimizerConfig(Config):
    """LARS (the paper's ResNet recipe) or AdamW (its ConvNeXt recipe), with warm-up and cosine decay."""

    name: Literal["lars", "adamw"] = "lars"
    base_lr: PositiveFloat = 0.3  # the peak learning rate is base_lr * batch_size / 256
    end_lr_ratio: Fraction = 0.001  # of the peak, at the last step
    warmup: DurationText = "10 epochs"
    weight_decay: NonNegativeFloat = 1e-6  # not on biases and norms
    momentum: Momentum = 0.9  # of LARS
    trust_coefficient: PositiveFloat = 0.001  # of LARS: eta of arXiv 1708.03888
    betas: tuple[Momentum, Momentum] = (0.9, 0.999)  # of AdamW


class TrainConfig(Config):
    # Images per step, over all processes.
    batch_size: Annotated[int, Field(ge=2, description="statistics need two samples")] = 512
    duration: DurationText = "100 epochs"  # "0 steps" saves the random initialisation, as a control
    # Of the network, by autocast; the criterion uses float32. auto: bfloat16 where the first attempt's processor
    # computes it, else float32; result.json names it.
    precision: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    channels_last: bool = True
    clip_norm: NonNegativeFloat = 0.0  # norm of all gradients together; 0: no clipping
    # BatchNorm over the batch of all processes; without it, results depend on the number of processes.
    sync_batch_norm: bool = added_later(True)
    # Parts in which the network processes its share of the batch; the criterion still gets the whole batch.
    accumulate: int = added_later(1, ge=1)

    def check(self) -> None:
        whole = self.batch_size % self.accumulate == 0
        require(whole, "train.accumulate", self.accumulate, f"a divisor of train.batch_size = {self.batch_size}")

    def share(self, processes: int) -> int:
        """Return the images per process; UserError where they cannot be divided equally."""
        parts = processes * self.accumulate
        allowed = f"a multiple of {parts}: {processes} processes with train.accumulate = {self.accumulate}"
        require(self.batch_size % parts == 0, "train.batch_size", self.batch_size, allowed)
        return self.batch_size // processes


class ProbeConfig(Config):
    """A linear classifier on detached pooled features, with its own optimiser: it does not affect the network."""

    enabled: bool = True  # needs labels; ignored for a dataset without them
    learning_rate: PositiveFloat = 0.1
    momentum: Momentum = 0.9


class PretrainMachineConfig(MachineConfig):
    loggers: list[LoggerName] = ["tensorboard"]
    log_steps: PositiveInt = 50  # between two rows of metrics.jsonl
    save_minutes: NonNegativeFloat = 2.0  # between two checkpoints; 0: every step
    keep_last: NonNegativeInt = 0  # earlier checkpoints to keep, as checkpoints/step-00001200.pt
    keep_every_epochs: NonNegativeInt = 0  # epochs between kept checkpoints/epoch-0010.pt and so on; 0: none
    keep_at: list[Moment] = []  # further checkpoints to keep, as [100 steps, 2 epochs]
    max_minutes: NonNegativeFloat = 0.0  # then save and exit with code 75: repeat the command; 0: no limit
    compile: bool = False  # torch.compile: network, and colour on a device; minutes at the start, faster steps on a GPU
    worker_kind: WorkerKind = "processes"  # of `workers`; data/workers.py compares both


class PretrainConfig(Config):
    imports: Imports = added_later({})  # own packages; first, because what they register may be named below
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    probe: ProbeConfig = ProbeConfig()
    diagnostics_images: Annotated[int, Field(ge=2)] = 1024  # images for the final diagnostics
    seed: NonNegativeInt = 0
    machine: PretrainMachineConfig = PretrainMachineConfig()

    def check(self) -> None:
        weights, stages = self.loss.local_stage_weights, len(self.model.local_stages)
        fits = len(weights) in (0, stages)
        require(fits, "loss.local_stage_weights", weights, f"one for each of the {stages} model.local_stages, or none")
        known = bool(self.imports) or not self.loss.is_own  # its version is part of the identity
        require(known, "imports", self.imports, f"the package that registers loss.name = {self.loss.name!r}")
        check_criterion(self.loss, self.model)


def durations(config: PretrainConfig, steps_per_epoch: int) -> tuple[int, int]:
    """Return (total steps, warm-up steps); UserError where the warm-up is not shorter."""
    total = Duration.parse(config.train.duration).steps(steps_per_epoch)
    warmup = Duration.parse(config.optimizer.warmup).steps(steps_per_epoch)
    if total and warmup >= total:
        raise UserError(
            f"config: optimizer.warmup = {config.optimizer.warmup!r} is {warmup} steps, and the whole training "
            f"(train.duration = {config.train.duration!r}) has {total}; make the warm-up shorter"
        )
    return total, warmup


def identity(config: PretrainConfig) -> Identity:
    """Name a run by its config, with the options that the criterion does not use at their defaults: trained once."""
    if (used := config.loss.without_unused()) != config.loss:
        config = config.replace(loss=used)
    values: dict[str, Any] = split_machine(config)[0]
    if config.train.duration.split()[0].strip("0.") == "":
        slug = f"{config.model.backbone.name}-untrained-seed{config.seed}"
    else:
        criterion = config.loss.name if config.loss.is_own else config.loss.local
        slug = f"{config.model.backbone.name}-{criterion}-alpha{config.loss.alpha:g}-seed{config.seed}"
    return Identity(STAGE, slug, FORMAT, values)
