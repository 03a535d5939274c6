"""python worker.py CHANGES ARGUMENTS: `python -m pretrain ARGUMENTS`, with changes that a test needs.

double     everything in float64, so that two ways of computing the same can be distinguished from two different things
fail=R:S   process R fails at step S
"""

import os
import sys

import torch

import pretrain.train
from data.loader import PretrainLoader
from pretrain.__main__ import main
from runtime.errors import run_command


def double() -> None:
    torch.set_default_dtype(torch.float64)
    finish = PretrainLoader.finish

    def finish_in_double(self, raw):
        batch = finish(self, raw)
        batch.images = [view.double() for view in batch.images]
        batch.locations = [grid.double() for grid in batch.locations]
        return batch

    PretrainLoader.finish = finish_in_double


def fail(rank: str, step: int) -> None:
    training_step = pretrain.train.training_step

    def fail_at_step(training, batch, lr):
        if os.environ["RANK"] == rank and training.state.step == step:
            raise ValueError("this process is broken")
        return training_step(training, batch, lr)

    pretrain.train.training_step = fail_at_step


if __name__ == "__main__":
    change, sys.argv = sys.argv[1], ["pretrain", *sys.argv[2:]]
    if change == "double":
        double()
    elif change.startswith("fail="):
        rank, step = change.removeprefix("fail=").split(":")
        fail(rank, int(step))
    run_command(main)
