"""Show how far each run is: from its run directory, its job, and one question to SLURM.

Exit code: 0 every run is done, 1 some run failed, 3 not finished.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime.progress import describe_seconds
from sweeps import local
from sweeps.estimate import Estimator
from sweeps.graph import Graph, Node
from sweeps.verbs.plan import MOST_ROWS, describe, describe_left, document, estimator_of, expected, new_table
from sweeps.verbs.request import Request
from sweeps.view import View, look

HELP = "show how far each run is"
UNFINISHED = 3
STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "blocked": "yellow", "queued": "blue"}
_FIRST = ("running", "failed", "blocked", "interrupted", "queued", "new", "done")  # where not all fit


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument("--all", action="store_true", help=f"every run, also where there are more than {MOST_ROWS}")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="show it anew (every 10 seconds) until every run is done or failed",
    )


def main(request: Request) -> int:
    arguments = request.arguments
    if arguments.watch is not None and not arguments.json:
        return _watch(request.graph, arguments.watch, arguments.all)
    views = look(request.graph)
    if arguments.json:
        print(json.dumps(to_json(request.graph, views), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(_drawing(request.graph, views, arguments.all))
    return exit_code(views)


def _watch(graph: Graph, seconds: float, every: bool) -> int:
    """Until nothing runs or waits any more; Ctrl-C ends the watching alone."""
    console = Console(highlight=False)
    views = look(graph)
    try:
        with Live(_drawing(graph, views, every), console=console, auto_refresh=False) as live:
            while any(view.state in ("running", "queued") for view in views.values()):
                time.sleep(seconds)
                views = look(graph)
                live.update(_drawing(graph, views, every), refresh=True)
    except KeyboardInterrupt:
        pass
    return exit_code(views)


def exit_code(views: Mapping[Node, View]) -> int:
    """0: all done; 1: something failed; 3: not finished."""
    if any(view.state in ("failed", "blocked") for view in views.values()):
        return 1
    return 0 if all(view.state == "done" for view in views.values()) else UNFINISHED


def to_json(graph: Graph, views: Mapping[Node, View]) -> dict[str, Any]:
    estimator = estimator_of(views)
    left = expected(views, local.default_workers(), estimator)
    shown = document(graph, views, left, estimator)
    return shown | {"runs": [_describe(views[node], estimator) for node in graph.nodes]}


def _describe(view: View, estimator: Estimator) -> dict[str, Any]:
    failure, info = view.failure, view.info
    return describe(view, estimator) | {
        "progress": view.progress if view.state in ("running", "interrupted", "queued") else {},
        "epoch": view.epoch,
        "loss": view.loss,
        "seconds_left": view.seconds_left(estimator) if view.state == "running" else None,
        "node": view.where if view.state in ("running", "failed") else "",
        "restarts": view.restarts if view.state != "done" else None,
        "job": view.job.job if view.job else None,
        "job_state": info.state if info else None,
        "job_reason": info.reason if info else None,
        "failure": {"kind": failure.kind, "last_line": failure.last_line} if failure else None,
    }


def _drawing(graph: Graph, views: Mapping[Node, View], every: bool) -> Group:
    shown = [views[node] for node in graph.nodes]
    hidden = 0
    if len(shown) > MOST_ROWS and not every:
        shown = sorted(shown, key=lambda view: _FIRST.index(view.state))[:MOST_ROWS]
        hidden = len(views) - MOST_ROWS
    estimator = estimator_of(views)
    table = _table(graph, views, shown, estimator)
    lines: list[Table | Text] = [table]
    if hidden:
        lines.append(Text(f"... and {hidden} more; --all shows them"))
    if any(view.info is not None and not view.info.source for view in views.values()):
        lines.append(Text("neither sacct nor squeue answers: this is what the run directories say", "yellow"))
    left = expected(views, local.default_workers(), estimator)
    if left is not None and left.seconds and not any(view.job for view in views.values()):
        lines.append(Text(describe_left(left)))
    if advice := _advice(views):
        lines.append(Text(advice))
    return Group(*lines)


def _table(graph: Graph, views: Mapping[Node, View], shown: list[View], estimator: Estimator) -> Table:
    with_jobs = any(view.job for view in shown)
    names = ["part", "what", "hash", *(["job"] if with_jobs else []), "state", "node", "restarts", "progress"]
    table = new_table(graph, views, tuple(names))
    for view in shown:
        where = view.where if view.state in ("running", "failed") else ""
        restarts = view.restarts if view.state in ("running", "failed", "queued", "interrupted") else 0
        job = [view.job.job if view.job else ""] if with_jobs else []
        state = Text(view.state, STYLES.get(view.state, ""))
        cells = [view.node.part, view.node.label, view.node.identity.hash, *job]
        table.add_row(*cells, state, where, str(restarts or ""), note(view, estimator))
    return table


def note(view: View, estimator: Estimator) -> str:
    """How far it is, why it waits, or why it failed: one line."""
    if view.failure is not None:
        return f"{view.failure.kind}: {view.failure.last_line}"
    if view.state == "queued":
        reason = view.info.reason if view.info else ""
        return ", ".join(text for text in (reason, _done_of(view)) if text)
    if view.state not in ("running", "interrupted"):
        return ""
    parts = [_done_of(view)]
    if view.epoch is not None:
        parts.append(f"epoch {view.epoch}")
    if view.loss is not None:
        parts.append(f"loss {view.loss:.3f}")
    left = view.seconds_left(estimator) if view.state == "running" else None
    if left is not None:
        parts.append(f"{describe_seconds(left)} left")
    return ", ".join(part for part in parts if part)


def _done_of(view: View) -> str:
    progress = view.progress
    return f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".rstrip() if progress else ""


def _advice(views: Mapping[Node, View]) -> str:
    """What to do next, where something can be done."""
    failed = [view for view in views.values() if view.state == "failed"]
    if not failed:
        return ""
    return f"{len(failed)} failed: `logs HASH` shows the end of one's output, `retry` tries them again"
