"""The commands, as a user types them, on fake stages: background sweeps, failures, cancel, retry, clean."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_local import alive, start_sweep, wait_until, working_pids

from runtime import PROJECT
from runtime.errors import UserError
from runtime.rundir import open_run
from sweeps import __main__ as command
from sweeps import local, processes
from sweeps.failures import is_cancelled
from sweeps.graph import Graph, build
from sweeps.study import load_study

MakeGraph = Callable[[], Graph]
Edit = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def small(edit: Edit, make_graph: MakeGraph, monkeypatch: pytest.MonkeyPatch) -> Iterator[Graph]:
    """Two pretrainings and their evaluations; a sweep in the background knows the fake stages too."""
    edit(pretrain__grid={"loss.alpha": [0.5, 1.0]}, pretrain__controls={})
    code = (
        f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'tests' / 'sweeps')!r}]\n"
        "import fake_study; from sweeps import stages, __main__\n"
        "from runtime.errors import run_command\n"
        "stages.STAGES.clear(); stages.STAGES.update(fake_study.fake_registry()); run_command(__main__.main)"
    )
    monkeypatch.setattr(processes, "SWEEP_COMMAND", (sys.executable, "-c", code))
    graph = make_graph()
    yield graph
    processes.stop_background(graph)


def sweeps(name: str, *arguments: str) -> int:
    return command.main([name, "study.yaml", *arguments])


def status(capsys: Capture) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    sweeps("status", "--json")
    return {f"{run['part']} {run['label']}": run for run in json.loads(capsys.readouterr().out)["runs"]}


def states(capsys: Capture) -> list[object]:
    return [run["state"] for run in status(capsys).values()]


def test_in_the_background_once(small: Graph, capsys: Capture, folder: Path) -> None:
    (folder / "hold").touch()
    assert sweeps("submit", "--cluster", "local", "--workers", "2") == 0
    assert "running in the background, process" in capsys.readouterr().out
    assert sweeps("submit", "--cluster", "local") == 0
    assert "a sweep of fake is running already" in capsys.readouterr().out
    wait_until(lambda: len(working_pids(folder)) == 2)
    wait_until(lambda: all(run["progress"] for run in list(status(capsys).values())[::2]))
    shown = status(capsys)
    assert shown["pretrain loss.alpha=0.5"]["state"] == "running"
    assert shown["pretrain loss.alpha=0.5"]["progress"] == {"done": 1, "total": 4, "unit": "steps"}
    (folder / "hold").unlink()
    wait_until(lambda: processes.read_background(small) is None)
    assert states(capsys) == ["done"] * 4
    assert "all 4 runs done" in processes.background_log(small).read_text()


def test_cancelled_here_and_taken_up_again(small: Graph, capsys: Capture, folder: Path) -> None:
    (folder / "hold").touch()
    sweeps("submit", "--cluster", "local", "--workers", "2")
    wait_until(lambda: len(working_pids(folder)) == 2)
    assert sweeps("cancel") == 0
    assert "cancelled 2 of" in capsys.readouterr().out
    assert processes.read_background(small) is None
    wait_until(lambda: not any(alive(pid) for pid in working_pids(folder)))
    shown = status(capsys)
    assert shown["pretrain loss.alpha=1.0"]["failure"]["kind"] == "cancelled"  # type: ignore[index]
    assert states(capsys) == ["failed", "blocked"] * 2
    assert sweeps("reconcile", "--cluster", "local") == 0
    assert "nothing is missing" in capsys.readouterr().out
    (folder / "hold").unlink()
    sweeps("retry", "--cluster", "local", "--run", "pretrain loss.alpha=1.0")
    wait_until(lambda: processes.read_background(small) is None)
    assert states(capsys) == ["failed", "blocked", "done", "done"]
    sweeps("retry", "--cluster", "local", "--kind", "cancelled")
    wait_until(lambda: processes.read_background(small) is None)
    assert states(capsys) == ["done"] * 4


def test_one_run_is_cancelled_while_the_others_go_on(small: Graph, capsys: Capture, folder: Path) -> None:
    (folder / "hold").touch()
    sweeps("submit", "--cluster", "local", "--workers", "1")
    wait_until(lambda: len(working_pids(folder)) == 1)
    assert states(capsys).count("running") == 1
    first, second = ("0.5", "1.0") if (small.points[0].pretrain.run.state() == "running") else ("1.0", "0.5")
    assert sweeps("cancel", "--run", f"pretrain loss.alpha={second}") == 0  # it has not begun, and will not
    assert sweeps("cancel", "--subtree", f"pretrain loss.alpha={first}") == 0
    wait_until(lambda: processes.read_background(small) is None)
    assert sorted(map(str, states(capsys))) == ["blocked", "blocked", "failed", "failed"]
    assert len(working_pids(folder)) == 1


def test_logs_and_kinds_of_failures(edit: Edit, small: Graph, capsys: Capture, folder: Path) -> None:
    edit(pretrain__set={"fail_at_alpha": 0.5})
    assert sweeps("run", "--workers", "2") == 1
    shown = status(capsys)
    assert shown["pretrain loss.alpha=0.5"]["failure"] == {"kind": "exception", "last_line": "UserError: told to fail"}
    assert shown["linear loss.alpha=0.5"]["state"] == "blocked"
    assert shown["linear loss.alpha=1.0"]["state"] == "done"
    sweeps("logs", "pretrain loss.alpha=0.5", "-n", "2")
    assert "error: told to fail" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no output yet"):
        sweeps("logs", "linear loss.alpha=0.5")
    with pytest.raises(UserError, match="near it"):
        sweeps("logs", "pretrain loss.alhpa 0.5")
    with pytest.raises(UserError, match="is done, not failed"):
        sweeps("retry", "--run", "linear loss.alpha=1.0")
    with pytest.raises(UserError, match="retry that"):
        sweeps("retry", "--run", "linear loss.alpha=0.5")
    sweeps("retry", "--kind", "lost")
    assert "nothing to retry" in capsys.readouterr().out


def test_a_killed_run_names_the_signal(small: Graph, capsys: Capture, folder: Path) -> None:
    (folder / "hold").touch()
    sweep = start_sweep(folder, "--workers", "2")
    wait_until(lambda: len(working_pids(folder)) == 2)
    for pid in working_pids(folder):
        os.kill(pid, 9)
    shown, _ = sweep.communicate()
    assert "it was killed by SIGKILL" in shown
    assert status(capsys)["pretrain loss.alpha=0.5"]["failure"]["kind"] == "lost"  # type: ignore[index]


def test_clean_shows_and_removes_only_files_that_nothing_needs(small: Graph, capsys: Capture, folder: Path) -> None:
    assert sweeps("run", "--workers", "2") == 0
    node = small.points[0].pretrain
    names = ("checkpoint.pt", "backbone.safetensors", ".checkpoint.pt.7.tmp")
    for name in names:
        (node.run.path / name).write_bytes(b"x" * 1000)
    results = {file: file.read_bytes() for file in folder.glob("runs/*/*/result.json")}
    capsys.readouterr()
    sweeps("clean")
    shown = capsys.readouterr().out
    assert ".checkpoint.pt.7.tmp" in shown.replace("\n", "")
    assert "backbone" not in shown
    assert "nothing was removed" in shown
    assert all((node.run.path / name).exists() for name in names)
    sweeps("clean", "--checkpoints", "--yes")
    assert not (node.run.path / "checkpoint.pt").exists()
    assert not (node.run.path / ".checkpoint.pt.7.tmp").exists()
    assert (node.run.path / "backbone.safetensors").exists()
    assert results == {file: file.read_bytes() for file in folder.glob("runs/*/*/result.json")}
    assert states(capsys) == ["done"] * 4


def submitted(graph: Graph, job: str = "7") -> Path:
    """As sweeps.slurm leaves a submission of all runs, an hour ago."""
    folder = Path(graph.nodes[0].root) / "jobs" / "20260101-000000-abcd"
    for name in ("code", "logs", "arrays"):
        (folder / name).mkdir(parents=True)
    (folder / "code" / "x.py").write_text("x = 1")
    rows = [
        {"run": f"{n.identity.stage}/{n.run.name}", "job": f"{job}_{i}", "name": "a", "time": time.time() - 3600}
        for i, n in enumerate(graph.nodes)
    ]
    (folder / "jobs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def sacct(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """A cluster on which task i of job 7 is in the i-th state."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()

    def say(job_states: list[str]) -> None:
        rows = [f"7_{i}|{state}|0:0|n1|{int(time.time()) - 3600}|Priority" for i, state in enumerate(job_states)]
        active = [f"7_{i}|{state}|Priority|n1|0" for i, state in enumerate(job_states) if state.endswith("ING")]
        for name, text in (("sacct", "\n".join(rows)), ("squeue", "\n".join(active))):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ncat <<'E'\n{text}\nE\n")
            (tmp_path / "bin" / name).chmod(0o755)

    return say


