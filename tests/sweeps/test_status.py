"""The status of a run where SLURM's answer leaves it open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sweeps.graph import Graph
from sweeps.slurm.records import Submission
from sweeps.status import read_status


def test_a_task_with_an_output_was_not_cancelled_before_it_began(
    make_graph: Callable[[], Graph], commands: Callable[..., Path]
) -> None:
    """Accounting left it out when it began, and the controller has forgotten it since."""
    graph = make_graph()
    first, second = [node for node in graph.nodes if node.parent is None][:2]
    submission = Submission.begin(Path(first.root), {})
    tasks = [{"run": node.name} for node in (first, second)]
    submission.write_plan("pretrain", {"part": "pretrain", "resources": {}, "tasks": tasks})
    submission.record("pretrain", "7")
    commands("sacct", "7_2|COMPLETED|0:0|n1|1700000000|None\n")
    commands("squeue", code=1, error="slurm_load_jobs error: Invalid job id specified")

    def kinds() -> list[str]:
        statuses = read_status(graph)
        return [failure.kind for node in (first, second) if (failure := statuses[node].failure)]

    assert kinds() == ["cancelled", "cancelled"]
    (submission.logs / "7_0_0_log.out").write_text("step 1\n")
    assert kinds() == ["lost", "cancelled"]
