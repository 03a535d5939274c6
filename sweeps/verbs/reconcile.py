"""Submit what is missing, at any time: what was never submitted, and what ended by no fault of its own.

That is: jobs that SLURM has lost, that were preempted, ran into their limit or had their node fail, without being put
back into the queue. What raised, ran out of memory or was cancelled is left alone: `retry` is for that.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from sweeps.graph import Node
from sweeps.verbs.request import Request, add_cluster, add_workers
from sweeps.verbs.retry import resubmit
from sweeps.view import View, look

HELP = "submit what is missing"
NO_FAULT_OF_ITS_OWN = ("lost", "preempted", "node_failure", "time_limit")


def add_options(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_workers(parser)


def main(request: Request) -> int:
    missing = missing_runs(look(request.graph))
    if not missing:
        print("nothing is missing")
        return 0
    return resubmit(request, missing)


def missing_runs(views: Mapping[Node, View]) -> list[Node]:
    """In the graph's order, so that pretrainings come before their evaluations."""
    missing: list[Node] = []
    for node, view in views.items():
        behind = view.state == "blocked" and node.parent in missing
        if view.state in ("new", "interrupted") or behind or (view.state == "failed" and _may_go_on(view)):
            missing.append(node)
    return missing


def _may_go_on(view: View) -> bool:
    if view.failure is None or view.failure.kind not in NO_FAULT_OF_ITS_OWN:
        return False
    # A run that says itself that its limit is too short would run into it for ever.
    return view.failure.kind != "time_limit" or view.node.run.failure() is None
