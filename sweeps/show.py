"""The commands that only look: `plan`, `status` and `logs`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from runtime.errors import UserError
from runtime.progress import describe_seconds
from sweeps import local
from sweeps.control import preflight
from sweeps.estimate import Estimator, TimeLeft
from sweeps.failures import tail
from sweeps.graph import Graph, Node
from sweeps.slurm.plan import PlannedJobs, plan_jobs
from sweeps.status import (
    ACTIVE,
    STARTABLE,
    RunStatus,
    count_states,
    estimate,
    exit_code,
    log_files,
    newest_jobs,
    read_status,
)

MAX_ROWS = 60  # of a table for readers; --json has all
MAX_BATCH_ROWS = 30
MAX_NAMED = 3  # runs that a line names
FOLLOW_SECONDS = 1.0
STATUS_SECONDS = 10.0  # between two checks of whether a followed run has ended
STYLES = {"done": "green", "running": "cyan", "failed": "bold red", "blocked": "yellow", "queued": "blue"}
# Which runs are shown first if not all fit.
_ORDER = ("running", "failed", "blocked", "interrupted", "queued", "new", "done")
Statuses = Mapping[Node, RunStatus]  # in the graph's order


def plan(graph: Graph, options: Namespace) -> int:
    """Show every run, its state, its expected time, and what `submit` (or `run`) would do.

    Nothing is started. Weights that are not imported yet are read, and refused if they do not fit.
    """
    preflight(graph)
    statuses = read_status(graph)
    workers = options.workers or local.default_workers(local.choose_gpus(options.gpus))
    estimator, left = estimate(statuses, workers)
    jobs = plan_jobs(statuses, options.cluster_config, estimator) if options.cluster == "slurm" else None
    if options.json:
        rows = [_plan_json(status, estimator) for status in statuses.values()]
        print(json.dumps(_study_json(graph, statuses, left, rows) | (jobs.to_json() if jobs else {}), indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(_plan_table(graph, statuses, estimator))
    if len(statuses) > MAX_ROWS:
        console.print(f"... and {len(statuses) - MAX_ROWS} more; --json has all of them")
    console.print(_jobs_table(jobs) if jobs else _describe_run(statuses, left, workers))
    console.print("".join(f"{line}\n" for line in _remarks(graph)), end="")
    return 0


def _plan_table(graph: Graph, statuses: Statuses, estimator: Estimator) -> Table:
    table = _table(_title(graph, statuses), ("part", "what", "hash", "state", "expected"))
    for status in list(statuses.values())[:MAX_ROWS]:
        seconds = estimator.seconds(status.node)
        expected = "" if seconds is None else describe_seconds(seconds)
        table.add_row(status.node.part, status.node.label, status.node.identity.hash, status.state, expected)
    return table


def _jobs_table(jobs: PlannedJobs) -> Table | str:
    if not jobs.plan.batches:
        return "`submit` would queue nothing"
    table = _table(jobs.title, ("runs", "part", "after", "each", "GPU-hours"))
    for row in list(jobs.rows())[:MAX_BATCH_ROWS]:
        table.add_row(*row)
    table.caption = jobs.caption()
    return table


def _describe_run(statuses: Statuses, left: TimeLeft | None, workers: int) -> str:
    count = sum(status.state in STARTABLE for status in statuses.values())
    if not count:
        return "`run` would start nothing"
    threads = local.threads_per_run(workers)
    length = "time unknown: no run was measured yet" if left is None else str(left)
    each = f"{threads} {'thread' if threads == 1 else 'threads'} each"
    return f"`run` would start {count} runs, {workers} at a time with {each}, {length}"


def _remarks(graph: Graph) -> Iterator[str]:
    """Yield which checkpoints the pretrainings keep for evaluations, and which evaluations come to nothing."""
    if moments := list(dict.fromkeys(moment for node in graph.nodes for moment in node.keep)):
        yield f"each pretraining keeps its checkpoints of {', '.join(moments)} (before its end)"
    for name in graph.study.unshown:
        yield f"warning: the report shows no score of the evaluation {name}; name one in report.scores, as {name}.SCORE"
    lacking = [node for node in graph.nodes if node.lacks_checkpoint and node.run.result() is None]
    if lacking:
        runs = dict.fromkeys(str(node.parent.run.path) for node in lacking if node.parent is not None)
        first = ", ".join(list(runs)[:MAX_NAMED]) + (", ..." if len(runs) > MAX_NAMED else "")
        yield (
            f"evaluations that cannot run: {len(lacking)}; pretrainings that ended without keeping their checkpoints: "
            f"{len(runs)}. Delete their folders ({first}), and they run again, or take `at` out of the study"
        )


def status(graph: Graph, options: Namespace) -> int:
    """Show the progress of each run, from its directory, its job, and one query to SLURM.

    Exit code: 0 every run is done, 1 some run failed, 3 not finished.
    """
    if options.watch is not None and not options.json:
        return _watch(graph, options.watch, options.all)
    statuses = read_status(graph)
    if options.json:
        estimator, left = estimate(statuses, local.default_workers())
        rows = [_status_json(status, estimator) for status in statuses.values()]
        print(json.dumps(_study_json(graph, statuses, left, rows), indent=2))
    else:
        Console(highlight=False, soft_wrap=True).print(_draw_status(graph, statuses, options.all))
    return exit_code(statuses)


def _watch(graph: Graph, seconds: float, show_all: bool) -> int:
    """Repeat until no run is active or queued; Ctrl-C ends only the watching."""
    console = Console(highlight=False)
    statuses = read_status(graph)
    try:
        with Live(_draw_status(graph, statuses, show_all), console=console, auto_refresh=False) as live:
            while any(status.state in ACTIVE for status in statuses.values()):
                time.sleep(seconds)
                statuses = read_status(graph)
                live.update(_draw_status(graph, statuses, show_all), refresh=True)
    except KeyboardInterrupt:
        pass
    return exit_code(statuses)


def _draw_status(graph: Graph, statuses: Statuses, show_all: bool) -> Group:
    shown = list(statuses.values())
    if len(shown) > MAX_ROWS and not show_all:
        shown = sorted(shown, key=lambda status: _ORDER.index(status.state))[:MAX_ROWS]
    estimator, left = estimate(statuses, local.default_workers())
    lines: list[Table | Text] = [_status_table(_title(graph, statuses), shown, estimator)]
    if hidden := len(statuses) - len(shown):
        lines.append(Text(f"... and {hidden} more; --all shows them"))
    if any(status.info is not None and not status.info.source for status in statuses.values()):
        lines.append(Text("neither sacct nor squeue answers: this is from the run directories alone", "yellow"))
    if left is not None and left.seconds and not any(status.job for status in statuses.values()):
        lines.append(Text(str(left)))
    if failed := count_states(statuses).get("failed"):
        lines.append(Text(f"{failed} failed: `logs HASH` shows the end of a run's output, `retry` submits them again"))
    return Group(*lines)


def _status_table(title: str, shown: Sequence[RunStatus], estimator: Estimator) -> Table:
    with_jobs = any(status.job for status in shown)
    table = _table(
        title, ("part", "what", "hash", *(["job"] if with_jobs else []), "state", "node", "restarts", "progress")
    )
    for status in shown:
        restarts = status.restarts if status.state in ("running", "failed", "queued", "interrupted") else 0
        job = [status.job.job if status.job else ""] if with_jobs else []
        state = Text(status.state, STYLES.get(status.state, ""))
        cells = [status.node.part, status.node.label, status.node.identity.hash, *job]
        table.add_row(*cells, state, status.host, str(restarts or ""), _note(status, estimator))
    return table


def _note(status: RunStatus, estimator: Estimator) -> str:
    """Describe its progress, why it waits, or why it failed, in one line."""
    if status.failure is not None:
        return f"{status.failure.kind}: {status.failure.last_line}"
    if status.state not in ("running", "interrupted", "queued"):
        return ""
    progress = status.progress
    steps = f"{progress['done']}/{progress['total']} {progress.get('unit', '')}".rstrip() if progress else ""
    if status.state == "queued":
        parts = [status.info.reason if status.info else "", steps]
    else:
        parts = [steps]
        if (epoch := status.latest("epoch")) is not None:
            parts.append(f"epoch {epoch}")
        if (loss := status.latest("loss")) is not None:
            parts.append(f"loss {loss:.3f}")
        if (left := status.seconds_left(estimator)) is not None:
            parts.append(f"{describe_seconds(left)} left")
    return ", ".join(part for part in parts if part)


def _title(graph: Graph, statuses: Statuses) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in count_states(statuses).items())
    return f"{graph.study.name}: {len(graph.nodes)} runs, {counts}"


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _study_json(
    graph: Graph, statuses: Statuses, left: TimeLeft | None, rows: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "study": graph.study.name,
        "counts": count_states(statuses),
        "seconds_left": None if left is None else round(left.seconds),
        "seconds_left_is_complete": left is not None and left.complete,
        "runs": rows,
    }


def _plan_json(status: RunStatus, estimator: Estimator) -> dict[str, Any]:
    node = status.node
    return {
        "part": node.part,
        "stage": node.stage.name,
        "label": node.label,
        "hash": node.identity.hash,
        "parent": node.identity.parent,
        "name": node.name,
        "run": str(node.run.path),
        "state": status.state,
        "expected_seconds": estimator.seconds(node),
        "command": node.argv(),
    }


def _status_json(status: RunStatus, estimator: Estimator) -> dict[str, Any]:
    failure, info = status.failure, status.info
    return _plan_json(status, estimator) | {
        "progress": status.progress,
        "epoch": status.latest("epoch"),
        "loss": status.latest("loss"),
        "seconds_left": status.seconds_left(estimator),
        "node": status.host,
        "restarts": status.restarts if status.state != "done" else None,
        "job": status.job.job if status.job else None,
        "job_state": info.state if info else None,
        "job_reason": info.reason if info else None,
        "failure": {"kind": failure.kind, "last_line": failure.last_line} if failure else None,
    }


def logs(graph: Graph, options: Namespace) -> int:
    """Show the end of a run's output: its own log here, and that of its newest SLURM job."""
    node = graph.find(options.run)
    existing = _existing_logs(graph, node)
    if options.paths:
        print("\n".join(map(str, existing)))
        return 0
    if not existing and not options.follow:
        raise UserError(f"{node.title} has no output yet; `status` shows whether it has begun")
    for log in existing:
        print(f"==> {log} <==")
        print("\n".join(tail(log, options.lines)), flush=True)
    if options.follow:
        _follow(graph, node, existing)
    return 0


def _existing_logs(graph: Graph, node: Node) -> list[Path]:
    """List its logs that are not empty, the newest last."""
    logs = [log for log in log_files(node, newest_jobs(graph).get(node)) if log.is_file() and log.stat().st_size]
    return sorted(logs, key=lambda log: log.stat().st_mtime)


def _follow(graph: Graph, node: Node, shown: Sequence[Path]) -> None:
    """Print lines that are appended to these logs and to new ones, until the run ends."""
    read = {log: log.stat().st_size for log in shown}
    checked, ended = time.monotonic(), False
    while not ended:
        time.sleep(FOLLOW_SECONDS)
        if time.monotonic() - checked >= STATUS_SECONDS:
            checked, ended = time.monotonic(), read_status(graph)[node].state not in ACTIVE
        for log in _existing_logs(graph, node):  # after the check, so that the last lines of an ended run are shown
            read[log] = _print_from(log, read.get(log, 0))


def _print_from(log: Path, start: int) -> int:
    """Print the file from byte `start` on; return where it ends now."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(text)
