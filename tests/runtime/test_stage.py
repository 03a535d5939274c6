"""What carry_out hands to a stage's work."""

from dataclasses import dataclass, field

from runtime.config import MachineConfig
from runtime.distributed import World
from runtime.rundir import Identity, Run
from runtime.stage import carry_out


@dataclass
class Config:
    machine: MachineConfig = field(default_factory=MachineConfig)


def test_the_progress_that_work_tells_reaches_the_heartbeat(tmp_path) -> None:
    name = Identity("pretrain", "run", 1, {})

    def work(run, _device, _world):
        run.progress(3, 7, "steps")
        return {"score": 1.0}

    carry_out(Config(MachineConfig(device="cpu", runs=str(tmp_path))), name, work, World())
    run = Run.at(tmp_path, name)
    assert run.result() == {"score": 1.0}
    assert run.heartbeat()["progress"] == {"done": 3, "total": 7, "unit": "steps"}