def test_states_of_jobs_become_states_of_runs(
    small: Graph, capsys: Capture, sacct: Callable[[list[str]], None]
) -> None:
    submitted(small)
    sacct(["RUNNING", "PENDING", "TIMEOUT", "CANCELLED by 0"])
    shown = status(capsys)
    assert [run["state"] for run in shown.values()] == ["running", "queued", "failed", "blocked"]
    assert shown["pretrain loss.alpha=1.0"]["failure"]["kind"] == "time_limit"  # type: ignore[index]
    assert shown["linear loss.alpha=0.5"]["job_reason"] == "Priority"
    assert sweeps("status") == 1
    assert "7_2" in capsys.readouterr().out
    sacct(["COMPLETED", "PENDING", "PENDING", "PENDING"])
    assert status(capsys)["pretrain loss.alpha=0.5"]["failure"]["kind"] == "lost"  # type: ignore[index]
    sacct(["PENDING", "PENDING", "PENDING", "PENDING"])
    assert sweeps("status") == 3


def test_active_jobs_keep_their_code(small: Graph, capsys: Capture, sacct: Callable[[list[str]], None]) -> None:
    folder = submitted(small)
    for job_states in (["RUNNING"] * 4, ["COMPLETED", "PENDING", "COMPLETED", "COMPLETED"], ["FAILED"] * 4):
        sacct(job_states)
        sweeps("clean", "--yes")
        assert (folder / "code" / "x.py").exists(), job_states
    assert sweeps("run", "--workers", "2") == 0
    sacct(["COMPLETED"] * 4)
    sweeps("clean", "--yes")
    assert not (folder / "code").exists()
    assert (folder / "jobs.jsonl").exists()


