"""A graph runs to its end on this machine, as real processes, whatever happens on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from runtime import PROJECT
from runtime.rundir import open_run
from sweeps import __main__ as command
from sweeps import local
from sweeps.display import Display
from sweeps.graph import Graph

MakeGraph = Callable[[], Graph]
Edit = Callable[..., Path]


def run(graph: Graph, workers: int = 2, terminal: bool = False) -> tuple[int, str]:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    code = local.LocalSweep(graph, workers, Display(console)).run()
    return code, console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def small_graph(edit: Edit, make_graph: MakeGraph) -> MakeGraph:
    """Two pretrainings and their evaluations."""
    edit(pretrain__grid={"loss.alpha": [0.0, 1.0]}, pretrain__controls={})
    return make_graph


def steps_of(graph: Graph) -> dict[str, list[int]]:
    logs = {node.title: node.run.path / "steps.log" for node in graph.nodes if node.part == "pretrain"}
    return {
        title: [int(line.split()[1]) for line in log.read_text().splitlines()]
        for title, log in logs.items()
        if log.exists()
    }


def test_runs_everything_once_and_then_nothing(make_graph: MakeGraph) -> None:
    graph = make_graph()
    code, shown = run(graph)
    assert code == 0, shown
    assert set(graph.states().values()) == {"done"}
    assert shown.count("start ") == shown.count("done  ") == len(graph.nodes)
    assert "all 16 runs done" in shown
    trained = [point for point in graph.points if point.control is None]
    assert all(steps == list(range(4)) for title, steps in steps_of(graph).items() if "no pre" not in title)
    for point in trained:
        expected = 50 + 20 * point.varied["loss.alpha"] + point.varied["seed"]
        assert point.evals["linear"].run.result()["top1"] == expected  # type: ignore[index]
    code, shown = run(make_graph())
    assert code == 0
    assert "nothing was left to do" in shown
    assert "start " not in shown


def test_each_slot_gets_its_share_of_the_cores(edit: Edit, make_graph: MakeGraph) -> None:
    edit(pretrain__grid={"loss.alpha": [1.0]}, pretrain__controls={}, evals={}, report__x="pretrain.rank_pooled")
    graph = make_graph()
    assert run(graph, workers=1)[0] == 0
    cores = str(len(os.sched_getaffinity(0)))
    node = graph.nodes[0]
    assert node.run.result()["threads"] == cores  # type: ignore[index]
    assert str(node.run.document()["machine"]["threads"]) == cores
    assert "machine.threads=" + cores in (node.run.path / "log.txt").read_text()


def test_the_users_number_of_threads_counts(edit: Edit, make_graph: MakeGraph) -> None:
    edit(pretrain__grid={"loss.alpha": [1.0]}, pretrain__controls={}, evals={}, report__x="pretrain.rank_pooled")
    graph = make_graph()
    assert local.LocalSweep(graph, 1, Display(Console(file=io.StringIO())), ["machine.threads=3"]).run() == 0
    (node,) = graph.nodes
    assert node.run.result()["threads"] == "3"  # type: ignore[index]
    assert node.run.document()["machine"]["threads"] == 3


def test_a_failed_run_stops_nothing_but_its_evaluations(edit: Edit, make_graph: MakeGraph) -> None:
    edit(pretrain__set={"fail_at_alpha": 0.5}, pretrain__grid={"loss.alpha": [0.0, 0.5, 1.0]})
    graph = make_graph()
    code, shown = run(graph)
    assert code == 1
    states = {node.title: state for node, state in graph.states().items()}
    assert states.pop("pretrain loss.alpha=0.5") == "failed"
    assert states.pop("linear loss.alpha=0.5") == "blocked"
    assert set(states.values()) == {"done"}
    assert "FAILED  pretrain loss.alpha=0.5: UserError: told to fail" in shown
    assert "| a line before the end" in shown
    log = graph.points[1].pretrain.run.path / "log.txt"
    assert str(log) in shown
    assert "a line before the end" in log.read_text()
    assert "blocked linear loss.alpha=0.5" in shown
    assert "1 failed, 1 blocked" in shown


def test_a_config_that_changes_meanwhile_is_not_taken_for_done(small_graph: MakeGraph, folder: Path) -> None:
    graph = small_graph()
    (folder / "pretrain.yaml").write_text("train: {duration: 5 steps}\n")
    code, shown = run(graph)
    assert code == 1
    assert "was changed since this sweep began" in shown
    assert run(small_graph())[0] == 0


def test_what_failed_is_tried_again(small_graph: MakeGraph) -> None:
    graph = small_graph()
    node = graph.points[0].pretrain
    with pytest.raises(ValueError), open_run("runs", node.identity, {}):
        raise ValueError("a full disk, for example")
    assert graph.states()[node] == "failed"
    assert run(graph)[0] == 0
    assert set(graph.states().values()) == {"done"}


def test_a_damaged_result_is_made_again(small_graph: MakeGraph) -> None:
    graph = small_graph()
    assert run(graph)[0] == 0
    node = graph.points[0].evals["linear"]
    (node.run.path / "result.json").write_bytes(b'{"top1": 5\xff')
    assert graph.states()[node] == "interrupted"
    assert run(small_graph())[0] == 0
    assert node.run.result()["top1"] == 50.0  # type: ignore[index]


def test_a_run_of_another_process_is_waited_for(small_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "ELSEWHERE_SECONDS", 0.1)
    graph = small_graph()
    node = graph.points[0].pretrain
    with open_run("runs", node.identity, {}) as mine:
        sweep = local.LocalSweep(graph, 2, Display(Console(file=io.StringIO())))
        assert sweep.elsewhere == [node]
        sweep.step()
        assert node.children[0] in sweep.waiting
        mine.write_result({"seconds": 1.0})
    assert sweep.run() == 0
    assert len(sweep.done) == len(graph.nodes)
    assert not (node.run.path / "steps.log").exists()


def test_a_terminal_gets_a_bar_with_what_runs(small_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.display.TERMINAL_SECONDS", 0.0)
    code, shown = run(small_graph(), terminal=True)
    assert code == 0
    assert "of 4 done" in shown
    assert "left" in shown
    assert "━" in shown


def start_sweep(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """`python -m sweeps run study.yaml` with the fake stages, as a process of its own."""
    code = (
        f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'tests' / 'sweeps')!r}]\n"
        "import fake_study; from sweeps import stages, __main__\n"
        "from runtime.errors import run_command\n"
        "stages.STAGES.clear(); stages.STAGES.update(fake_study.fake_registry()); run_command(__main__.main)"
    )
    argv = [sys.executable, "-c", code, "run", "study.yaml", *arguments]
    return subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)


def working_pids(folder: Path) -> set[int]:
    logs = folder.glob("runs/pretrain/*/steps.log")
    return {int(line.split()[0]) for log in logs for line in log.read_text().splitlines()}


def alive(pid: int) -> bool:
    """Its locks are held until its last thread is gone, which may be after its first one."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len(os.listdir(f"/proc/{pid}/task"))
    except FileNotFoundError:
        return False
    return state != "Z" or threads > 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_leaves_no_process_and_goes_on_where_it_was(
    number: signal.Signals, folder: Path, small_graph: MakeGraph
) -> None:
    (folder / "hold").touch()
    sweep = start_sweep(folder, "--workers", "2")
    wait_until(lambda: len(working_pids(folder)) == 2)
    sweep.send_signal(number)
    shown, _ = sweep.communicate()
    wait_until(lambda: not any(alive(pid) for pid in working_pids(folder)))
    assert sweep.returncode == (-9 if number == signal.SIGKILL else 128 + number), shown
    graph = small_graph()
    assert list(graph.states().values()) == ["interrupted", "new"] * 2
    before = steps_of(graph)
    assert list(before.values()) == [[0], [0]]
    (folder / "hold").unlink()
    code, shown = run(graph)
    assert code == 0, shown
    assert set(graph.states().values()) == {"done"}
    for steps in steps_of(graph).values():
        # The kill may fall between a step's row in the log and its checkpoint: that one is done again.
        assert steps in ([0, 1, 2, 3], [0, 0, 1, 2, 3])


