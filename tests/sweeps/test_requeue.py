"""The requeue rule, as far as it can be tested without a scheduler; tests/slurm tests it on a real one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runtime.rundir import Run
from sweeps.failures import classify, clear_cancelled, mark_cancelled
from sweeps.slurm import commands as slurm_commands
from sweeps.slurm.job import reached_limit_idle, requeue_unless_pointless

Fake = Callable[..., Path]


@pytest.fixture
def array(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "run").mkdir()
    return {"part": "pretrain", "time": time.time(), "logs": str(tmp_path), "resources": {"minutes": 1}}


def requeued(array: dict[str, Any], started: float | None = None) -> bool:
    run = Run(Path(array["logs"]) / "run")
    return requeue_unless_pointless("7", array, run, time.time() if started is None else started)


@pytest.mark.parametrize(
    ("shown", "expected", "asked"),
    [
        ("RUNNING|None", True, True),
        ("TIMEOUT|TimeLimit", True, True),  # it ends because of its limit: that can still be undone
        ("COMPLETING|TimeLimit", True, True),
        ("PENDING|BeginTime", True, False),  # requeued by SLURM itself, after a preemption
        ("CANCELLED|None", False, False),
        ("COMPLETING|None", False, False),
        ("", True, True),  # the controller knows no such job: asking does no harm
    ],
)
def test_the_answer_of_the_controller_decides(
    shown: str, expected: bool, asked: bool, array: dict[str, Any], commands: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_commands, "UNKNOWN_JOB_QUERIES", 0 if not shown else 1)
    commands("squeue", f"{shown}\n")
    calls = commands("scontrol")
    assert requeued(array) == expected
    assert ("scontrol requeue 7" in (calls.read_text() if calls.exists() else "")) == asked


def test_a_controller_that_refuses_or_is_away(
    array: dict[str, Any], commands: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_commands, "REQUEUE_SECONDS", 0.0)
    commands("squeue", "RUNNING|None\n")
    commands("scontrol", code=1, error="Requested operation is presently disabled for job 7")
    assert not requeued(array)
    commands("scontrol", code=1, error="Job is pending execution for job 7")
    assert requeued(array)
    commands("scontrol", code=1, error="Unable to contact slurm controller (connect failure)")
    assert not requeued(array)
    calls = commands("squeue", code=1, error="slurm_load_jobs error: Unable to contact slurm controller")
    before = calls.read_text().count("scontrol")
    assert not requeued(array)
    assert calls.read_text().count("scontrol") == before


def test_a_cancelled_run_is_not_requeued_whatever_the_controller_says(array: dict[str, Any], commands: Fake) -> None:
    commands("squeue", "RUNNING|None\n")
    commands("scontrol")
    run = Run(Path(array["logs"]) / "run")
    mark_cancelled(run)
    assert not requeued(array)
    clear_cancelled(run)
    assert requeued(array)
    mark_cancelled(run)
    assert requeued(array | {"time": time.time() + 1})  # cancelled before this submission


def test_a_full_disk_does_not_keep_a_job_from_the_queue(array: dict[str, Any], commands: Fake) -> None:
    commands("squeue", "RUNNING|None\n")
    commands("scontrol")
    array["logs"] = f"{array['logs']}/missing"
    (Path(array["logs"]).parent / "missing").touch()  # nothing can be written below it
    run = Run(Path(array["logs"]).parent / "run")
    assert requeue_unless_pointless("7", array, run, time.time() - 50)


def test_a_job_that_reaches_its_limit_again_and_again_without_a_step_gives_up(array: dict[str, Any]) -> None:
    run = Run(Path(array["logs"]) / "run")

    def gives_up(done: int | None, after_seconds: float = 50) -> bool:
        (run.path / "heartbeat.json").write_text(json.dumps({"progress": {"done": done}}))
        return reached_limit_idle("7", array, run, time.time() - after_seconds)

    assert [gives_up(done) for done in (4, 5, 5, 6, 6)] == [False] * 5
    assert gives_up(6)
    failure = classify(run)
    assert failure.kind == "time_limit"
    assert "more minutes" in failure.last_line
    assert not gives_up(6, after_seconds=0)  # preempted soon after it began: that says nothing