def test_if_slurm_does_not_answer_the_directories_count(
    small: Graph, capsys: Capture, sacct: Callable[[list[str]], None], tmp_path: Path
) -> None:
    submitted(small)
    sacct([])
    for name in ("sacct", "squeue"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
    with open_run(small.points[0].pretrain.root, small.points[0].pretrain.identity, {}):
        assert states(capsys)[0] == "running"
        assert sweeps("status") == 3
        assert "neither sacct nor squeue answers" in capsys.readouterr().out


def test_cancel_while_slurm_does_not_answer(
    small: Graph, capsys: Capture, sacct: Callable[[list[str]], None], tmp_path: Path
) -> None:
    """Runs that may wait do not begin when their jobs do; one that failed in its job keeps its failure."""
    folder = submitted(small)
    for name in ("sacct", "squeue"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "bin" / "scancel").write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/cancelled\n')
    (tmp_path / "bin" / "scancel").chmod(0o755)
    waiting, running, failed = small.points[0].evals["linear"], small.points[0].pretrain, small.points[1].pretrain
    with pytest.raises(ValueError), open_run(failed.root, failed.identity, {}):
        raise ValueError("no")
    running.run.path.mkdir(parents=True)
    (running.run.path / "lock").touch()
    beat = {"host": "n1", "pid": 1, "job": "8", "time": time.time(), "ended": False}
    (running.run.path / "heartbeat.json").write_text(json.dumps(beat))
    with pytest.raises(UserError, match="SLURM does not answer about 3 runs"):
        sweeps("cancel")
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "cancelled").exists()
    shown = status(capsys)
    assert shown["pretrain loss.alpha=1.0"]["failure"]["kind"] == "exception"  # type: ignore[index]
    assert is_cancelled(waiting.run, since=(folder / "jobs.jsonl").stat().st_mtime)  # as its job will ask
    sacct(["PENDING"] * 4)
    assert sweeps("cancel") == 0
    assert "cancelled 4 of" in capsys.readouterr().out
    assert (tmp_path / "cancelled").read_text() == "--quiet 7_0 7_1 7_2 7_3\n"


def test_gpus_are_chosen_from_the_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5,7")
    assert local.choose_gpus(None) == ["3", "5", "7"]
    assert local.choose_gpus(2) == ["3", "5"]
    assert local.choose_gpus(0) == [local.NO_GPU]
    with pytest.raises(UserError, match=r"--gpus = 4.*this machine has 3"):
        local.choose_gpus(4)


@pytest.mark.parametrize(("count", "seen"), [(2, ["3", "3", "5", "5"]), (0, ["", "", "", ""])])
def test_each_run_sees_one_gpu_or_none(
    count: int, seen: list[str], edit: Edit, small: Graph, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from rich.console import Console

    from sweeps.display import Display

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    edit(pretrain__grid={"loss.alpha": [0.0, 0.25, 0.5, 1.0]})
    (folder / "hold").touch()
    graph = build(load_study("study.yaml"))
    sweep = local.LocalSweep(graph, 4, Display(Console(file=io.StringIO())), (), local.choose_gpus(count))
    sweep.step()
    name, values = "CUDA_VISIBLE_DEVICES=", []
    for child in sweep.running:
        environment = os.fsdecode(Path(f"/proc/{child.process.pid}/environ").read_bytes()).split("\0")
        values += [line.removeprefix(name) for line in environment if line.startswith(name)]
    assert sorted(values) == seen
    (folder / "hold").unlink()
    assert sweep.run() == 0


def test_plan_counts_on_the_gpus_that_run_takes(small: Graph, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    cores = local.default_workers()
    for options, workers in (((), 3), (("--gpus", "2"), 2), (("--workers", "6"), 6), (("--gpus", "0"), cores)):
        assert sweeps("plan", "--cluster", "local", *options) == 0
        assert f"4 runs, {workers} at a time" in capsys.readouterr().out
