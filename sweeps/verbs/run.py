"""Run what is not done, here, and wait for it."""

from __future__ import annotations

import argparse

from sweeps import local
from sweeps.display import Display
from sweeps.verbs.request import Request, add_workers

HELP = "run what is not done, here"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workers(parser, local.default_workers())


def main(request: Request) -> int:
    return local.run(request.graph, request.arguments.workers, Display(), request.machine)
