"""The verb `status`: how far each run is, and why what failed did."""

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
from sweeps.status import RunStatus, read_status
from sweeps.verbs import Request, plan

UNFINISHED = 3
STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "blocked": "yellow", "queued": "blue"}
# Which runs are shown where not all fit.
_FIRST = ("running", "failed", "blocked", "interrupted", "queued", "new", "done")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for scripts")
    parser.add_argument(
        "--all", action="store_true", help=f"every run, also where there are more than {plan.MOST_ROWS}"
    )
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=10.0,
        metavar="SECONDS",
        help="repeat it (every 10 seconds) until no run is active or queued",
    )


def status(request: Request) -> int:
    """Show how far each run is, from its directory, its job, and one query to SLURM.

    Exit code: 0 every run is done, 1 some run failed, 3 not finished.
    """
    arguments = request.arguments
    if arguments.watch is not None and not arguments.json:
        return _watch(request.graph, arguments.watch, arguments.all)
    statuses = read_status(request.graph)
    if arguments.json:
        print(json.dumps(to_json(request.graph, statuses), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(_drawing(request.graph, statuses, arguments.all))
    return exit_code(statuses)


def _watch(graph: Graph, seconds: float, every: bool) -> int:
    """Repeat until no run is active or queued; Ctrl-C ends the watching alone."""
    console = Console(highlight=False)
    statuses = read_status(graph)
    try:
        with Live(_drawing(graph, statuses, every), console=console, auto_refresh=False) as live:
            while any(status.state in ("running", "queued") for status in statuses.values()):
                time.sleep(seconds)
                statuses = read_status(graph)
                live.update(_drawing(graph, statuses, every), refresh=True)
    except KeyboardInterrupt:
        pass
    return exit_code(statuses)


def exit_code(statuses: Mapping[Node, RunStatus]) -> int:
    """0: all done; 1: something failed; 3: not finished."""
    if any(status.state in ("failed", "blocked") for status in statuses.values()):
        return 1
    return 0 if all(status.state == "done" for status in statuses.values()) else UNFINISHED


def to_json(graph: Graph, statuses: Mapping[Node, RunStatus]) -> dict[str, Any]:
    estimator = plan.estimator_of(statuses)
    left = plan.estimate_left(statuses, local.default_workers(), estimator)
    document = plan.to_json(graph, statuses, left, estimator)
    return document | {"runs": [_run_to_json(statuses[node], estimator) for node in graph.nodes]}


def _run_to_json(status: RunStatus, estimator: Estimator) -> dict[str, Any]:
    failure, info = status.failure, status.info
    return plan.run_to_json(status, estimator) | {
        "progress": status.progress if status.state in ("running", "interrupted", "queued") else {},
        "epoch": status.latest("epoch"),
        "loss": status.latest("loss"),
        "seconds_left": status.seconds_left(estimator) if status.state == "running" else None,
        "node": status.host if status.state in ("running", "failed") else "",
        "restarts": status.restarts if status.state != "done" else None,
        "job": status.job.job if status.job else None,
        "job_state": info.state if info else None,
        "job_reason": info.reason if info else None,
        "failure": {"kind": failure.kind, "last_line": failure.last_line} if failure else None,
    }


def _drawing(graph: Graph, statuses: Mapping[Node, RunStatus], every: bool) -> Group:
    shown = [statuses[node] for node in graph.nodes]
    hidden = 0
    if len(shown) > plan.MOST_ROWS and not every:
        shown = sorted(shown, key=lambda status: _FIRST.index(status.state))[: plan.MOST_ROWS]
        hidden = len(statuses) - plan.MOST_ROWS
    estimator = plan.estimator_of(statuses)
    table = _table(graph, statuses, shown, estimator)
    lines: list[Table | Text] = [table]
    if hidden:
        lines.append(Text(f"... and {hidden} more; --all shows them"))
    if any(status.info is not None and not status.info.source for status in statuses.values()):
        lines.append(Text("neither sacct nor squeue answers: this is from the run directories alone", "yellow"))
    left = plan.estimate_left(statuses, local.default_workers(), estimator)
    if left is not None and left.seconds and not any(status.job for status in statuses.values()):
        lines.append(Text(str(left)))
    failed = sum(status.state == "failed" for status in statuses.values())
    if failed:
        lines.append(Text(f"{failed} failed: `logs HASH` shows the end of a run's output, `retry` submits them again"))
    return Group(*lines)


def _table(graph: Graph, statuses: Mapping[Node, RunStatus], shown: list[RunStatus], estimator: Estimator) -> Table:
    with_jobs = any(status.job for status in shown)
    names = ["part", "what", "hash", *(["job"] if with_jobs else []), "state", "node", "restarts", "progress"]
    table = plan.new_table(graph, statuses, tuple(names))
    for status in shown:
        host = status.host if status.state in ("running", "failed") else ""
        restarts = status.restarts if status.state in ("running", "failed", "queued", "interrupted") else 0
        job = [status.job.job if status.job else ""] if with_jobs else []
        state = Text(status.state, STYLES.get(status.state, ""))
        cells = [status.node.part, status.node.label, status.node.identity.hash, *job]
        table.add_row(*cells, state, host, str(restarts or ""), note(status, estimator))
    return table


def note(status: RunStatus, estimator: Estimator) -> str:
    """How far it is, why it waits, or why it failed, in one line."""
    if status.failure is not None:
        return f"{status.failure.kind}: {status.failure.last_line}"
    if status.state == "queued":
        reason = status.info.reason if status.info else ""
        return ", ".join(text for text in (reason, _progress(status)) if text)
    if status.state not in ("running", "interrupted"):
        return ""
    parts = [_progress(status)]
    if (epoch := status.latest("epoch")) is not None:
        parts.append(f"epoch {epoch}")
    if (loss := status.latest("loss")) is not None:
        parts.append(f"loss {loss:.3f}")
    left = status.seconds_left(estimator) if status.state == "running" else None
    if left is not None:
        parts.append(f"{describe_seconds(left)} left")
    return ", ".join(part for part in parts if part)


def _progress(status: RunStatus) -> str:
    progress = status.progress
    return f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".rstrip() if progress else ""
