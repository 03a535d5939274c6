"""Cancel what runs or waits: the whole study, one pretraining with its evaluations, or one run.

What is cancelled saves where it is, if it runs, and is not put back into the queue; `retry` takes it up again.
What is done stays.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
from collections.abc import Sequence

from runtime import files
from runtime.errors import UserError
from sweeps import cancelled, detached
from sweeps.graph import Graph, Node
from sweeps.verbs.request import Request, find_run
from sweeps.view import View, look

HELP = "cancel a study, one pretraining with its evaluations, or one run"
_JOBS_A_CALL = 500


def add_options(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subtree", metavar="RUN", help="one pretraining and its evaluations")
    which.add_argument("--run", metavar="RUN", help="one run: its hash, directory or title")


def main(request: Request) -> int:
    graph, arguments = request.graph, request.arguments
    nodes = chosen(graph, arguments.subtree, arguments.run)
    views = look(graph)
    active = [views[node] for node in nodes if views[node].state in ("running", "queued")]
    waiting = [node for node in nodes if views[node].state in ("new", "interrupted")]
    everything = len(nodes) == len(graph.nodes)
    sweep = detached.at_work(graph)
    # Before anything is signalled: a run that is told to stop must find it when it asks whether to go on later.
    kept_from_beginning = [] if everything or sweep is None else waiting
    to_mark = [*(view.node for view in active), *kept_from_beginning]
    for node in to_mark:
        files.require_writable(node.run.path, cancelled.BY_OWNER)
    for node in to_mark:
        cancelled.mark(node.run)
    scancel([view.job.job for view in active if view.job is not None and _is_of_job(view)])
    stopped = everything and sweep is not None and detached.stop(graph)
    here = [view for view in active if not _is_of_job(view) and not stopped]
    missed = [view for view in here if not _stop_here(view)]
    count = len(active) + len(kept_from_beginning) - len(missed)
    print(f"cancelled {count} of {graph.study.name}'s runs" if count else "nothing runs or waits")
    for view in missed:
        print(f"{view.node.title} is at work on {view.where}; its owner can stop it there")
    return 1 if missed else 0


def chosen(graph: Graph, subtree: str | None, run: str | None) -> Sequence[Node]:
    if run is not None:
        return [find_run(graph, run)]
    if subtree is None:
        return graph.nodes
    top = _find_top(graph, subtree)
    return [top, *top.children]


def _find_top(graph: Graph, text: str) -> Node:
    """The pretraining that is named, or the one of the evaluation that is."""
    tops = [node for node in graph.nodes if node.parent is None]
    try:
        return find_run(Graph(graph.study, graph.points, tops), text)
    except UserError:
        node = find_run(graph, text)
        return node if node.parent is None else node.parent


def _is_of_job(view: View) -> bool:
    return view.info is not None and (view.info.waiting or view.info.working)


def scancel(jobs: Sequence[str]) -> None:
    """UserError where scancel fails for another reason than that a job has ended meanwhile."""
    for start in range(0, len(jobs), _JOBS_A_CALL):
        argv = ["scancel", "--quiet", *jobs[start : start + _JOBS_A_CALL]]
        try:
            done = subprocess.run(
                argv, capture_output=True, encoding="utf-8", errors="replace", timeout=120, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"scancel cannot be run: {error}") from error
        if done.returncode and "Invalid job id" not in done.stderr:
            raise UserError(f"scancel failed: {done.stderr.strip()}; repeat the command")


def _stop_here(view: View) -> bool:
    """Ask the process that holds the run to stop; False where it is another machine's or user's."""
    beat = view.heartbeat
    if beat.get("host") != socket.gethostname() or not isinstance(beat.get("pid"), int):
        return False
    if view.node.run.state() == "running":  # so the process lives: it holds the lock
        try:
            os.kill(beat["pid"], signal.SIGTERM)
        except PermissionError:  # another user's, in a folder that both can write
            return False
    return True
