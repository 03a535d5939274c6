"""Pretrain one network: python -m pretrain --config pretrain/configs/quickstart.yaml loss.alpha=0.9 seed=1

Starts or resumes runs/pretrain/<name>/; a finished run exits at once. Several processes, with one GPU each:

    torchrun --nproc-per-node=8 -m pretrain --config ...          on one machine
    srun --ntasks-per-node=8 ... python -m pretrain --config ...  in a SLURM job

train.batch_size counts the images of all processes: their number is not part of the run's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from data.catalog import Dataset, open_dataset
from data.record import PRETRAINING, record_data, refuse_other_data
from pretrain.config import PretrainConfig, identity
from runtime import config as configs
from runtime.console import make_parser
from runtime.errors import run_command
from runtime.rundir import Run
from runtime.stage import run_stage
from runtime.world import World, world_from_environment


def main(argv: Sequence[str]) -> None:
    parser = make_parser("pretrain", __doc__)
    parser.add_argument("--config", required=True, help="its YAML file, or its name, as quickstart")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, e.g. loss.alpha=0.9")
    parser.add_argument("--cfg", action="store_true", help="print the run's directory and resolved config, and stop")
    arguments = configs.parse_command(parser, argv)
    config = configs.load(PretrainConfig, arguments.config, arguments.overrides)
    run_identity = identity(config)
    if arguments.cfg:
        print(f"# {Run.at(config.machine.runs, run_identity).path}\n{configs.as_yaml(config)}", end="")
        return
    world = world_from_environment()
    config.train.share(world.size)
    dataset: Dataset | None = None
    place = Run.at(config.machine.runs, run_identity)
    refuse_other_data(place.path, config.data)
    if place.state() == "new":
        from pretrain.training import preflight

        dataset = preflight(config)

    def work(run: Run, device: torch.device, world: World) -> dict[str, Any]:
        # Imported here, because a wrong config should be reported without waiting for these imports.
        from pretrain.train import train
        from pretrain.training import Training

        opened = dataset or open_dataset(config.data)
        if world.is_main:
            record_data(run.path, config.data, opened, PRETRAINING)
        return train(Training.build(config, run, device, world, opened))

    run_stage(config, run_identity, work, world)


if __name__ == "__main__":
    run_command(main)
