"""Queue what is not done: on SLURM as arrays, each checkpoint's evaluations behind it; or run it here.

Repeat it at will: what is done, at work or queued is left alone.
"""

from __future__ import annotations

import argparse

from sweeps.slurm.config import load_cluster
from sweeps.verbs.request import Request, add_cluster, add_workers
from sweeps.verbs.retry import submit_here

HELP = "queue what is not done"


def add_options(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_workers(parser)


def main(request: Request) -> int:
    if request.arguments.cluster == "local":
        return submit_here(request)
    cluster = load_cluster(request.arguments.cluster_config)  # what is wrong in it is told before SLURM is asked

    from sweeps.slurm.submit import submit

    submit(request.graph, cluster, request.machine)
    return 0
