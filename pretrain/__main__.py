"""Pretrain one network: python -m pretrain --config pretrain/configs/quickstart.yaml loss.alpha=0.9 seed=1

Makes (or goes on with) runs/pretrain/<name>/; a run that is done ends at once.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from pretrain.config import PretrainConfig, identity
from runtime import config as configs
from runtime.config import split_machine
from runtime.errors import UserError, run_command
from runtime.rundir import Run, open_run


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m pretrain", description="Pretrain one network.")
    parser.add_argument("--config", required=True, help="a YAML file, as pretrain/configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", help="key=value, as loss.alpha=0.9")
    arguments = parser.parse_args(argv)
    config = configs.load(PretrainConfig, arguments.config, arguments.overrides)
    refuse_several_processes()
    name = identity(config)
    run = Run.at(config.machine.runs, name)
    if run.result() is not None:
        print(f"{run.path} is done")
        return

    from pretrain.train import Training, train  # here, so that a wrong config is told at once
    from runtime.device import prepare

    device = prepare(config.machine)
    with open_run(config.machine.runs, name, split_machine(config)[1]) as run:
        print(f"{run.path} on {device}", flush=True)
        run.write_result(train(Training.build(config, run, device)))
        print(f"{run.path} is done")


def refuse_several_processes() -> None:
    """Started by torchrun or srun, every process would train the same run by itself."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise UserError(
            f"pretraining runs in one process as yet, and WORLD_SIZE is {processes}; start it by `python -m pretrain`"
        )


if __name__ == "__main__":
    run_command(main)
