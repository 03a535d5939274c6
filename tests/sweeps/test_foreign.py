"""Somebody else's runs: looking at them simply works and leaves no trace; what would write says who keeps it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import PROJECT, provenance
from runtime.rundir import open_run
from sweeps.graph import Graph

NOBODY = 65534
LAUNCH = (
    f"import sys; sys.path[:0] = [{str(PROJECT)!r}, {str(PROJECT / 'tests' / 'sweeps')!r}]\n"
    "import fake_study, importlib\n"
    "from runtime.errors import run_command\n"
    "from sweeps import stages\n"
    "stages.STAGES = fake_study.fake_registry()\n"
    "run_command(importlib.import_module(sys.argv.pop(1) + '.__main__').main)"
)
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def graph(folder: Path, make_graph: Callable[[], Graph], monkeypatch: pytest.MonkeyPatch) -> Graph:
    """Two of the study's points are done, one failed, the others are not begun; a background sweep was there."""
    monkeypatch.setattr(provenance, "collect", lambda: {"commit": "c" * 40, "dirty": False})
    graph = make_graph()
    for point in graph.points[:2]:
        for node in (point.pretrain, point.evals["linear"]):
            with open_run("runs", node.identity, {}) as run:
                run.write_result({"top1": 60.0, "rank_pooled": 3.0, "seconds": 1.0, "protocol": "fake"})
    with pytest.raises(ValueError), open_run("runs", graph.points[2].pretrain.identity, {}):
        raise ValueError("as it happens")
    (graph.points[2].pretrain.run.path / "log.txt").write_text("the last line\n")
    (folder / "runs" / "jobs" / "local" / "fake").mkdir(parents=True)
    (folder / "runs" / "jobs" / "local" / "fake" / "lock").touch()
    return graph


@pytest.fixture
def colleague(folder: Path) -> Command:
    """`python -m <package>` on the study by somebody else: its files are nobody's, and root's powers are laid down."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, for files of another user")

    def run(package: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        folder.chmod(0o755)
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        powerless = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
        argv = [*powerless, sys.executable, "-c", LAUNCH, package, *map(str, arguments)]
        return subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)

    return run


def traces(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(f): (f.stat().st_mtime_ns, f.stat().st_size) for f in [folder, *folder.rglob("*")]}


@pytest.mark.slow
def test_looking_at_somebody_elses_runs_simply_works(
    folder: Path, graph: Graph, colleague: Command, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mine = tmp_path_factory.mktemp("mine")
    working = graph.points[3].pretrain
    with open_run("runs", working.identity, {}):
        before = traces(folder)
        for code, words in (
            (1, ("sweeps", "status", "study.yaml")),
            (0, ("sweeps", "plan", "study.yaml", "--json")),
            (0, ("sweeps", "logs", "study.yaml", graph.points[2].pretrain.identity.hash)),
            (0, ("analysis", "compare", "study.yaml", "0.0", "0.5")),
            (0, ("analysis", "best", "study.yaml", "--by", "top1")),
            (0, ("analysis", "study.yaml", "--reports", mine)),
        ):
            done = colleague(*words)
            assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
            if words[1] == "status":
                assert "1 running" in done.stdout
                assert "1 failed" in done.stdout
        assert (mine / "fake" / "index.html").is_file()
        # The heartbeat of the run at work is the only thing that may have changed meanwhile.
        beating, after = working.run.path.resolve(), traces(folder)
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        assert changed <= {str(beating), str(beating / "heartbeat.json")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sweeps", "run", "study.yaml"), "machine.runs=FOLDER"),
        (("sweeps", "submit", "study.yaml", "--cluster", "local"), "machine.runs=FOLDER"),
        (("sweeps", "retry", "study.yaml", "--cluster", "local"), "machine.runs=FOLDER"),
        (("sweeps", "cancel", "study.yaml"), "let its owner cancel it"),
        (("analysis", "study.yaml"), "--reports FOLDER"),
    ],
)
def test_what_would_write_says_who_keeps_it_out(
    folder: Path, graph: Graph, colleague: Command, words: tuple[str, ...], told: str
) -> None:
    with open_run("runs", graph.points[3].pretrain.identity, {}):
        done = colleague(*words)
    line, *more = done.stderr.splitlines()
    assert more == [], done.stderr
    assert done.returncode == 2
    assert line.startswith("error: cannot write ")
    assert "belongs to nobody, and you are root (mode drwxr-xr-x)" in line
    assert told in line
    assert not (folder / "reports").exists()


@pytest.mark.slow
def test_runs_that_may_not_be_read_are_one_line(folder: Path, graph: Graph, colleague: Command) -> None:
    (folder / "runs" / "pretrain").chmod(0o700)
    for words in (("sweeps", "status", "study.yaml"), ("analysis", "best", "study.yaml", "--by", "top1")):
        done = colleague(*words)
        line, *more = done.stderr.splitlines()
        assert more == [], done.stderr
        assert line.startswith(f"error: cannot read {Path('runs') / 'pretrain'}")
        assert "belongs to nobody, and you are root (mode drwx------)" in line
