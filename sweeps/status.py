"""The status of every run: from its run directory, the newest job that was submitted for it, and SLURM's answer.

The run directory decides whether a run is done. A directory cannot know that the run waits in a queue, that its
job was cancelled or that its node died: that comes from the job.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.estimate import Estimator, TimeLeft, time_left
from sweeps.failures import Failure, classify, is_cancelled, tail
from sweeps.graph import Graph, Node, is_blocked
from sweeps.processes import LOG
from sweeps.slurm import commands
from sweeps.slurm.parse import JobInfo
from sweeps.slurm.records import Job, read_jobs

# The states of a run, in the order in which they are counted. Run.state reads done, running, failed, interrupted and
# new from its directory; graph.is_blocked decides blocked; _combine, below, adds the states that come from its job:
# queued, or failed if the job ended without a record.
STATES = ("done", "running", "queued", "failed", "blocked", "interrupted", "new")
ACTIVE = ("running", "queued")
NOT_BEGUN = ("interrupted", "new")  # no process has begun this attempt
STARTABLE = ("failed", "blocked", *NOT_BEGUN)  # failed runs are tried again: the user repeats the command for that
_ROWS_READ = 80


@dataclass(frozen=True)
class RunStatus:
    """The status of one run at one moment."""

    node: Node
    state: str
    job: Job | None = None
    info: JobInfo | None = None
    failure: Failure | None = None  # of a failed run

    @cached_property
    def heartbeat(self) -> dict[str, Any]:
        beat = self.node.run.heartbeat() if self.state in ("running", "interrupted", "queued", "failed") else None
        return beat if isinstance(beat, dict) else {}

    @property
    def progress(self) -> dict[str, Any]:
        """Its done, total and unit; empty before the run reports any, and after its end."""
        progress = self.heartbeat.get("progress") if self.state != "failed" else None
        return progress if isinstance(progress, dict) and progress.get("total") else {}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The last rows of metrics.jsonl."""
        return _last_rows(self.node.run.path / "metrics.jsonl") if self.state == "running" else []

    def latest(self, key: str) -> Any:
        """Return the number that was last logged as `key`, for example loss or epoch; None if there is none."""
        return next((row[key] for row in reversed(self.rows) if isinstance(row.get(key), int | float)), None)

    @property
    def host(self) -> str:
        """The node of its job, else the host of its last heartbeat; "" unless it is running or failed."""
        if self.state not in ("running", "failed"):
            return ""
        return (self.info.node if self.info else "") or str(self.heartbeat.get("host", ""))

    @property
    def restarts(self) -> int:
        """Attempts after the first, whoever made them."""
        attempts = self.node.run.count_attempts() if self.state not in ("new", "blocked") else 0
        return max(attempts - 1, self.info.restarts if self.info else 0, 0)

    def seconds_left(self, estimator: Estimator) -> float | None:
        """Estimate from the speed of its last logged rows, else from finished runs; None unless it is running."""
        if self.state != "running":
            return None
        progress = self.progress
        if progress:
            speed = _steps_per_second(self.rows)
            if speed and progress["unit"] == "steps":
                return (progress["total"] - progress["done"]) / speed
        whole = estimator.seconds(self.node)
        if whole is None or not progress:
            return whole
        return whole * (1 - progress["done"] / progress["total"])


def read_status(graph: Graph) -> dict[Node, RunStatus]:
    """Read the status of every run, now, by one sacct call, and one squeue call if that leaves something open."""
    jobs = newest_jobs(graph)
    states = {node: node.run.state() for node in graph.nodes}
    infos = _query_jobs(jobs, [node for node, state in states.items() if state != "done"])
    for node, info in infos.items():
        # Its directory was read before SLURM answered: a job that has ended since may have finished the run.
        if info.ended and states[node] != "done":
            states[node] = node.run.state()
    statuses: dict[Node, RunStatus] = {}
    for node in graph.nodes:  # parents first
        parent = None if node.parent is None else statuses.get(node.parent)
        statuses[node] = _combine(node, states[node], jobs.get(node), infos.get(node), parent)
    return statuses


