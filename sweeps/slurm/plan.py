"""Which jobs a graph still needs: pretrainings in arrays, and the evaluations that wait for each of them.

The plan is a function of the runs' status; nothing is queued here (submit.py does that).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.graph import Node
from sweeps.slurm.config import ClusterConfig, Resources
from sweeps.status import RunStatus

# States of a run that needs a job. What failed is tried again: that is why a user repeats the command.
NEEDS_JOB = frozenset({"new", "interrupted", "failed", "blocked"})


@dataclass(frozen=True)
class JobBatch:
    """Runs that become one job or array, all of one part and with the same resources."""

    part: str
    nodes: tuple[Node, ...]
    resources: Resources
    parallel: int = 0  # runs at a time; 0: any number
    after_batch: JobBatch | None = None  # run i waits for the pretraining i of that batch
    after_job: str = ""  # the dependency of its only run on a job of an earlier submission, as afterok:17

    @property
    def waits(self) -> bool:
        return self.after_batch is not None or bool(self.after_job)


@dataclass
class Plan:
    """What a submission would queue, in order, and what it would leave out."""

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
    needed = [node for node in statuses if node in wanted and statuses[node].state in NEEDS_JOB]
    queued = set(needed)
    size = min(array_size, cluster.max_array_size or array_size)
    for part, nodes in _by_part(node for node in needed if node.parent is None).items():
        for batch in _arrays(part, nodes, cluster, size):
            plan.batches.append(batch)
            plan.batches.extend(_evaluations_after(batch, queued, cluster))
    others = {node: statuses[node.parent] for node in needed if node.parent is not None and node.parent not in queued}
    for part, nodes in _by_part(node for node, parent in others.items() if parent.state == "done").items():
        plan.batches.extend(_arrays(part, nodes, cluster, size))
    for node, parent in others.items():
        if parent.state == "done":
            continue
        if parent.state in ("queued", "running") and parent.job and parent.info and not parent.info.ended:
            resources = cluster.stages[node.stage.name]
            plan.batches.append(JobBatch(node.part, (node,), resources, after_job=f"afterok:{parent.job.job}"))
        else:
            plan.left_out.append(node)
    return plan


def _by_part(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    parts: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        parts[node.part].append(node)
    return parts


def _arrays(part: str, nodes: Sequence[Node], cluster: ClusterConfig, size: int) -> list[JobBatch]:
    """Arrays of an equal number of runs, which share the limit on runs at a time."""
    resources = cluster.stages[nodes[0].stage.name]
    count = -(-len(nodes) // size)
    length = -(-len(nodes) // count)
    parallel = max(1, resources.parallel // count) if resources.parallel else 0
    chunks = [tuple(nodes[i : i + length]) for i in range(0, len(nodes), length)]
    return [JobBatch(part, chunk, resources, parallel) for chunk in chunks]


def _evaluations_after(batch: JobBatch, queued: Collection[Node], cluster: ClusterConfig) -> Iterator[JobBatch]:
    """The evaluations of a batch of pretrainings.

    One array per part, where every pretraining needs that evaluation: aftercorr lets task i wait for task i alone.
    Otherwise the tasks would not correspond, and each evaluation is a job of its own.
    """
    children = (child for node in batch.nodes for child in node.children if child in queued)
    for part, nodes in _by_part(children).items():
        resources = cluster.stages[nodes[0].stage.name]
        if [node.parent for node in nodes] == list(batch.nodes):
            yield JobBatch(part, tuple(nodes), resources, resources.parallel, after_batch=batch)
            continue
        for node in nodes:
            yield JobBatch(part, (node,), resources, after_batch=batch)


def gpu_hours(batches: Iterable[JobBatch], seconds: Callable[[Node], float | None]) -> tuple[float, bool]:
    """GPU-hours of the batches, and whether the time of every run is known."""
    total, complete = 0.0, True
    for batch in batches:
        gpus = batch.resources.nodes * batch.resources.gpus
        for node in batch.nodes:
            needed = seconds(node)
            complete = complete and needed is not None
            total += gpus * (needed or 0.0) / 3600
    return total, complete
