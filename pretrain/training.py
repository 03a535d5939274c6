"""Build everything that a training needs from its config, and resume its state."""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from data.catalog import Dataset, open_dataset
from data.config import ViewsConfig
from data.loader import PretrainLoader
from data.views import GridSize
from pretrain.checkpoint import TrainingState, drop_old_checkpoints, keep_checkpoint, seed_process
from pretrain.config import PretrainConfig, durations
from pretrain.criterion import make_criterion
from pretrain.diagnostics import OnlineProbe
from pretrain.optimizers import make_optimizer
from runtime.config import Duration, kept_checkpoint
from runtime.device import choose_convolutions, choose_device, computes_bfloat16, memory_bytes
from runtime.distributed import broadcast
from runtime.errors import UserError
from runtime.progress import describe_bytes
from runtime.rundir import Run
from runtime.world import World, world_from_environment
from vicregl.backbones import Backbone, without_storage
from vicregl.errors import InvalidInputError
from vicregl.model import ModelOutput, VICRegLModel
from vicregl.sync_norm import synchronise


@dataclass
class Training:
    """The objects that the training loop uses."""

    config: PretrainConfig
    run: Run  # written by process 0 alone
    device: torch.device
    world: World
    loader: PretrainLoader
    criterion: nn.Module  # called by the loop: state.criterion, or DDP around it
    state: TrainingState
    network: nn.Module  # called by the loop: state.model, or DDP around it
    total_steps: int
    warmup_steps: int
    launched: float  # monotonic seconds, before it was built: machine.max_minutes count from here
    started: float = field(default_factory=time.monotonic)  # of the steps
    saved: float = field(default_factory=time.monotonic)  # the last checkpoint
    first_step: int = 0  # of this attempt

    @classmethod
    def build(
        cls, config: PretrainConfig, run: Run, device: torch.device, world: World, dataset: Dataset | None = None
    ) -> Training:
        """Build all parts and load the checkpoint, if there is one. `dataset`: as `preflight` returned it."""
        launched = time.monotonic()
        choose_convolutions(device)
        dataset = dataset or open_dataset(config.data)
        torch.manual_seed(config.seed)
        model = VICRegLModel(config.model, config.loss.global_weight)
        if config.train.accumulate > 1:
            refuse_batch_statistics(model)
        loader = make_loader(config, dataset, model.backbone.grid_size, config.machine.workers, device, world)
        total, warmup = durations(config, loader.steps_per_epoch)
        network = wrap_for_processes(model := prepare_model(model, config, device, world), config, device, world)
        probe = make_probe(config, dataset, model, device)
        scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "float16")
        # Of one process for all: their processors may differ.
        precision = broadcast(choose_precision(config.train.precision, device))
        own = prepare_criterion(config, device, world)
        optimizer = make_optimizer(nn.ModuleList([model, own]), config.optimizer)
        state = TrainingState(model, optimizer, probe, scaler, device, world, precision, own, loader.skipped)
        has_gradients = world.size > 1 and any(p.requires_grad for p in own.parameters())
        criterion = DistributedDataParallel(own) if has_gradients else own
        training = cls(config, run, device, world, loader, criterion, state, network, total, warmup, launched)
        training.resume()
        return training

    def resume(self) -> None:
        checkpoint = self.run.path / "checkpoint.pt"
        # An exact resume needs the random numbers of each process. Where there are none, or of another number of
        # processes, each is seeded anew; one process alone starts from config.seed, as `build` left it.
        has_random_state = self.world.size == 1
        if checkpoint.exists():
            has_random_state = self.state.load(checkpoint)
            self.first_step = self.state.step
        if not has_random_state:
            seed_process(self.config.seed, self.state.step, self.world)
        if self.world.is_main:
            if checkpoint.exists():
                print(f"going on at step {self.state.step} of {self.total_steps}", flush=True)
                # The attempt that saved this step may have ended before it had kept it.
                for name in map(kept_checkpoint, self.kept_moments()):
                    if not (self.run.path / name).exists():
                        keep_checkpoint(checkpoint, name)
            # The steps after the last save are repeated, and so are their rows.
            self.run.resume_metrics_after(self.state.step)

    def save(self) -> None:
        """Save the checkpoint; every process calls this at the same step."""
        checkpoint = self.run.path / "checkpoint.pt"
        self.state.save(checkpoint)
        self.saved = time.monotonic()
        if not self.world.is_main:
            return
        if self.config.machine.keep_last:
            keep_checkpoint(checkpoint, kept_checkpoint(f"{self.state.step} steps"))
            drop_old_checkpoints(checkpoint, self.config.machine.keep_last, self.config.machine.keep_at)
        for moment in self.kept_moments():
            keep_checkpoint(checkpoint, kept_checkpoint(moment))

    def kept_moments(self) -> set[str]:
        """Return the names of this step by which its checkpoint is to be kept, as "500 steps" and "2 epochs"."""
        machine, length = self.config.machine, self.loader.steps_per_epoch
        moments = {moment for moment in machine.keep_at if Duration.parse(moment).steps(length) == self.state.step}
        epoch, rest = divmod(self.state.step, length)
        if machine.keep_every_epochs and rest == 0 and epoch % machine.keep_every_epochs == 0:
            moments.add(f"{epoch} epochs")
        return moments


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision of the network: `auto` is bfloat16 where the device computes it, else float32."""
    if name != "auto":
        return name
    return "bfloat16" if computes_bfloat16(device) else "float32"


def preflight(config: PretrainConfig) -> Dataset:
    """Check a new run before its directory is made, and return its dataset, so that it is listed only once.

    UserError for a dataset that is missing or too small for the batch or the warm-up, and for a network that does not
    fit in memory or does not take the views' sizes.
    """
    dataset = open_dataset(config.data)
    durations(config, dataset.steps_per_epoch(len(dataset.images("train")), config.train.batch_size))
    model = without_storage(lambda: VICRegLModel(config.model, config.loss.global_weight))
    refuse_sizes(config.views, model.backbone)
    if world_from_environment().is_main:
        warn_of_misfits(config, model.backbone)
    if config.train.accumulate > 1:
        refuse_batch_statistics(model)
    refuse_too_large(model, config, choose_device(config.machine))
    return dataset


def refuse_sizes(views: ViewsConfig, backbone: Backbone) -> None:
    """Raise UserError for views of a size that the network, made for one size, does not take."""
    for key in ("large_size", "small_size"):
        side = getattr(views, key)
        try:
            if side in views.sides():
                backbone.grid_size(side)
        except InvalidInputError as error:
            raise UserError(
                f"config: views.{key} = {side} is not possible: {error}; choose the size that it takes for all views "
                f"(views.small_count=0), or another network, or one made for it: model.backbone.args.img_size={side}"
            ) from error


def warn_of_misfits(config: PretrainConfig, backbone: Backbone) -> None:
    """Warn of views whose maps do not cover them exactly: their locations are shifted, by up to a cell."""
    loss, views = config.loss, config.views
    if not loss.is_own and (loss.global_weight == 1 or "location" not in loss.kinds):
        return
    for key in ("large_size", "small_size"):
        side = getattr(views, key)
        if side in views.sides() and (misfit := backbone.misfit(side)):
            print(f"warning: locations of views.{key} = {side} are not exact: {misfit}", file=sys.stderr, flush=True)


def refuse_batch_statistics(model: VICRegLModel) -> None:
    """Raise UserError if an output depends on other samples of the batch: parts of it would give other outputs."""
    if (name := model.batch_dependent) is not None:
        kind = type(model.get_submodule(name)).__name__
        raise UserError(
            f"config: train.accumulate needs a network without batch statistics, and {name} is a {kind}; choose "
            "LayerNorm (a ConvNeXt with model.projector_norm=layer), more processes (train.sync_batch_norm), or "
            "train.accumulate=1"
        )


def refuse_too_large(model: nn.Module, config: PretrainConfig, device: torch.device) -> None:
    """Raise UserError for a network whose parameters alone do not fit the device's memory."""
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    copies = 2 + (1 if config.optimizer.name == "lars" else 2)  # weights, gradients, the optimiser's averages
    needs, has = 4 * copies * sum(sizes.values()), memory_bytes(device)
    if needs > has:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"config: the network needs at least {describe_bytes(needs)} (its {sum(sizes.values()):,} parameters, the "
            f"gradients and the state of {config.optimizer.name}), and {device} has {describe_bytes(has)}; the largest "
            f"part is model.{largest}, with {sizes[largest]:,} of them: make that smaller"
        )


