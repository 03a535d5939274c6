"""Plan the jobs that a graph still needs: pretrainings in arrays, and the evaluations that wait for each of them.

The plan is a function of the runs' status; nothing is queued here (submit.py does that).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from sweeps.estimate import Estimator
from sweeps.graph import Node
from sweeps.slurm import commands
from sweeps.slurm.config import ClusterConfig, Resources, describe, load_cluster
from sweeps.status import ACTIVE, STARTABLE, RunStatus

# SLURM's own default, assumed if the controller does not answer.
DEFAULT_ARRAY_SIZE = 1001


@dataclass(frozen=True)
class JobBatch:
    """Runs that become one job or array, all of one part and with the same resources."""

    part: str
    nodes: tuple[Node, ...]
    resources: Resources
    parallel: int = 0  # runs at a time; 0: any number
    after_batch: JobBatch | None = None  # run i waits for the pretraining i of that batch
    after_job: str = ""  # the dependency of its only run on a job of an earlier submission, for example afterok:17

    @property
    def waits(self) -> bool:
        return self.after_batch is not None or bool(self.after_job)


@dataclass
class Plan:
    """The jobs that a submission would queue, in order, and the runs that it would leave out."""

    batches: list[JobBatch] = field(default_factory=list)
    left_out: list[Node] = field(default_factory=list)  # their pretraining is neither done nor in a job

    @property
    def runs(self) -> int:
        return sum(len(batch.nodes) for batch in self.batches)


def make_plan(
    statuses: Mapping[Node, RunStatus], cluster: ClusterConfig, array_size: int, wanted: Collection[Node]
) -> Plan:
    """Plan jobs, arrays of at most `array_size` runs, for those of `wanted` that have no job and are not done."""
    plan = Plan()
    needed = [node for node in statuses if node in wanted and statuses[node].state in STARTABLE]
    queued = set(needed)
    size = min(array_size, cluster.max_array_size or array_size)
    # Pretrainings that keep other checkpoints have other evaluations: apart, the tasks of each array correspond.
    for (part, _), nodes in _by_part(node for node in needed if node.parent is None).items():
        for batch in _arrays(part, nodes, cluster, size):
            plan.batches.append(batch)
            plan.batches.extend(_evaluations_after(batch, queued, cluster))
    others = {node: statuses[node.parent] for node in needed if node.parent is not None and node.parent not in queued}
    for (part, _), nodes in _by_part(node for node, parent in others.items() if parent.state == "done").items():
        plan.batches.extend(_arrays(part, nodes, cluster, size))
    for node, parent in others.items():
        if parent.state == "done":
            continue
        # A job that has ended cannot be waited for: SLURM would refuse the dependency, or never satisfy it.
        if parent.state in ACTIVE and parent.job and parent.info and not parent.info.ended:
            resources = cluster.stages[node.stage.name]
            plan.batches.append(JobBatch(node.part, (node,), resources, after_job=f"afterok:{parent.job.job}"))
        else:
            plan.left_out.append(node)
    return plan


def _by_part(nodes: Iterable[Node]) -> dict[tuple[str, tuple[str, ...]], list[Node]]:
    """Group the runs by their part and the checkpoints that they keep."""
    parts: dict[tuple[str, tuple[str, ...]], list[Node]] = defaultdict(list)
    for node in nodes:
        parts[node.part, node.keep].append(node)
    return parts


def _arrays(part: str, nodes: Sequence[Node], cluster: ClusterConfig, size: int) -> list[JobBatch]:
    """Split the runs into arrays of equal length, which share the limit on runs at a time."""
    resources = cluster.stages[nodes[0].stage.name]
    count = -(-len(nodes) // size)
    length = -(-len(nodes) // count)
    parallel = max(1, resources.parallel // count) if resources.parallel else 0
    chunks = [tuple(nodes[i : i + length]) for i in range(0, len(nodes), length)]
    return [JobBatch(part, chunk, resources, parallel) for chunk in chunks]


def _evaluations_after(batch: JobBatch, queued: Collection[Node], cluster: ClusterConfig) -> Iterator[JobBatch]:
    """Yield the evaluations of a batch of pretrainings.

    One array per part if every pretraining needs that evaluation: with aftercorr task i waits for task i alone.
    Otherwise the tasks would not correspond, and each evaluation is a job of its own.
    """
    children = (child for node in batch.nodes for child in node.children if child in queued)
    for (part, _), nodes in _by_part(children).items():
        resources = cluster.stages[nodes[0].stage.name]
        if [node.parent for node in nodes] == list(batch.nodes):
            yield JobBatch(part, tuple(nodes), resources, resources.parallel, after_batch=batch)
            continue
        for node in nodes:
            yield JobBatch(part, (node,), resources, after_batch=batch)


def gpu_hours(batches: Iterable[JobBatch], seconds: Callable[[Node], float | None]) -> tuple[float, bool]:
    """Return the GPU-hours of the batches, and whether the time of every run is known."""
    total, complete = 0.0, True
    for batch in batches:
        gpus = batch.resources.nodes * batch.resources.gpus_per_node
        for node in batch.nodes:
            needed = seconds(node)
            complete = complete and needed is not None
            total += gpus * (needed or 0.0) / 3600
    return total, complete


@dataclass(frozen=True)
class PlannedJobs:
    """The jobs that `submit` would queue on SLURM, and their GPU-hours, for `plan` to show."""

    plan: Plan
    estimator: Estimator
    used_gpu_hours: float  # by finished runs that were jobs
    array_size: int
    array_size_is_known: bool
    file: str  # of the cluster config; "": built-in defaults

    @property
    def title(self) -> str:
        arrays = sum(len(batch.nodes) > 1 for batch in self.plan.batches)
        kinds = [(arrays, "arrays"), (len(self.plan.batches) - arrays, "single jobs")]
        shown = " and ".join(f"{count} {kind}" for count, kind in kinds if count)
        return f"`submit` would queue {self.plan.runs} runs in {shown}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Yield one row for each kind of batch: runs, part, after, each, GPU-hours."""
        alike: dict[tuple[int, str, bool, str], list[JobBatch]] = defaultdict(list)
        for batch in self.plan.batches:
            alike[len(batch.nodes), batch.part, batch.waits, describe(batch.resources)].append(batch)
        for (size, part, waits, each), batches in alike.items():
            hours, complete = gpu_hours(batches, self.estimator.seconds)
            known = f"{hours:.2f}" if complete else (f"{hours:.2f} or more" if hours else "not measured yet")
            runs = str(size) if len(batches) == 1 else f"{len(batches)} x {size}"
            yield runs, part, "its pretraining" if waits else "", each, known

    def caption(self) -> str:
        hours, complete = gpu_hours(self.plan.batches, self.estimator.seconds)
        parts = [f"{'about' if complete else 'at least'} {hours:.2f} GPU-hours to come"]
        if not complete and not hours:
            parts = ["GPU-hours: no run was measured yet"]
        if self.used_gpu_hours:
            parts.append(f"{self.used_gpu_hours:.2f} used by finished runs")
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
    """Plan the jobs that `submit` would queue now. UserError for an impossible cluster config."""
    cluster = load_cluster(file)
    known = True
    try:
        size = commands.max_array_size()
    except UserError:
        size, known = DEFAULT_ARRAY_SIZE, False
    plan = make_plan(statuses, cluster, size, set(statuses))
    return PlannedJobs(plan, estimator, _used_gpu_hours(statuses), size, known, cluster.file)


def _used_gpu_hours(statuses: Mapping[Node, RunStatus]) -> float:
    """Sum up the finished runs that were jobs; time that was lost by preemptions is not included."""
    total = 0.0
    for status in statuses.values():
        result = status.node.run.result() if status.state == "done" and status.job is not None else None
        if status.job is not None and isinstance(result, dict) and isinstance(result.get("seconds"), int | float):
            gpus = status.job.resources.get("nodes", 0) * status.job.resources.get("gpus", 0)
            total += gpus * result["seconds"] / 3600
    return total
