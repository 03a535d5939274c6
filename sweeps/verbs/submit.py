"""The verbs that start runs: `run` here and wait, `submit`, `retry` what failed, `reconcile` what was lost."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence

from runtime.errors import UserError
from sweeps import detached, local
from sweeps.display import Display
from sweeps.failures import KINDS
from sweeps.graph import Graph, Node
from sweeps.slurm.config import load_cluster
from sweeps.status import RunStatus, read_status
from sweeps.verbs import Request, add_cluster_options, add_worker_options, find_run

# Kinds of failure that `reconcile` submits again: a second attempt can end well with nothing changed.
NO_FAULT_OF_ITS_OWN = ("lost", "preempted", "node_failure", "time_limit")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    add_worker_options(parser)
    parser.add_argument("--only", metavar="HASH,...", help="these runs alone, by their hashes")


def run(request: Request) -> int:
    """Run what is not done, on this machine, and wait for it.

    On a machine with GPUs each run gets one of them.
    """
    graph, arguments = request.graph, request.arguments
    if arguments.only is not None:
        graph = only(graph, arguments.only.split(","))
    gpus = local.choose_gpus(arguments.gpus)
    workers = arguments.workers or len(gpus) or local.default_workers()
    return local.run(graph, workers, Display(), request.machine, gpus)


def only(graph: Graph, names: Sequence[str]) -> Graph:
    """The graph of these runs, and of the pretrainings that they need."""
    chosen = {find_run(graph, name) for name in names}
    needed = chosen | {node.parent for node in chosen if node.parent is not None}
    return Graph(graph.study, graph.points, [node for node in graph.nodes if node in needed])


def submit(request: Request) -> int:
    """Queue what is not done: on SLURM, or on this machine in the background.

    On SLURM the evaluations of each checkpoint wait for its pretraining. Repeat it at will: what is done, running or
    queued is left alone.
    """
    return _submit(request, None)


def add_retry_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--kind", choices=KINDS, metavar="KIND", help=f"one of {', '.join(KINDS)}")
    which.add_argument("--run", metavar="RUN", help="one run: its hash, directory or title")
    add_cluster_options(parser)


def retry(request: Request) -> int:
    """Submit failed runs again, with their evaluations: all, one kind of failure, or one run."""
    statuses, arguments = read_status(request.graph), request.arguments
    failed = [status for status in statuses.values() if status.state == "failed"]
    if arguments.run is not None:
        named = statuses[find_run(request.graph, arguments.run)]
        if named.state != "failed":
            hint = ": its pretraining failed, so retry that" if named.state == "blocked" else ""
            raise UserError(f"{named.node.title} is {named.state}, not failed{hint}")
        failed = [named]
    elif arguments.kind is not None:
        failed = [status for status in failed if status.failure and status.failure.kind == arguments.kind]
    if not failed:
        print("nothing to retry: no run has failed so")
        return 0
    chosen = {status.node for status in failed}
    chosen |= {node for node in statuses if node.parent in chosen and statuses[node].state != "done"}
    return _submit(request, [node for node in statuses if node in chosen])


def reconcile(request: Request) -> int:
    """Submit what is missing through no fault of its own; fit for cron.

    That is what was never submitted, and what SLURM lost, preempted, ended at its limit or on a failed node without
    requeueing it. What raised, ran out of memory or was cancelled is left to `retry`.
    """
    missing = missing_runs(read_status(request.graph))
    if not missing:
        print("nothing is missing")
        return 0
    return _submit(request, missing)


def missing_runs(statuses: Mapping[Node, RunStatus]) -> list[Node]:
    """What `reconcile` submits, in the graph's order: pretrainings come before their evaluations."""
    missing: list[Node] = []
    for node, status in statuses.items():
        parent_is_missing = status.state == "blocked" and node.parent in missing
        if status.state in ("new", "interrupted") or parent_is_missing or _may_succeed_unchanged(status):
            missing.append(node)
    return missing


def _may_succeed_unchanged(status: RunStatus) -> bool:
    if status.failure is None or status.failure.kind not in NO_FAULT_OF_ITS_OWN:
        return False
    # A run that recorded itself that its limit is too short would reach it for ever.
    return status.failure.kind != "time_limit" or status.node.run.failure() is None


def _submit(request: Request, nodes: Collection[Node] | None) -> int:
    """Queue these runs (None: all that are not done) where --cluster says."""
    if request.arguments.cluster == "local":
        return _submit_here(request, nodes)
    cluster = load_cluster(request.arguments.cluster_config)  # its errors come before SLURM is asked
    from sweeps.slurm import submit as slurm  # loads submitit

    wanted = None if nodes is None else set(nodes)
    slurm.submit(request.graph, cluster, request.machine, lambda status: wanted is None or status.node in wanted)
    return 0


def _submit_here(request: Request, nodes: Collection[Node] | None) -> int:
    """Run them on this machine, in the background."""
    states = request.graph.states()
    for node in request.graph.nodes if nodes is None else nodes:
        if states[node] != "done":
            node.run.require_writable()
    given = {key: getattr(request.arguments, key) for key in ("workers", "gpus")}
    options = [f"--{key}={value}" for key, value in given.items() if value is not None]
    if nodes is not None:
        options.append(f"--only={','.join(node.identity.hash for node in nodes)}")
    sweep = detached.start(request.graph, [*options, *request.machine])
    log = detached.log_of(request.graph)
    if sweep is None:
        print(f"a sweep of {request.graph.study.name} is running already: {log}; repeat this when it has ended")
        return 0
    print(f"running in the background, process {sweep['pid']}: {log}")
    return 0