def newest_jobs(graph: Graph) -> dict[Node, Job]:
    """Return the newest recorded job of every run that has one."""
    recorded = {root: read_jobs(root) for root in {node.root for node in graph.nodes}}
    return {node: recorded[node.root][node.name] for node in graph.nodes if node.name in recorded[node.root]}


def _query_jobs(jobs: Mapping[Node, Job], nodes: Iterable[Node]) -> dict[Node, JobInfo]:
    wanted = {node: jobs[node] for node in nodes if node in jobs}
    if not wanted:
        return {}
    infos = commands.query([job.job for job in wanted.values()], since=min(job.time for job in wanted.values()))
    answers = {node: infos[job.job] for node, job in wanted.items()}
    for node, info in answers.items():
        # A task with an output did begin: accounting left it out, and the controller has forgotten it.
        if info.never_began and any(log.is_file() for log in _job_logs(node.root, wanted[node])):
            answers[node] = JobInfo(source=info.source)
    return answers


def _combine(node: Node, state: str, job: Job | None, info: JobInfo | None, parent: RunStatus | None) -> RunStatus:
    """Decide the state of a run from that of its directory (`state`), its job, and its pretraining."""
    # A directory that is done or held is believed, whatever SLURM says: its answer may be late.
    if state in ("done", "running"):
        return RunStatus(node, state, job, info)
    if is_blocked(state, None if parent is None else parent.state):
        return RunStatus(node, "blocked", job, info)
    if info is not None and info.waiting:
        return RunStatus(node, "queued", job, info)
    if info is not None and info.working:  # it has begun, and does not hold its directory yet or any more
        return RunStatus(node, "running", job, info)
    job_is_over = info is not None and (info.ended or info.gone)
    if state == "failed" or job_is_over or is_cancelled(node.run):
        return RunStatus(node, "failed", job, info, classify(node.run, info, log_files(node, job)))
    return RunStatus(node, state, job, info)


def log_files(node: Node, job: Job | None) -> list[Path]:
    """List where the output of a run may be: in its own directory, and in the logs of its newest job."""
    return [node.run.path / LOG, *(_job_logs(node.root, job) if job is not None else [])]


def _job_logs(root: str, job: Job) -> list[Path]:
    """List the logs of a job; SLURM creates the second one when the job begins."""
    folder = Path(root) / "jobs" / job.submission / "logs"
    return [folder / f"{job.job}_0_log.{kind}" for kind in ("err", "out")]


def count_states(statuses: Mapping[Node, RunStatus]) -> dict[str, int]:
    """Count the runs in each state that occurs."""
    by_state = Counter(status.state for status in statuses.values())
    return {state: by_state[state] for state in STATES if by_state[state]}


def estimate(statuses: Mapping[Node, RunStatus], workers: int) -> tuple[Estimator, TimeLeft | None]:
    """Return the estimator from finished runs, and the time until all are done; None if none was measured."""
    estimator = Estimator.from_finished([node for node, status in statuses.items() if status.state == "done"])
    waiting = [node for node, status in statuses.items() if status.state not in ("done", "running")]
    running = {n: status.seconds_left(estimator) for n, status in statuses.items() if status.state == "running"}
    return estimator, time_left(waiting, running, workers, estimator)


def exit_code(statuses: Mapping[Node, RunStatus]) -> int:
    """Return the exit code of `status`: 0 if all runs are done, 1 if something failed, 3 if not finished."""
    counts = count_states(statuses)
    if counts.keys() & {"failed", "blocked"}:
        return 1
    return 0 if counts.keys() <= {"done"} else 3


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows at the end of a .jsonl file, without reading the rest."""
    rows = []
    for line in tail(file, _ROWS_READ):
        with suppress(ValueError):  # the first one may be cut off, and the last one not yet complete
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict)]


def _steps_per_second(rows: list[dict[str, Any]]) -> float | None:
    """Measure the speed over these rows; their `seconds` count training alone, so gaps across restarts are excluded."""
    timed = [(row["step"], row["seconds"]) for row in rows if "step" in row and row.get("seconds") is not None]
    if len(timed) < 2 or timed[-1][1] <= timed[0][1]:
        return None
    return (timed[-1][0] - timed[0][0]) / (timed[-1][1] - timed[0][1])
