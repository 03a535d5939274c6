"""Run what is not done, here, and wait for it. On a machine with GPUs each run gets one of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sweeps import local
from sweeps.display import Display
from sweeps.gpus import choose_gpus
from sweeps.graph import Graph
from sweeps.verbs.request import Request, add_workers, find_run

HELP = "run what is not done, here"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_workers(parser)
    parser.add_argument("--only", metavar="HASH,...", help="these runs alone, by their hashes")


def main(request: Request) -> int:
    graph = request.graph if request.arguments.only is None else only(request.graph, request.arguments.only.split(","))
    gpus = choose_gpus(request.arguments.gpus)
    workers = request.arguments.workers or len(gpus) or local.default_workers()
    return local.run(graph, workers, Display(), request.machine, gpus)


def only(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph of these runs, and of the pretrainings that they need."""
    chosen = {find_run(graph, name) for name in names}
    needed = chosen | {node.parent for node in chosen if node.parent is not None}
    return Graph(graph.study, graph.points, [node for node in graph.nodes if node in needed])
