"""Run what is not done, here, and wait for it. On a machine with GPUs each run gets one of them."""

from __future__ import annotations

import argparse

from sweeps import local
from sweeps.display import Display
from sweeps.gpus import choose_gpus
from sweeps.verbs.request import Request, add_workers

HELP = "run what is not done, here"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workers(parser)


def main(request: Request) -> int:
    gpus = choose_gpus(request.arguments.gpus)
    workers = request.arguments.workers or len(gpus) or local.default_workers()
    return local.run(request.graph, workers, Display(), request.machine, gpus)
