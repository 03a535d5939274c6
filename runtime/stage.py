"""How a stage is carried out: one run directory, held by process 0 of however many there are."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from runtime import provenance
from runtime.config import split_machine
from runtime.device import prepare
from runtime.distributed import World, barrier, broadcast, device_of, explained, join
from runtime.errors import UserError
from runtime.rundir import Identity, Run, open_run, record_failure

Work = Callable[[Run, torch.device, World], dict[str, Any]]


def carry_out(config: Any, name: Identity, work: Work, world: World, described: dict[str, Any] | None = None) -> None:
    """Make (or go on with) the run, unless it is done, and write the scores that `work` returns.

    Every process of `world` calls this and `work`; process 0 alone holds the run's folder and writes in it.
    `described` goes into run.yaml beside the machine's settings.
    """
    device = device_of(prepare(config.machine), world)
    run = Run.at(config.machine.runs, name)
    with join(world, device):
        if broadcast(run.result() is not None):
            _say(world, f"{run.path} is done")
            return
        with _held(config, name, run, world, described or {}) as run:  # the one whose progress the heartbeat tells
            processes = f", {world.size} processes" if world.size > 1 else ""
            _say(world, f"{run.path} on {device}{processes}")
            if world.is_main and (warning := provenance.code().warning):
                print(f"warning: {warning}", file=sys.stderr, flush=True)
            scores = work(run, device, world)
            if world.is_main:
                run.write_result(scores)
            _say(world, f"{run.path} is done")


def refuse_several(world: World, stage: str) -> None:
    """For a stage of one process: several would each do the same, or wait for each other."""
    if world.size > 1:
        raise UserError(f"{stage} runs in one process, and {world.size} were started; start one")


@contextmanager
def _held(config: Any, name: Identity, run: Run, world: World, described: dict[str, Any]) -> Iterator[Run]:
    machine = split_machine(config)[1] | described
    with open_run(config.machine.runs, name, machine) if world.is_main else nullcontext(run) as held:
        lost = (lambda error: record_failure(held, error)) if world.is_main else None
        with explained(lost):
            barrier()  # the folder is there, and nobody else works in it
            yield held


def _say(world: World, text: str) -> None:
    if world.is_main:
        print(text, flush=True)
