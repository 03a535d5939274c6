"""python worker.py CHANGES ARGUMENTS: `python -m pretrain ARGUMENTS`, with changes that a test needs.

double     everything in float64, so that two ways of computing the same can be distinguished from two different things
fail=R:S   process R fails at step S
hold=S     step S is never done, so that a kill is met between S - 1 and it
large      no image is kept in memory, so that an unreadable one is met when its turn comes
mixed      process 0 alone has a processor that computes bfloat16; each prints the precision that it takes
"""

import os
import sys
import time

import torch

import data.loader
import pretrain.train
from data.loader import PretrainLoader
from pretrain import training
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


def hold(step: int) -> None:
    training_step = pretrain.train.training_step

    def wait_at_step(training, batch, lr):
        while training.state.step == step:
            time.sleep(1)
        return training_step(training, batch, lr)

    pretrain.train.training_step = wait_at_step


def large() -> None:
    open_store = data.loader.open_store
    data.loader.open_store = lambda *arguments: open_store(*arguments[:-1], 0)


def mixed() -> None:
    training.computes_bfloat16 = lambda device: os.environ["RANK"] == "0"
    resume = training.Training.resume

    def resume_aloud(self):
        resume(self)
        print(f"precision {self.state.precision}", file=sys.stderr)

    training.Training.resume = resume_aloud


if __name__ == "__main__":
    change, sys.argv = sys.argv[1], ["pretrain", *sys.argv[2:]]
    if change == "double":
        double()
    elif change == "large":
        large()
    elif change == "mixed":
        mixed()
    elif change.startswith("fail="):
        rank, step = change.removeprefix("fail=").split(":")
        fail(rank, int(step))
    elif change.startswith("hold="):
        hold(int(change.removeprefix("hold=")))
    run_command(main)
