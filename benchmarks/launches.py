"""Count what one training step asks of a GPU, without a GPU: kernels, waits of the host, collectives, bytes.

    python -m benchmarks.launches          # the table of benchmarks/launches.md, for this checkout; needs g++
    python -m benchmarks.launches resnet50_100ep:64x8 train.precision=float16      # RECIPE:BATCHxPROCESSES
    python -m benchmarks.launches colour:256 colour-compiled:256     # mirror, colour, normalise two views of 224 pixels
    python -m benchmarks.launches --graphs resnet50_100ep:64x8      # what machine.compile compiles

BATCH is of one process. The step is the project's own, without DDP's all-reduce of the gradients, which reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from benchmarks.pretend_cuda import Asked, pretend, put_on_cuda

# isort: split
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import pretrain.step
import vicregl.batch
from benchmarks.steps import make_batch, make_training
from data import batch_colour
from data.config import ViewsConfig
from data.views import ViewMaker, sample_generator
from pretrain.config import PretrainConfig
from pretrain.step import training_step
from pretrain.training import Training, prepare_model
from runtime import config as configs
from runtime.distributed import largest
from runtime.errors import run_command
from runtime.world import World
from vicregl.model import VICRegLModel

COLOUR = "colour:256", "colour-compiled:256"
CASES = ("resnet50_100ep:256x1", "resnet50_100ep:64x8", "convnext_small:48x8", *COLOUR)
PHASES = ("network", "criterion", "backward", "optimizer", "rest")


def count(recipe: str, batch: int, processes: int, overrides: Sequence[str] = ()) -> Asked:
    """Count one step of a recipe with `batch` images a process, after a first one that makes the optimiser's state."""
    fixed = [f"train.batch_size={batch * processes}", *overrides]
    config = configs.load(PretrainConfig, f"pretrain/configs/{recipe}.yaml", fixed)
    device = torch.device("cuda", 0)
    with torch.device("meta"):
        model = VICRegLModel(config.model, config.loss.global_weight)
    for side in config.views.sides():
        model.backbone.grid_size(side)  # remembered: it could not be computed within `pretend`
    with group_of(processes), pretend() as asked:
        put_on_cuda(model, config.train.channels_last)
        training = make_training(config, model, device, World(size=processes))
        for _ in range(2):
            views = make_batch(config, model, batch, device)
            asked.clear()
            with phases(asked, training), asked.during("rest"):
                training_step(training, views, 0.1)
                largest(0)  # as after every step: does any process ask for a stop?
    return asked


def count_graphs(recipe: str, processes: int, overrides: Sequence[str] = ()) -> list[int]:
    """Return the number of operations in each graph that `machine.compile` makes of a network's forward pass."""
    fixed = ["machine.compile=true", *overrides]
    config = configs.load(PretrainConfig, f"pretrain/configs/{recipe}.yaml", fixed)
    operations: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> torch.fx.GraphModule:
        operations.append(sum(node.op.startswith("call_") for node in graph.graph.nodes))
        return graph

    compile_module = nn.Module.compile
    with (
        group_of(processes),
        torch.device("meta"),
        mock.patch.object(nn.Module, "compile", lambda module: compile_module(module, backend=backend)),
    ):
        model = VICRegLModel(config.model, config.loss.global_weight)
        model = prepare_model(model, config, torch.device("meta"), World(size=processes))
        model([torch.empty(2, 3, side, side) for side in config.views.sides()])
    return operations


def count_colour(images: int, compiled: bool) -> Asked:
    """Count what `views.execution=device` adds to a step of two views, of random choices."""
    config = ViewsConfig(execution="device")
    maker = ViewMaker(config, lambda side: (1, 1))
    drawn = zip(*(maker.draw(375, 500, sample_generator(0, 0, number)) for number in range(images)), strict=True)
    plans = [batch_colour.plan_batch(view) for view in drawn]
    with pretend() as asked, ExitStack() as stack:
        batch_colour.device_constants(tuple(config.mean), tuple(config.std), torch.device("cuda", 0))  # made once
        if compiled:
            stack.enter_context(mock.patch.object(batch_colour, "compiled_version", lambda work: as_one(asked, work)))
        there = [plan.map(lambda t: torch.empty(t.shape, dtype=t.dtype, device="cuda:0")) for plan in plans]
        asked.clear()
        for plan, side in zip(there, config.sides(), strict=True):
            levels = torch.empty(images, side, side, 3, dtype=torch.uint8, device="cuda:0")
            asked.phase = "rest"
            batch_colour.mirror_and_colour(levels, plan, config, compiled)
            asked.phase = ""
    batch_colour.device_constants.cache_clear()  # they are of no use outside of `pretend`
    asked.forget("")
    return asked


