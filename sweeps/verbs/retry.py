"""Submit failed runs again, and the evaluations that hang on them: all, one class of failure, or one run."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping

from runtime.errors import UserError
from sweeps import detached
from sweeps.failures import KINDS
from sweeps.graph import Node
from sweeps.verbs.request import Request, add_cluster, add_workers, find_run
from sweeps.view import View, look

HELP = "submit failed runs again: all, one class of failure, or one run"


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kind", choices=KINDS, metavar="CLASS", help=f"one of {', '.join(KINDS)}")
    which.add_argument("--run", metavar="RUN", help="one run: its hash, directory or title")
    add_cluster(parser)
    add_workers(parser)


def main(request: Request) -> int:
    views = look(request.graph)
    chosen = [view.node for view in views.values() if view.state == "failed"]
    if request.arguments.run is not None:
        chosen = [_failed(views[find_run(request.graph, request.arguments.run)])]
    elif request.arguments.kind is not None:
        chosen = [node for node in chosen if _kind(views[node]) == request.arguments.kind]
    if not chosen:
        print("nothing to retry: no run has failed so")
        return 0
    return resubmit(request, with_evaluations(views, chosen))


def _failed(view: View) -> Node:
    if view.state != "failed":
        hint = ": its pretraining failed, so retry that" if view.state == "blocked" else ""
        raise UserError(f"{view.node.title} is {view.state}, not failed{hint}")
    return view.node


def _kind(view: View) -> str | None:
    return view.failure.kind if view.failure else None


def with_evaluations(views: Mapping[Node, View], chosen: Collection[Node]) -> list[Node]:
    """The chosen runs and what waits for them, in the graph's order."""
    wanted = set(chosen)
    wanted |= {node for node in views if node.parent in wanted and views[node].state != "done"}
    return [node for node in views if node in wanted]


def resubmit(request: Request, nodes: Collection[Node]) -> int:
    """Queue these runs, and no others."""
    if request.arguments.cluster == "local":
        return submit_here(request, nodes)
    from sweeps.slurm.config import load_cluster
    from sweeps.slurm.submit import submit

    cluster = load_cluster(request.arguments.cluster_config)
    wanted = set(nodes)
    submit(request.graph, cluster, request.machine, lambda view: view.node in wanted)
    return 0


def submit_here(request: Request, nodes: Collection[Node] | None = None) -> int:
    """Run them (None: all that is not done) on this machine, in the background."""
    states = request.graph.states()
    for node in request.graph.nodes if nodes is None else nodes:
        if states[node] != "done":
            node.run.require_writable()
    given = {key: getattr(request.arguments, key) for key in ("workers", "gpus")}
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    if nodes is not None:
        options.append(f"--only={','.join(node.identity.hash for node in nodes)}")
    who = detached.start(request.graph, [*options, *request.machine])
    log = detached.log_of(request.graph)
    if who is None:
        print(f"a sweep is at work on {request.graph.study.name} already: {log}; repeat this when it has ended")
        return 0
    print(f"at work in the background, process {who['pid']}: {log}")
    return 0
