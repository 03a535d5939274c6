"""run_stage: progress reaches the heartbeat, provenance the run directory; what is done is not done again."""

from pathlib import Path

import pytest

from runtime import provenance
from runtime.config import Config, MachineConfig
from runtime.errors import BusyError
from runtime.provenance import Code
from runtime.rundir import Identity, Run, open_run
from runtime.stage import run_stage
from runtime.world import World

WORKER = Path(__file__).with_name("stage_worker.py")


class StageConfig(Config):
    machine: MachineConfig = MachineConfig()


def test_progress_of_the_work_reaches_the_heartbeat(tmp_path) -> None:
    name = Identity("pretrain", "run", 1, {})

    def work(run, _device, _world):
        run.set_progress(3, 7, "steps")
        return {"score": 1.0}

    run_stage(StageConfig(machine=MachineConfig(device="cpu", runs=str(tmp_path))), name, work, World())
    run = Run.at(tmp_path, name)
    assert run.result() == {"score": 1.0}
    assert run.heartbeat()["progress"] == {"done": 3, "total": 7, "unit": "steps"}


def test_a_checkout_that_git_does_not_read_is_said(tmp_path, monkeypatch, capsys) -> None:
    failed = Code(no_commit="git does not answer: detected dubious ownership", version="1", sources="ab")
    monkeypatch.setattr(provenance, "code", lambda: failed)
    name = Identity("pretrain", "run", 1, {})
    run_stage(StageConfig(machine=MachineConfig(device="cpu", runs=str(tmp_path))), name, lambda *_: {}, World())
    assert "warning: git does not answer: detected dubious ownership" in capsys.readouterr().err
    attempt = Run.at(tmp_path, name).document()["attempts"][0]
    assert (attempt["commit"], attempt["dirty"], attempt["sources"]) == (None, None, "ab")


def test_what_another_process_finished_meanwhile_is_kept(tmp_path, monkeypatch, capsys) -> None:
    """It was not done at the first look; on NFS that look may be a minute old."""
    config = StageConfig(machine=MachineConfig(device="cpu", runs=str(tmp_path)))
    name = Identity("pretrain", "run", 1, {})
    run_stage(config, name, lambda *_: {"score": 1.0}, World())
    looks, result = iter([True]), Run.result
    monkeypatch.setattr(Run, "result", lambda run: None if next(looks, False) else result(run))
    run_stage(config, name, lambda *_: pytest.fail("computed again"), World())
    run = Run.at(tmp_path, name)
    assert run.result() == {"score": 1.0}
    assert run.count_attempts() == 1
    assert run.state() == "done"
    assert capsys.readouterr().out.splitlines()[-1] == f"{run.path} is done"


def test_every_process_of_a_run_that_another_holds_ends_with_the_same_code(tmp_path, ranks) -> None:
    """Each has a supervisor in a job, which tries again for this code alone."""
    name = Identity("pretrain", "run", 1, {})
    with open_run(tmp_path, name, {}):
        for code, _, errors in ranks.ended(ranks(2, WORKER, tmp_path)):
            assert code == BusyError.exit_code, errors
            assert "is in use by process" in errors
        assert Run.at(tmp_path, name).failure() is None
