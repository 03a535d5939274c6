"""What `submit` would queue, by its own function, in words and for scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from sweeps.estimate import Estimator
from sweeps.graph import Node
from sweeps.slurm.config import ClusterConfig, describe, load_cluster
from sweeps.view import View, run_name

# Where the controller does not answer to `plan`: SLURM's own default.
USUAL_ARRAY_SIZE = 1001
MOST_ROWS = 30


@dataclass(frozen=True)
class Submission:
    """Batches of sweeps.slurm.submit, and what they will take by what was measured."""

    batches: Sequence[Any]
    left_out: Sequence[Node]
    estimator: Estimator
    used_gpu_hours: float  # of the runs that are done and were jobs
    array_size: int
    array_size_is_known: bool
    file: str  # of the cluster config; "": built-in defaults

    @property
    def runs(self) -> int:
        return sum(len(batch.nodes) for batch in self.batches)

    def gpu_hours(self, batches: Sequence[Any]) -> tuple[float, bool]:
        """(hours, whether every run's time is known)."""
        from sweeps.slurm.submit import gpu_hours

        return gpu_hours(batches, self.estimator.seconds)

    def summary(self) -> str:
        arrays = sum(len(batch.nodes) > 1 for batch in self.batches)
        kinds = [f"{arrays} arrays" if arrays else "", f"{len(self.batches) - arrays} single jobs"]
        return f"{self.runs} runs in {' and '.join(kind for kind in kinds if kind and not kind.startswith('0 '))}"

    def rows(self) -> Iterator[tuple[str, ...]]:
        """One a kind of batch: its size, part, whether it waits for its pretraining, resources, GPU-hours."""
        alike: dict[tuple[int, str, bool, str], list[Any]] = defaultdict(list)
        for batch in self.batches:
            alike[len(batch.nodes), batch.part, _waits(batch), describe(batch.resources)].append(batch)
        for (size, part, waits, each), batches in list(alike.items())[:MOST_ROWS]:
            hours, complete = self.gpu_hours(batches)
            known = f"{hours:.2f}" if complete else (f"{hours:.2f} or more" if hours else "not measured yet")
            runs = str(size) if len(batches) == 1 else f"{len(batches)} x {size}"
            yield runs, part, "its pretraining" if waits else "", each, known

    def caption(self) -> str:
        hours, complete = self.gpu_hours(self.batches)
        parts = [f"{'about' if complete else 'at least'} {hours:.2f} GPU-hours to come"]
        if not complete and not hours:
            parts = ["GPU-hours: nothing was measured yet"]
        if self.used_gpu_hours:
            parts.append(f"{self.used_gpu_hours:.2f} used by what is done")
        if not self.array_size_is_known:
            parts.append(f"SLURM does not answer: arrays of {self.array_size} assumed")
        if self.left_out:
            parts.append(f"{len(self.left_out)} runs wait for a pretraining at work outside of SLURM")
        parts.append(f"resources: {self.file or 'built-in defaults'}")
        return "; ".join(parts)

    def document(self) -> dict[str, Any]:
        hours, complete = self.gpu_hours(self.batches)
        return {
            "cluster_config": self.file or None,
            "gpu_hours": hours,
            "gpu_hours_is_complete": complete,
            "gpu_hours_used": self.used_gpu_hours,
            "jobs": [
                {
                    "part": batch.part,
                    "runs": [run_name(node) for node in batch.nodes],
                    "array": len(batch.nodes) > 1,
                    "waits_for_pretraining": _waits(batch),
                    "resources": describe(batch.resources),
                }
                for batch in self.batches
            ],
        }


def _waits(batch: Any) -> bool:
    return batch.behind is not None or bool(batch.after)


def plan_submission(views: Mapping[Node, View], file: Path | None, estimator: Estimator) -> Submission:
    """What `submit` would queue now. UserError for a cluster config that cannot be."""
    from sweeps.slurm import executor
    from sweeps.slurm.submit import make_plan

    cluster = load_cluster(file)
    known = True
    try:
        size = executor.max_array_size()
    except UserError:
        size, known = USUAL_ARRAY_SIZE, False
    plan = make_plan(views, cluster, size, set(views))
    return Submission(plan.batches, plan.left_out, estimator, _used(views, cluster), size, known, cluster.file)


def _used(views: Mapping[Node, View], cluster: ClusterConfig) -> float:
    """GPU-hours of the runs that are done and were jobs; what a run lost by being preempted is not in it."""
    total = 0.0
    for view in views.values():
        result = view.node.run.result() if view.state == "done" and view.job is not None else None
        if view.job is not None and isinstance(result, dict) and isinstance(result.get("seconds"), int | float):
            gpus = view.job.resources.get("nodes", 0) * view.job.resources.get("gpus", 0)
            total += gpus * result["seconds"] / 3600
    return total
