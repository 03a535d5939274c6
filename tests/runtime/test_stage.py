"""run_stage: progress reaches the heartbeat, provenance the run directory."""

from runtime import provenance
from runtime.config import Config, MachineConfig
from runtime.provenance import Code
from runtime.rundir import Identity, Run
from runtime.stage import run_stage
from runtime.world import World


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