def test_plan_and_status_for_scripts(small_graph: MakeGraph, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert command.main(["plan", "study.yaml", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["counts"] == {"new": 4}
    assert planned["seconds_left"] is None
    assert not (folder / "runs").exists()
    assert command.main(["status", "study.yaml"]) == 3
    run(small_graph())
    capsys.readouterr()
    assert command.main(["status", "study.yaml", "machine.threads=1", "--machine.runs=runs", "--json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["counts"] == {"done": 4}
    assert status["seconds_left"] == 0
    assert {row["run"] for row in status["runs"]} == {str(node.run.path) for node in small_graph().nodes}
    assert [row["command"] for row in status["runs"]] == [row["command"] for row in planned["runs"]]


def test_plan_and_status_for_readers(
    edit: Edit, make_graph: MakeGraph, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    edit(pretrain__set={"fail_at_alpha": 0.5}, pretrain__grid={"loss.alpha": [0.5, 1.0]})
    command.main(["plan", "study.yaml", "--workers", "2"])
    assert "`run` would start 6 runs, 2 at a time" in capsys.readouterr().out
    run(make_graph())
    assert command.main(["status", "study.yaml"]) == 1
    shown = capsys.readouterr().out
    assert "4 done, 1 failed, 1 blocked" in shown
    assert "told to fail" in shown
