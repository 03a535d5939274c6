"""How every run of a graph stands: its run directory, the newest job that was submitted for it, and what SLURM says.

The run directory is the truth of what is done; jobs add what a directory cannot know: that a run waits in a queue,
that its job was cancelled, that its node died.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sweeps.cancelled import is_cancelled
from sweeps.children import LOG
from sweeps.estimate import Estimator
from sweeps.failures import Failure, classify
from sweeps.graph import Graph, Node
from sweeps.slurm import queue
from sweeps.slurm.queue import JobInfo
from sweeps.slurm.records import Job, read_jobs

# As sweeps.graph.STATES, and queued: its job waits.
STATES = ("done", "running", "queued", "failed", "blocked", "interrupted", "new")
_METRICS_BYTES = 16_384


@dataclass(frozen=True)
class View:
    """One run at one moment."""

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
        """done, total, unit; empty before the run's first word."""
        progress = self.heartbeat.get("progress")
        return progress if isinstance(progress, dict) and progress.get("total") else {}

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The last rows of metrics.jsonl."""
        return last_rows(self.node.run.path / "metrics.jsonl") if self.state == "running" else []

    @property
    def loss(self) -> float | None:
        return next((row["loss"] for row in reversed(self.rows) if isinstance(row.get("loss"), int | float)), None)

    @property
    def epoch(self) -> int | None:
        return next((row["epoch"] for row in reversed(self.rows) if isinstance(row.get("epoch"), int | float)), None)

    @property
    def where(self) -> str:
        """The node of its job, else the host of its last sign of life."""
        return (self.info.node if self.info else "") or str(self.heartbeat.get("host", ""))

    @property
    def restarts(self) -> int:
        """Attempts after the first, whoever made them."""
        begun = self.node.run.count_attempts() if self.state not in ("new", "blocked") else 0
        return max(begun - 1, self.info.restarts if self.info else 0, 0)

    def seconds_left(self, estimator: Estimator) -> float | None:
        """From the speed of its last logged rows, else from finished runs of its part."""
        progress = self.progress
        if self.state == "running" and progress:
            speed = steps_a_second(self.rows)
            if speed and progress["unit"] == "steps":
                return (progress["total"] - progress["done"]) / speed
        whole = estimator.seconds(self.node)
        if whole is None or not progress:
            return whole
        return whole * (1 - progress["done"] / progress["total"])


def look(graph: Graph) -> dict[Node, View]:
    """The view of every run, now: one sacct call, and one squeue call where that leaves something open."""
    jobs = jobs_of(graph)
    states = {node: node.run.state() for node in graph.nodes}
    infos = _ask(jobs, [node for node, state in states.items() if state != "done"])
    for node, info in infos.items():
        if info.ended and states[node] != "done":  # it may have ended well between the two looks
            states[node] = node.run.state()
    views: dict[Node, View] = {}
    for node in graph.nodes:
        views[node] = _view(node, states[node], jobs.get(node), infos.get(node), views.get(_parent(node)))
    return views


def _parent(node: Node) -> Node:
    return node if node.parent is None else node.parent


def jobs_of(graph: Graph) -> dict[Node, Job]:
    """The newest recorded job of every run that has one."""
    recorded: dict[str, dict[str, Job]] = {root: read_jobs(Path(root)) for root in {n.root for n in graph.nodes}}
    found = {node: recorded[node.root].get(run_name(node)) for node in graph.nodes}
    return {node: job for node, job in found.items() if job is not None}


def run_name(node: Node) -> str:
    """ "pretrain/<name>": what names a run in records and on the command line."""
    return f"{node.identity.stage}/{node.run.name}"


def _ask(jobs: Mapping[Node, Job], nodes: Iterable[Node]) -> dict[Node, JobInfo]:
    wanted = {node: jobs[node] for node in nodes if node in jobs}
    if not wanted:
        return {}
    answers = queue.ask([job.job for job in wanted.values()], since=min(job.time for job in wanted.values()))
    return {node: _if_it_began(node, job, answers[job.job]) for node, job in wanted.items()}


def _if_it_began(node: Node, job: Job, info: JobInfo) -> JobInfo:
    """A task that has an output did begin: accounting left it out, and the controller has forgotten it."""
    if info.never_began and any(log.is_file() for log in _logs_of_job(node.root, job)):
        return JobInfo(source=info.source)
    return info


def _view(node: Node, state: str, job: Job | None, info: JobInfo | None, parent: View | None) -> View:
    if state in ("done", "running"):
        return View(node, state, job, info)
    if parent is not None and parent.state in ("failed", "blocked"):
        return View(node, "blocked", job, info)
    if info is not None and info.waiting:
        return View(node, "queued", job, info)
    if info is not None and info.working:
        return View(node, "running", job, info)
    over = info is not None and (info.ended or info.gone)
    if state == "failed" or over or is_cancelled(node.run):
        return View(node, "failed", job, info, classify(node.run, info, logs_of(node, job)))
    return View(node, state, job, info)


def logs_of(node: Node, job: Job | None) -> list[Path]:
    """Where the output of a run may be: of its own file here, of its newest job."""
    return [node.run.path / LOG, *(_logs_of_job(node.root, job) if job is not None else [])]


def _logs_of_job(root: str, job: Job) -> list[Path]:
    """SLURM makes the second one when the job begins."""
    folder = Path(root) / "jobs" / job.submission / "logs"
    return [folder / f"{job.job}_0_log.{kind}" for kind in ("err", "out")]


def last_rows(file: Path, most_bytes: int = _METRICS_BYTES) -> list[dict[str, Any]]:
    """The rows at the end of a .jsonl file, without reading the rest."""
    try:
        with open(file, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(0, size - most_bytes))
            lines = handle.read().splitlines()
    except OSError:
        return []
    rows = []
    for line in lines[1:] if size > most_bytes else lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # cut off
            continue
    return [row for row in rows if isinstance(row, dict)]


def steps_a_second(rows: list[dict[str, Any]]) -> float | None:
    """Over the rows of the last attempt: time between two rows of which a restart lies between counts nothing."""
    timed = [(row["step"], row["seconds"]) for row in rows if "step" in row and row.get("seconds") is not None]
    if len(timed) < 2 or timed[-1][1] <= timed[0][1]:
        return None
    return (timed[-1][0] - timed[0][0]) / (timed[-1][1] - timed[0][1])
