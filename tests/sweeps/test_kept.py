"""Evaluations of checkpoints that the pretrainings of a study keep: `evals.<name>.at`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from test_plan import plan_of

from runtime.errors import UserError
from runtime.rundir import open_run
from sweeps.__main__ import main
from sweeps.graph import Graph, build
from sweeps.study import load_study

Edit = Callable[..., Path]
KeptGraph = Callable[..., Graph]


@pytest.fixture
def kept_graph(edit: Edit) -> KeptGraph:
    """Build the graph of the fake study (4 steps a run) with linear at some moments."""

    def make(at: object, every: str | None = None) -> Graph:
        edit(evals__linear__at=at, **({} if every is None else {"pretrain__keep_every": every}))
        return build(load_study("study.yaml"))

    return make


@pytest.mark.parametrize(
    ("at", "every", "moments"),
    [
        (["3 steps", "1 step"], None, ["1 steps", "3 steps"]),
        ("2 steps", None, ["2 steps"]),
        ("kept", "1 step", ["1 steps", "2 steps", "3 steps"]),
        (["kept", "1 steps"], "2 steps", ["1 steps", "2 steps"]),
        (["2 steps", "4 steps", "9 steps"], None, ["2 steps"]),  # the end is the evaluation without a moment
    ],
)
def test_the_moments_of_every_pretraining(
    kept_graph: KeptGraph, at: object, every: str | None, moments: list[str]
) -> None:
    graph = kept_graph(at, every)
    for point in graph.points:
        wanted = [] if point.control else moments  # the control has no step
        assert list(point.evals) == ["linear", *(f"linear at {moment}" for moment in wanted)]
        assert point.pretrain.keep == tuple(wanted)
        assert [node.at for node in point.evals.values()] == [None, *wanted]
    assert len(graph.nodes) == 16 + 6 * len(moments)


def test_moments_change_no_name_of_other_runs(make_graph: Callable[[], Graph], kept_graph: KeptGraph) -> None:
    names = {node.name for node in make_graph().nodes}
    graph = kept_graph(["2 steps"])
    assert {node.name for node in graph.nodes if node.at is None} == names
    assert len({node.name for node in graph.nodes}) == 22
    assert {node.name for node in kept_graph("kept", "2 steps").nodes} == {node.name for node in graph.nodes}


def test_the_commands_say_what_to_keep_and_what_to_evaluate(kept_graph: KeptGraph) -> None:
    point = kept_graph(["1 step", "2 steps"]).points[0]
    *_, threads, keep = point.pretrain.argv(["machine.threads=3"])
    assert (threads, keep) == ("machine.threads=3", "machine.keep_at=[1 steps, 2 steps]")
    command = point.evals["linear at 2 steps"].argv()
    assert command[3:6] == [str(point.pretrain.run.path), "--at", "2 steps"]
    assert "--at" not in point.evals["linear"].argv()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evals__linear__at": "kept"}, "allowed: pretrain.keep_every beside it"),
        ({"evals__linear__at": ["2 epochs"]}, "'2 epochs' is not possible; allowed: steps, the unit of train.duration"),
        ({"evals__linear__at": [2]}, "evals.linear.at.0 = 2 is not possible; allowed: text"),
        ({"evals__linear__at": ["0.5 steps"]}, "allowed: a whole number and its unit"),
        ({"pretrain__keep_every": "0 steps"}, "allowed: a whole number and its unit"),
        ({"pretrain__keep_every": "1 epoch"}, "pretrain.keep_every = '1 epochs' is not possible; allowed: steps"),
    ],
)
def test_what_cannot_be_a_moment(edit: Edit, changes: dict[str, object], message: str) -> None:
    edit(**changes)
    with pytest.raises(UserError) as error:
        build(load_study("study.yaml"))
    assert message in str(error.value)


def test_slurm_gets_an_array_for_each_moment(kept_graph: KeptGraph) -> None:
    """Not a job for each run: a large study would have thousands."""
    graph = kept_graph(["1 step", "2 steps"])
    plan, _ = plan_of(graph, ["new"] * len(graph.nodes), 100)
    parts = ["pretrain", "linear", "linear at 1 steps", "linear at 2 steps"]
    controls = [("pretrain", 2), ("linear", 2)]
    assert [(batch.part, len(batch.nodes)) for batch in plan.batches] == [*((part, 6) for part in parts), *controls]


def test_plan_names_what_is_kept_and_what_was_not(kept_graph: KeptGraph, capsys: pytest.CaptureFixture[str]) -> None:
    graph = kept_graph(["1 step", "2 steps"])
    first, second = (graph.points[k].pretrain for k in (0, 1))
    assert not any(node.lacks_checkpoint for node in graph.nodes)
    for node in (first, second):
        with open_run("runs", node.identity, {}) as run:
            (run.path / "checkpoints").mkdir()
            (run.path / "checkpoints" / "step-00000001.pt").touch()
            run.write_result({"seconds": 1.0})
    (second.run.path / "checkpoints" / "step-00000002.pt").touch()
    lacking = [node.title for node in graph.nodes if node.lacks_checkpoint]
    assert lacking == ["linear at 2 steps loss.alpha=0.0, seed=0"]
    assert main(["plan", "study.yaml", "--cluster", "local"]) == 0
    shown = capsys.readouterr().out
    assert "each pretraining keeps its checkpoints of 1 steps, 2 steps" in shown
    assert "evaluations that cannot run: 1; pretrainings that ended without keeping their checkpoints: 1." in shown
    assert str(first.run.path) in shown
    assert str(second.run.path) not in shown
    assert "warning" not in shown


def test_plan_names_an_evaluation_that_the_report_does_not_show(edit: Edit, capsys: pytest.CaptureFixture[str]) -> None:
    edit(evals__second={"stage": "linear", "config": "linear.yaml"}, report__scores=["linear.top1"])
    assert main(["plan", "study.yaml", "--cluster", "local"]) == 0
    assert "warning: the report shows no score of the evaluation second; name one" in capsys.readouterr().out
