"""The supervisor of a job, as far as it can be tested without a scheduler; tests/slurm tests it on a real one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_local import wait_until

from runtime import PROJECT
from runtime.errors import Unfinished
from runtime.rundir import Identity, Run, open_run
from sweeps.failures import classify
from sweeps.slurm import job
from sweeps.slurm.job import Supervisor

# Its job gets a signal, and passes it on, while it imports. It saves then, names the signal and ends with 75.
STAGE = """
import os, signal, sys, time
os.kill(os.getppid(), signal.SIGUSR2)
while signal.SIGUSR2 not in signal.sigpending():
    time.sleep(0.01)
def stop(number, frame):
    print("saved after", signal.Signals(number).name, flush=True)
    sys.exit(75)
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR2))
time.sleep(3600)
"""


@pytest.fixture
def array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "run").mkdir()
    common = {"part": "pretrain", "time": time.time(), "cwd": str(tmp_path), "container": "", "environment": {}}
    return {**common, "code": str(PROJECT), "logs": str(tmp_path), "resources": {"minutes": 1}}


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    """A job blocks the stop signals for good; the processes of later tests would inherit that."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def supervise(array: dict[str, Any], *argv: str) -> Supervisor:
    path = Path(array["logs"]) / "run"
    return Supervisor(array, {"run": "pretrain/x", "path": str(path), "argv": [sys.executable, *argv]})


def test_a_signal_while_the_run_imports_is_not_lost(
    array: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.setattr(job, "requeue", lambda number: asked.append(number))  # no scheduler here
    assert supervise(array, "-c", STAGE).run() == Unfinished.exit_code
    assert "saved after SIGUSR2" in capfd.readouterr().out
    assert asked == ["7"]


def test_the_job_ends_with_the_exit_code_of_the_run(array: dict[str, Any]) -> None:
    assert supervise(array, "-c", "").run() == 0
    assert supervise(array, "-c", "raise SystemExit(3)").run() == 3
    assert supervise(array, "-c", "import os; os.kill(os.getpid(), 9)").run() == 128 + 9
    run = Run(Path(array["logs"]) / "run")
    assert classify(run).kind == "lost"  # recorded by the supervisor, which saw it end


# Tries again sooner than a job would.
SUPERVISE = """
import json, os, sys
from sweeps.slurm import job
job.BUSY_WAIT_SECONDS = 0.5
array, task = json.loads(sys.argv[1])
raise SystemExit(job.Supervisor(array, task, int(os.environ["RANK"])).run())
"""


@pytest.mark.slow
def test_all_processes_of_a_run_wait_for_another_that_holds_it(array: dict[str, Any], tmp_path: Path, ranks) -> None:
    worker = PROJECT / "tests" / "runtime" / "stage_worker.py"
    name = Identity("pretrain", "run", 1, {})  # of the worker
    task = {"run": "pretrain/run", "path": str(Run.at(tmp_path, name).path)}
    task |= {"argv": [sys.executable, str(worker), str(tmp_path)]}
    started = tmp_path / "started"
    with open_run(tmp_path, name, {}):
        both = ranks(2, "-c", SUPERVISE, json.dumps([array, task]))
        wait_until(lambda: started.exists() and len(started.read_text().split()) == 4)  # each for the second time
    for code, _, errors in ranks.ended(both):
        assert code == 0, errors
    assert Run.at(tmp_path, name).result() == {"score": 1.0}


def test_the_submission_s_code_comes_first(array: dict[str, Any], tmp_path: Path) -> None:
    """Before the working directory, PYTHONPATH and the editable install of this environment."""
    for folder in ("code", "cwd", "path"):
        (tmp_path / folder / "runtime").mkdir(parents=True)
        (tmp_path / folder / "runtime" / "__init__.py").write_text(f"NAME = {folder!r}\n")
    array |= {"code": str(tmp_path / "code"), "cwd": str(tmp_path / "cwd"), "container": "env TOLD=yes"}
    supervisor = supervise(array, "-c", "import os, runtime; print(runtime.NAME, os.environ['TOLD'])")
    environment = supervisor._environment() | {"PYTHONSAFEPATH": "1"}
    environment["PYTHONPATH"] += f":{tmp_path / 'path'}"
    done = subprocess.run(
        supervisor._argv(), cwd=array["cwd"], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["code", "yes"]
