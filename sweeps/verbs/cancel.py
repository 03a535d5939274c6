"""The verb `cancel`, for runs in SLURM's queue, in the background here, and of other processes of this machine."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from collections.abc import Sequence

from runtime import files
from runtime.errors import UserError
from sweeps import detached
from sweeps.failures import BY_OWNER, mark_cancelled
from sweeps.graph import Graph, Node
from sweeps.slurm import commands
from sweeps.status import RunStatus, read_status
from sweeps.verbs import Request, find_run


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subtree", metavar="RUN", help="one pretraining and its evaluations")
    which.add_argument("--run", metavar="RUN", help="one run: its hash, directory or title")


def cancel(request: Request) -> int:
    """Cancel what runs or waits: the whole study, one pretraining with its evaluations, or one run.

    An active run saves first. Cancelled runs are not requeued; `retry` submits them again. What is done stays.
    """
    graph, arguments = request.graph, request.arguments
    nodes = choose(graph, arguments.subtree, arguments.run)
    statuses = read_status(graph)
    active = [statuses[node] for node in nodes if statuses[node].state in ("running", "queued")]
    whole_study = len(nodes) == len(graph.nodes)
    sweep = detached.running(graph)
    # A background sweep that goes on with other runs must not begin these.
    not_begun = [node for node in nodes if statuses[node].state in ("new", "interrupted")]
    kept_from_beginning = [] if whole_study or sweep is None else not_begun
    to_mark = [*(status.node for status in active), *kept_from_beginning]
    for node in to_mark:
        files.require_writable(node.run.path, BY_OWNER)
    # Before any signal: the job of a run that saves and stops looks for this mark when it decides whether to requeue.
    for node in to_mark:
        mark_cancelled(node.run)
    commands.scancel([status.job.job for status in active if status.job is not None and _is_in_job(status)])
    stopped = whole_study and sweep is not None and detached.stop(graph)
    here = [status for status in active if not _is_in_job(status) and not stopped]
    missed = [status for status in here if not _stop_here(status)]
    count = len(active) + len(kept_from_beginning) - len(missed)
    print(f"cancelled {count} of {graph.study.name}'s runs" if count else "nothing runs or waits")
    for status in missed:
        print(f"{status.node.title} is running on {status.host}; its owner can stop it there")
    return 1 if missed else 0


def choose(graph: Graph, subtree: str | None, run: str | None) -> Sequence[Node]:
    """The runs that the options name: one pretraining with its evaluations, one run, or all."""
    if run is not None:
        return [find_run(graph, run)]
    if subtree is None:
        return graph.nodes
    pretrainings = [node for node in graph.nodes if node.parent is None]
    try:
        top = find_run(Graph(graph.study, graph.points, pretrainings), subtree)
    except UserError:  # it may name one of the evaluations
        node = find_run(graph, subtree)
        top = node if node.parent is None else node.parent
    return [top, *top.children]


def _is_in_job(status: RunStatus) -> bool:
    return status.info is not None and (status.info.waiting or status.info.working)


def _stop_here(status: RunStatus) -> bool:
    """Ask the process that holds the run to stop; False where it is on another machine, or of another user."""
    beat = status.heartbeat
    if beat.get("host") != socket.gethostname() or not isinstance(beat.get("pid"), int):
        return False
    if status.node.run.state() == "running":  # so the process lives: it holds the lock
        try:
            os.kill(beat["pid"], signal.SIGTERM)
        except PermissionError:  # another user's, in a folder that both can write
            return False
    return True
