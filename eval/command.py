"""The command line that every evaluation shares."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import torch

from eval.parent import Parent, open_parent
from runtime import config as configs
from runtime.config import split_machine
from runtime.device import prepare
from runtime.rundir import Identity, Run, open_run

Work = Callable[[Any, Parent, Run, torch.device], dict[str, Any]]


def evaluate(
    argv: Sequence[str],
    stage: str,
    schema: type[Any],
    identity: Callable[[Any, str], Identity],
    work: Work,
) -> None:
    """`python -m eval.<stage> RUN --config FILE key=value`: make (or go on with) the run and write its scores.

    `schema` is the stage's config class, which has a `machine`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m eval.{stage}")
    parser.add_argument("run", help="directory of a finished pretraining run, as runs/pretrain/<run>")
    parser.add_argument("--config", required=True, help=f"a YAML file, as eval/configs/{stage}.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, as seed=1")
    arguments = parser.parse_intermixed_args(argv)
    config = configs.load(schema, arguments.config, arguments.overrides)
    parent = open_parent(arguments.run)
    name = identity(config, parent.hash)
    run = Run.at(config.machine.runs, name)
    if run.result() is not None:
        print(f"{run.path} is done")
        return
    device = prepare(config.machine)
    with open_run(config.machine.runs, name, split_machine(config)[1]) as run:
        print(f"{run.path} on {device}", flush=True)
        scores = work(config, parent, run, device)
        run.write_result(scores)
        print(f"{run.path} is done", flush=True)
