"""Show every run, its state and the time it takes, and what `submit` (or `run`) would do; nothing is started."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.device import available_cores
from runtime.progress import describe_seconds
from sweeps import local
from sweeps.estimate import Estimator, TimeLeft, time_left
from sweeps.graph import Graph, Node
from sweeps.verbs.request import Request, add_cluster, add_workers
from sweeps.verbs.submission import Submission, plan_submission
from sweeps.view import STATES, View, look, run_name

HELP = "show every run, its state and the time it takes"
MOST_ROWS = 60  # of a table for readers; --json has all


def add_options(parser: argparse.ArgumentParser) -> None:
    add_cluster(parser)
    add_workers(parser)
    parser.add_argument("--json", action="store_true", help="for scripts")


def main(request: Request) -> int:
    views, arguments = look(request.graph), request.arguments
    estimator = estimator_of(views)
    workers = arguments.workers or local.default_workers()
    left = expected(views, workers, estimator)
    jobs = plan_submission(views, arguments.cluster_config, estimator) if arguments.cluster == "slurm" else None
    if arguments.json:
        shown = document(request.graph, views, left, estimator)
        print(json.dumps(shown | (jobs.document() if jobs else {}), indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(request.graph, views, estimator))
    if len(views) > MOST_ROWS:
        console.print(f"... and {len(views) - MOST_ROWS} more; --json has all of them")
    console.print(_would_submit(jobs) if jobs else would_run(views, left, workers))
    return 0


def estimator_of(views: Mapping[Node, View]) -> Estimator:
    return Estimator.from_finished([node for node, view in views.items() if view.state == "done"])


def expected(views: Mapping[Node, View], workers: int, estimator: Estimator) -> TimeLeft | None:
    """Time until every run is done, from the durations of finished ones; None where nothing was measured."""
    waiting = [node for node, view in views.items() if view.state not in ("done", "running")]
    running = {n: view.seconds_left(estimator) for n, view in views.items() if view.state == "running"}
    return time_left(waiting, running, workers, estimator)


def document(graph: Graph, views: Mapping[Node, View], left: TimeLeft | None, estimator: Estimator) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "study": graph.study.name,
        "counts": counts(views),
        "seconds_left": None if left is None else round(left.seconds),
        "seconds_left_is_complete": left is not None and left.complete,
        "runs": [describe(views[node], estimator) for node in graph.nodes],
    }


def describe(view: View, estimator: Estimator) -> dict[str, Any]:
    node = view.node
    return {
        "part": node.part,
        "stage": node.stage.name,
        "label": node.label,
        "hash": node.identity.hash,
        "parent": node.identity.parent,
        "name": run_name(node),
        "run": str(node.run.path),
        "state": view.state,
        "expected_seconds": estimator.seconds(node),
        "command": node.argv(),
    }


def counts(views: Mapping[Node, View]) -> dict[str, int]:
    found = Counter(view.state for view in views.values())
    return {state: found[state] for state in STATES if found[state]}


def _table(graph: Graph, views: Mapping[Node, View], estimator: Estimator) -> Table:
    table = new_table(graph, views, ("part", "what", "hash", "state", "expected"))
    for node in graph.nodes[:MOST_ROWS]:
        seconds = estimator.seconds(node)
        time = "" if seconds is None else describe_seconds(seconds)
        table.add_row(node.part, node.label, node.identity.hash, views[node].state, time)
    return table


def _would_submit(jobs: Submission) -> Table | str:
    if not jobs.batches:
        return "`submit` would queue nothing"
    table = Table(title=f"`submit` would queue {jobs.summary()}", title_justify="left")
    for column in ("runs", "part", "behind", "each", "GPU-hours"):
        table.add_column(column, overflow="fold")
    for row in jobs.rows():
        table.add_row(*row)
    table.caption = jobs.caption()
    return table


def would_run(views: Mapping[Node, View], left: TimeLeft | None, workers: int) -> str:
    to_start = [view for view in views.values() if view.state not in ("done", "running", "queued")]
    if not to_start:
        return "`run` would start nothing"
    threads = max(1, available_cores() // workers)
    time = "of unknown length: nothing was measured yet" if left is None else describe_left(left)
    each = f"{threads} {'thread' if threads == 1 else 'threads'} each"
    return f"`run` would start {len(to_start)} runs, {workers} at a time with {each}, {time}"


def new_table(graph: Graph, views: Mapping[Node, View], columns: tuple[str, ...]) -> Table:
    parts = ", ".join(f"{count} {state}" for state, count in counts(views).items())
    table = Table(title=f"{graph.study.name}: {len(graph.nodes)} runs, {parts}", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def describe_left(left: TimeLeft) -> str:
    return f"{'about' if left.complete else 'at least'} {describe_seconds(left.seconds)} left"