def make_loader(
    config: PretrainConfig,
    dataset: Dataset,
    grid_size: GridSize,
    workers: int,
    device: torch.device,
    world: World,
) -> PretrainLoader:
    return PretrainLoader(
        dataset,
        config.views,
        grid_size,
        config.train.batch_size,
        config.seed,
        workers,
        config.machine.worker_kind,
        device,
        share=(world.rank, world.size),
        on_bad_image=config.data.on_bad_image,
        compiled=config.machine.compile,
    )


def make_probe(
    config: PretrainConfig, dataset: Dataset, model: VICRegLModel, device: torch.device
) -> OnlineProbe | None:
    if not config.probe.enabled or dataset.images("train").labels is None:
        return None
    return OnlineProbe(model.backbone.channels, len(dataset.classes), config.probe).to(device)


def prepare_model(model: VICRegLModel, config: PretrainConfig, device: torch.device, world: World) -> VICRegLModel:
    """Apply the config's norms, memory layout and compilation to the model, and move it to the device."""
    if world.size > 1 and config.train.sync_batch_norm:
        model = synchronise(model)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
    if config.machine.compile:
        for module in model.called_modules():
            module.compile()  # in place: a wrapper would rename the tensors of checkpoints
    return model


def prepare_criterion(config: PretrainConfig, device: torch.device, world: World) -> nn.Module:
    """Create the criterion on the device; a criterion of the user's own may have norms and parameters."""
    criterion = make_criterion(config.loss, config.model).to(device)
    return synchronise(criterion) if world.size > 1 and config.train.sync_batch_norm else criterion


def wrap_for_processes(model: VICRegLModel, config: PretrainConfig, device: torch.device, world: World) -> nn.Module:
    """Return the model, or DDP around it for several processes, which averages their gradients.

    The average is correct because the criterion scales its gradients by the number of processes (vicregl/batch.py).
    """
    if world.size == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        find_unused_parameters=bool(unused_parameters(model, config.views.large_size)),
        gradient_as_bucket_view=True,
    )


def unused_parameters(model: VICRegLModel, side: int) -> list[str]:
    """Return parameters that no output depends on (timm's layers after the map): DDP would wait for their gradients."""
    shapes = copy.deepcopy(model).to("meta").eval()
    output: ModelOutput = shapes.forward([torch.empty(2, 3, side, side, device="meta")])
    sum(tensor.sum() for tensor in output.criterion_inputs()).backward()  # type: ignore[union-attr]  # there is one at least
    return [name for name, p in shapes.named_parameters() if p.requires_grad and p.grad is None]
