"""The verb `plan`: every run with its state, and what `submit` (or `run`) would do."""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from runtime.device import available_cores
from runtime.errors import UserError
from runtime.progress import describe_seconds
from sweeps import local
from sweeps.estimate import Estimator, TimeLeft, time_left
from sweeps.graph import Graph, Node
from sweeps.slurm import commands
from sweeps.slurm.config import describe, load_cluster
from sweeps.slurm.plan import JobBatch, Plan, gpu_hours, make_plan
from sweeps.status import STATES, RunStatus, read_status
from sweeps.verbs import Request, add_cluster_options

MOST_ROWS = 60  # of a table for readers; --json has all
MOST_BATCHES = 30
# SLURM's own default, assumed where the controller does not answer.
DEFAULT_ARRAY_SIZE = 1001


def add_options(parser: argparse.ArgumentParser) -> None:
    add_cluster_options(parser)
    parser.add_argument("--json", action="store_true", help="for scripts")


def plan(request: Request) -> int:
    """Show every run, its state, its expected time, and what `submit` (or `run`) would do.

    Nothing is started.
    """
    statuses, arguments = read_status(request.graph), request.arguments
    estimator = estimator_of(statuses)
    workers = arguments.workers or local.default_workers()
    left = estimate_left(statuses, workers, estimator)
    jobs = plan_jobs(statuses, arguments.cluster_config, estimator) if arguments.cluster == "slurm" else None
    if arguments.json:
        document = to_json(request.graph, statuses, left, estimator)
        print(json.dumps(document | (jobs.to_json() if jobs else {}), indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(_table(request.graph, statuses, estimator))
    if len(statuses) > MOST_ROWS:
        console.print(f"... and {len(statuses) - MOST_ROWS} more; --json has all of them")
    console.print(jobs.table() if jobs else _would_run(statuses, left, workers))
    return 0


def estimator_of(statuses: Mapping[Node, RunStatus]) -> Estimator:
    return Estimator.from_finished([node for node, status in statuses.items() if status.state == "done"])


def estimate_left(statuses: Mapping[Node, RunStatus], workers: int, estimator: Estimator) -> TimeLeft | None:
    """Time until every run is done, from the durations of finished ones; None where none was measured."""
    waiting = [node for node, status in statuses.items() if status.state not in ("done", "running")]
    running = {n: status.seconds_left(estimator) for n, status in statuses.items() if status.state == "running"}
    return time_left(waiting, running, workers, estimator)


def to_json(
    graph: Graph, statuses: Mapping[Node, RunStatus], left: TimeLeft | None, estimator: Estimator
) -> dict[str, Any]:
    return {
        "study": graph.study.name,
        "counts": counts(statuses),
        "seconds_left": None if left is None else round(left.seconds),
        "seconds_left_is_complete": left is not None and left.complete,
        "runs": [run_to_json(statuses[node], estimator) for node in graph.nodes],
    }


def run_to_json(status: RunStatus, estimator: Estimator) -> dict[str, Any]:
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


def counts(statuses: Mapping[Node, RunStatus]) -> dict[str, int]:
    """Runs in each state that occurs."""
    by_state = Counter(status.state for status in statuses.values())
    return {state: by_state[state] for state in STATES if by_state[state]}


def new_table(graph: Graph, statuses: Mapping[Node, RunStatus], columns: tuple[str, ...]) -> Table:
    parts = ", ".join(f"{count} {state}" for state, count in counts(statuses).items())
    return _add_columns(Table(title=f"{graph.study.name}: {len(graph.nodes)} runs, {parts}"), columns)


def _add_columns(table: Table, columns: tuple[str, ...]) -> Table:
    table.title_justify = "left"
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _table(graph: Graph, statuses: Mapping[Node, RunStatus], estimator: Estimator) -> Table:
    table = new_table(graph, statuses, ("part", "what", "hash", "state", "expected"))
    for node in graph.nodes[:MOST_ROWS]:
        seconds = estimator.seconds(node)
        time = "" if seconds is None else describe_seconds(seconds)
        table.add_row(node.part, node.label, node.identity.hash, statuses[node].state, time)
    return table


def _would_run(statuses: Mapping[Node, RunStatus], left: TimeLeft | None, workers: int) -> str:
    to_start = [status for status in statuses.values() if status.state not in ("done", "running", "queued")]
    if not to_start:
        return "`run` would start nothing"
    threads = max(1, available_cores() // workers)
    time = "of unknown length: no run was measured yet" if left is None else str(left)
    each = f"{threads} {'thread' if threads == 1 else 'threads'} each"
    return f"`run` would start {len(to_start)} runs, {workers} at a time with {each}, {time}"


@dataclass(frozen=True)
class PlannedJobs:
    """What `submit` would queue on SLURM, and the GPU-hours that this would take."""

    plan: Plan
    estimator: Estimator
    used_gpu_hours: float  # of the runs that are done and were jobs
    array_size: int
    array_size_is_known: bool
    file: str  # of the cluster config; "": built-in defaults

    def table(self) -> Table | str:
        batches = self.plan.batches
        if not batches:
            return "`submit` would queue nothing"
        arrays = sum(len(batch.nodes) > 1 for batch in batches)
        kinds = [f"{n} {kind}" for n, kind in ((arrays, "arrays"), (len(batches) - arrays, "single jobs")) if n]
        table = Table(title=f"`submit` would queue {self.plan.runs} runs in {' and '.join(kinds)}")
        _add_columns(table, ("runs", "part", "after", "each", "GPU-hours"))
        for row in self._rows():
            table.add_row(*row)
        table.caption = self._caption()
        return table

    def _rows(self) -> Iterator[tuple[str, ...]]:
        """One row for each kind of batch."""
        alike: dict[tuple[int, str, bool, str], list[JobBatch]] = defaultdict(list)
        for batch in self.plan.batches:
            alike[len(batch.nodes), batch.part, batch.waits, describe(batch.resources)].append(batch)
        for (size, part, waits, each), batches in list(alike.items())[:MOST_BATCHES]:
            hours, complete = gpu_hours(batches, self.estimator.seconds)
            known = f"{hours:.2f}" if complete else (f"{hours:.2f} or more" if hours else "not measured yet")
            runs = str(size) if len(batches) == 1 else f"{len(batches)} x {size}"
            yield runs, part, "its pretraining" if waits else "", each, known

    def _caption(self) -> str:
        hours, complete = gpu_hours(self.plan.batches, self.estimator.seconds)
        parts = [f"{'about' if complete else 'at least'} {hours:.2f} GPU-hours to come"]
        if not complete and not hours:
            parts = ["GPU-hours: no run was measured yet"]
        if self.used_gpu_hours:
            parts.append(f"{self.used_gpu_hours:.2f} used by what is done")
        if not self.array_size_is_known:
            parts.append(f"SLURM does not answer: arrays of {self.array_size} assumed")
        if self.plan.left_out:
            parts.append(f"{len(self.plan.left_out)} runs wait for a pretraining that runs outside of SLURM")
        parts.append(f"resources: {self.file or 'built-in defaults'}")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        hours, complete = gpu_hours(self.plan.batches, self.estimator.seconds)
        return {
            "cluster_config": self.file or None,
            "gpu_hours": hours,
            "gpu_hours_is_complete": complete,
            "gpu_hours_used": self.used_gpu_hours,
            "jobs": [
                {
                    "part": batch.part,
                    "runs": [node.name for node in batch.nodes],
                    "array": len(batch.nodes) > 1,
                    "waits_for_pretraining": batch.waits,
                    "resources": describe(batch.resources),
                }
                for batch in self.plan.batches
            ],
        }


def plan_jobs(statuses: Mapping[Node, RunStatus], file: Path | None, estimator: Estimator) -> PlannedJobs:
    """What `submit` would queue now. UserError for an impossible cluster config."""
    cluster = load_cluster(file)
    known = True
    try:
        size = commands.max_array_size()
    except UserError:
        size, known = DEFAULT_ARRAY_SIZE, False
    jobs = make_plan(statuses, cluster, size, set(statuses))
    return PlannedJobs(jobs, estimator, _used_gpu_hours(statuses), size, known, cluster.file)


def _used_gpu_hours(statuses: Mapping[Node, RunStatus]) -> float:
    """Of the runs that are done and were jobs; what a run lost by being preempted is not in it."""
    total = 0.0
    for status in statuses.values():
        result = status.node.run.result() if status.state == "done" and status.job is not None else None
        if status.job is not None and isinstance(result, dict) and isinstance(result.get("seconds"), int | float):
            gpus = status.job.resources.get("nodes", 0) * status.job.resources.get("gpus", 0)
            total += gpus * result["seconds"] / 3600
    return total
