"""Run a stage in its run directory, which process 0 of all its processes holds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from runtime import provenance
from runtime.config import split_machine
from runtime.device import choose_device
from runtime.distributed import broadcast, join, report_failures
from runtime.errors import BusyError
from runtime.loggers import LoggedRun, Loggers, require_loggers
from runtime.rundir import Identity, Run, open_run, record_failure
from runtime.world import World

Work = Callable[[Run, torch.device, World], dict[str, Any]]


def run_stage(config: Any, identity: Identity, work: Work, world: World, extra: dict[str, Any] | None = None) -> None:
    """Start or resume the run, unless it is done, and write the scores that `work` returns.

    Every process of `world` calls this and `work`; process 0 alone holds the run directory and writes in it.
    `extra` goes into run.yaml beside the machine's settings.
    """
    require_loggers(config.machine.loggers)
    device = choose_device(config.machine, world)
    run = Run.at(config.machine.runs, identity)
    with join(world, device):
        if not _is_done(run):
            # From here on `run` is the object whose progress the heartbeat's thread reads.
            with _hold(config, identity, run, world, extra or {}) as run:
                if not _is_done(run):  # by another process, before this one held it
                    _score(config, identity, run, work, device, world)
        _say(world, f"{run.path} is done")


def _is_done(run: Run) -> bool:
    """Return for all processes whether process 0 finds a result."""
    return broadcast(run.result() is not None)


def _score(config: Any, identity: Identity, run: Run, work: Work, device: torch.device, world: World) -> None:
    processes = f", {world.size} processes" if world.size > 1 else ""
    _say(world, f"{run.path} on {device}{processes}")
    if world.is_main and (warning := provenance.code().warning):
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    with _logged(config, identity, run, world):
        scores = work(run, device, world)
        if world.is_main:
            run.write_result(scores)
            run.loggers.log_scores(scores)


@contextmanager
def _hold(config: Any, identity: Identity, run: Run, world: World, extra: dict[str, Any]) -> Iterator[Run]:
    machine = split_machine(config)[1] | extra
    busy = None
    with ExitStack() as stack:
        if world.is_main:
            try:
                run = stack.enter_context(open_run(config.machine.runs, identity, machine))
            except BusyError as error:
                busy = error
        on_lost = (lambda error: record_failure(run, error)) if world.is_main and busy is None else None
        stack.enter_context(report_failures(on_lost))
        # Until process 0 has made the directory and holds it. If it is busy, all end with its exit code: in a job each
        # has a supervisor, and all of these have to wait and try again.
        if (reason := broadcast(busy)) is not None:
            raise reason
        yield run


@contextmanager
def _logged(config: Any, identity: Identity, run: Run, world: World) -> Iterator[None]:
    """Give process 0's run its loggers, and close them after the block."""
    if world.is_main:
        logged = LoggedRun(run.path, identity, config.machine.group)
        run.loggers = Loggers(config.machine.loggers, logged)
    done = False
    try:
        yield
        done = True
    finally:
        run.loggers.close(done)


def _say(world: World, text: str) -> None:
    if world.is_main:
        print(text, flush=True)
