"""Which runs become which arrays, without a scheduler: the plan is a function of the runs' states."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeps.graph import Graph, Node
from sweeps.slurm.config import ClusterConfig, Resources
from sweeps.slurm.parse import JobInfo
from sweeps.slurm.plan import Plan, gpu_hours, make_plan
from sweeps.slurm.records import Job
from sweeps.status import RunStatus

MakeGraph = Callable[[], Graph]
STATES = ("new", "done", "failed", "blocked", "interrupted", "queued", "running")


def cluster(**pretrain: int) -> ClusterConfig:
    return ClusterConfig({"pretrain": Resources(**pretrain), "linear": Resources(tasks=1)})


def statuses_of(graph: Graph, states: list[str]) -> dict[Node, RunStatus]:
    """`queued` and `running` ones have a job."""
    statuses = {}
    for number, (node, state) in enumerate(zip(graph.nodes, states, strict=True)):
        status = RunStatus(node, state)
        if state in ("queued", "running"):
            info = JobInfo("PENDING" if state == "queued" else "RUNNING", source="squeue")
            status = RunStatus(node, state, Job(node.name, f"900_{number}", "before"), info)
        statuses[node] = status
    return statuses


def plan_of(graph: Graph, states: list[str], size: int, **pretrain: int) -> tuple[Plan, dict[Node, RunStatus]]:
    statuses = statuses_of(graph, states)
    return make_plan(statuses, cluster(**pretrain), size, set(graph.nodes)), statuses


def test_a_new_study_in_chunks_of_equal_size(make_graph: MakeGraph) -> None:
    graph = make_graph()  # 8 pretrainings, one evaluation each
    plan, _ = plan_of(graph, ["new"] * 16, 3, parallel=7)
    shown = [(batch.part, len(batch.nodes), batch.parallel) for batch in plan.batches]
    assert shown == [("pretrain", 3, 2), ("linear", 3, 0)] * 2 + [("pretrain", 2, 2), ("linear", 2, 0)]
    for before, after in zip(plan.batches[::2], plan.batches[1::2], strict=True):
        assert after.after_batch is before
        assert [node.parent for node in after.nodes] == list(before.nodes)


def test_nothing_is_planned_if_all_is_done_or_queued(make_graph: MakeGraph) -> None:
    plan, _ = plan_of(make_graph(), ["done", "queued"] * 8, 100)
    assert plan.batches == []
    assert plan.left_out == []


def test_an_evaluation_after_a_pretraining_that_has_a_job(make_graph: MakeGraph) -> None:
    graph = make_graph()
    states = ["done"] * 16
    first = graph.points[0].pretrain
    states[graph.nodes.index(first)] = "running"
    states[graph.nodes.index(first.children[0])] = "new"
    plan, statuses = plan_of(graph, states, 100)
    assert [(batch.nodes, batch.after_job) for batch in plan.batches] == [((first.children[0],), "afterok:900_0")]
    statuses[first] = replace(statuses[first], job=None, info=None)  # running outside of SLURM
    outside = make_plan(statuses, cluster(), 100, set(graph.nodes))
    assert (outside.batches, outside.left_out) == ([], [first.children[0]])


@settings(deadline=None, max_examples=60)
@given(states=st.lists(st.sampled_from(STATES), min_size=16, max_size=16), size=st.integers(1, 9))
def test_every_run_that_needs_a_job_gets_one(shared_graph: Graph, states: list[str], size: int) -> None:
    plan, statuses = plan_of(shared_graph, states, size)
    queued = [node for batch in plan.batches for node in batch.nodes]
    assert len(queued) == len(set(queued))
    wanted = {node for node, status in statuses.items() if status.state in ("new", "failed", "blocked", "interrupted")}
    assert set(queued) | set(plan.left_out) == wanted
    assert all(len(batch.nodes) <= size for batch in plan.batches)
    before: set[Node] = set()
    for batch in plan.batches:
        for index, node in enumerate(batch.nodes):
            if batch.after_batch is not None:
                assert node.parent in before
                assert len(batch.nodes) == 1 or batch.after_batch.nodes[index] is node.parent
            elif node.parent is not None:
                state = statuses[node.parent].state
                assert state == "done" or batch.after_job == f"afterok:{statuses[node.parent].job.job}"  # type: ignore[union-attr]
        before |= set(batch.nodes)


@pytest.fixture(scope="module")
def shared_graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    import fake_study

    from sweeps import stages
    from sweeps.graph import build
    from sweeps.study import load_study

    folder = tmp_path_factory.mktemp("graph")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "STAGES", fake_study.fake_registry())
        patch.chdir(folder)
        (folder / "study.yaml").write_text(fake_study.STUDY)
        (folder / "pretrain.yaml").write_text("train: {duration: 4 steps}\n")
        (folder / "linear.yaml").write_text("noise: 0.0\n")
        return build(load_study("study.yaml"))


def test_gpu_hours_are_those_of_all_nodes(make_graph: MakeGraph) -> None:
    graph = make_graph()
    plan, _ = plan_of(graph, ["new"] * 16, 100, nodes=2, gpus=4)
    seconds: dict[str, float] = {"pretrain": 1800.0}
    hours, complete = gpu_hours(plan.batches, lambda node: seconds.get(node.part))
    assert math.isclose(hours, 8 * 8 * 0.5)
    assert not complete
    seconds["linear"] = 900.0
    assert gpu_hours(plan.batches, lambda node: seconds.get(node.part)) == (8 * 8 * 0.5 + 8 * 0.25, True)