def as_one(asked: Asked, work: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Count a compiled operation as kernels that read their arguments and write the result once.

    One kernel; for the jitter four, with the mean of each image. tests/data/test_batch_colour.py holds that number.
    """
    kernels = 4 if work is batch_colour.jitter_rows else 1

    def call(*arguments: Any) -> torch.Tensor:
        with asked.during("within"):
            result = work(*arguments)
        asked.forget("within")
        read = [argument for argument in arguments if isinstance(argument, torch.Tensor)]
        asked.note(kernels, sum(t.numel() * t.element_size() for t in [*read, *read[: kernels // 2], result]))
        return result

    return call


@contextmanager
def group_of(processes: int) -> Iterator[None]:
    """Join a process group whose other processes do not exist: collectives return at once."""
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def phases(asked: Asked, training: Training) -> Iterator[None]:
    """Name the parts of a step, by the functions that it calls."""

    def within(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with asked.during(phase):
                return function(*args, **kwargs)

        return call

    parts = {
        "network": (pretrain.step, "forward"),
        "criterion": (training.criterion, "forward"),
        "backward": (torch.Tensor, "backward"),
        "optimizer": (training.state.optimizer, "step"),
    }
    with ExitStack() as stack:
        for phase, (owner, name) in parts.items():
            stack.enter_context(mock.patch.object(owner, name, within(phase, getattr(owner, name))))
        # Fake tensors cannot be compared: the sizes are taken to be equal.
        stack.enter_context(mock.patch.object(vicregl.batch, "int", lambda value: _size(value), create=True))
        yield


def _size(value: torch.Tensor) -> int:
    value.item()
    return 0


def row(case: str, asked: Asked) -> str:
    """Return a row of the table: launches by phase, sums of everything, the criterion's share of the modelled time."""
    launches = [f"{asked.launches[phase]:,}" for phase in PHASES]
    waits = sum(asked.waits.values())
    sent, memory = sum(asked.sent.values()) / 1e6, sum(asked.memory.values()) / 1e9
    total = f"{asked.launches.total():,}"
    cells = [case, total, *launches, str(waits), str(asked.collectives.total()), f"{sent:,.1f}", f"{memory:,.1f}"]
    modelled = sum(asked.seconds.values())
    cells += [f"{1e3 * modelled:.1f}", f"{asked.seconds['criterion'] / modelled:.1%}".replace("%", " %")]
    return f"| {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description="Count a step's kernels.")
    parser.add_argument("--graphs", action="store_true", help="list what machine.compile compiles instead")
    parser.add_argument("cases", nargs="*", help=f"RECIPE:BATCHxPROCESSES and key=value; default {' '.join(CASES)}")
    options = parser.parse_args(argv)
    overrides = [word for word in options.cases if "=" in word]
    cases = [word for word in options.cases if "=" not in word] or CASES
    if options.graphs:
        for case in cases:
            graphs = count_graphs(case.partition(":")[0], int(case.partition("x")[2] or 1), overrides)
            print(f"{case}: {len(graphs)} graphs with {', '.join(map(str, graphs))} operations")
        return
    heads = ["step", "launches", *PHASES, "waits", "collectives", "MB sent", "GB read and written"]
    heads += ["modelled ms", "criterion's share"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for case in cases:
        recipe, _, size = case.partition(":")
        batch, _, processes = size.partition("x")
        if recipe.startswith("colour"):
            asked = count_colour(int(batch), recipe == "colour-compiled")
        else:
            asked = count(recipe, int(batch), int(processes or 1), overrides)
        print(row(case, asked), flush=True)
        for (phase, operation), number in asked.waits.items():
            print(f"    {number} waits: {operation} in {phase}")


if __name__ == "__main__":
    run_command(main)
