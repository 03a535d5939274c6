"""Two tiny stages, a pretraining and an evaluation, that behave as told: what a sweep needs to be tested in seconds.

Run as a script it is the stage (python fake_stages.py pretrain --config F key=value ...). It uses the real
configs and run directories, but not torch, which alone would take two seconds a process.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    torch = ModuleType("torch")
    torch.cuda = SimpleNamespace(is_available=lambda: False)  # type: ignore[attr-defined]
    distributed = torch.distributed = ModuleType("torch.distributed")  # type: ignore[attr-defined]
    sys.modules |= {"torch": torch, "torch.distributed": distributed}

from runtime import config as configs
from runtime.config import Config, MachineConfig, require
from runtime.config_keys import flatten
from runtime.errors import UserError, run_command
from runtime.rundir import Identity, Run, open_run


class LossConfig(Config):
    alpha: float = 0.75
    local: str = "both"

    def check(self) -> None:
        require(0 <= self.alpha <= 1, "loss.alpha", self.alpha, "0 to 1")


class TrainConfig(Config):
    duration: str = "4 steps"
    step_seconds: float = 0.02


class FakePretrainConfig(Config):
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    options: dict[str, Any] = {}
    fail_at_alpha: float = -1.0  # the run of this alpha raises
    seed: int = 0
    machine: MachineConfig = MachineConfig()


class FakeEvalConfig(Config):
    noise: float = 0.0
    machine: MachineConfig = MachineConfig()


def pretrain_identity(config: FakePretrainConfig) -> Identity:
    return Identity("pretrain", f"fake-alpha{config.loss.alpha:g}", 1, configs.split_machine(config)[0])


def work_of(config: FakePretrainConfig) -> float:
    return float(config.train.duration.split()[0])


def eval_identity(config: FakeEvalConfig, parent_hash: str, at: str | None = None) -> Identity:
    values = configs.split_machine(config)[0] | ({} if at is None else {"at": at})
    return Identity("linear", f"fake-of-{parent_hash[:6]}", 1, values, parent_hash)


def train(run: Run, config: FakePretrainConfig) -> dict[str, Any]:
    """Keeps its step in a file, as a checkpoint would, so that a second attempt goes on where the first stopped."""
    file, steps = run.path / "step", int(config.train.duration.split()[0])
    first = int(file.read_text()) if file.exists() else 0
    with open(run.path / "steps.log", "a") as log:
        for step in range(first, steps):
            time.sleep(config.train.step_seconds)
            if config.loss.alpha == config.fail_at_alpha:
                print("a line before the end", flush=True)
                raise UserError("told to fail")
            log.write(f"{os.getpid()} {step}\n")
            log.flush()
            file.write_text(str(step + 1))
            run.set_progress(step + 1, steps, "steps")
            while Path("hold").exists():  # a test's way to catch it at work
                time.sleep(0.02)
    threads = os.environ.get("OMP_NUM_THREADS")
    return {"steps": steps, "seconds": steps * config.train.step_seconds, "threads": threads, "rank_pooled": 3.0}


def score(alpha: float, seed: int, trained: bool) -> float:
    return 10.0 if not trained else 50 + 20 * alpha + seed


def main(argv: list[str]) -> None:
    stage, *rest = argv
    parser = argparse.ArgumentParser()
    if stage == "linear":
        parser.add_argument("parent")
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args(rest)
    if stage == "pretrain":
        config = configs.load(FakePretrainConfig, arguments.config, arguments.overrides)
        with open_run(config.machine.runs, pretrain_identity(config), {"threads": config.machine.threads}) as run:
            run.write_result(train(run, config))
        return
    evaluation = configs.load(FakeEvalConfig, arguments.config, arguments.overrides)
    parent = Run(Path(arguments.parent)).document()
    values = flatten(parent["config"])
    with open_run(evaluation.machine.runs, eval_identity(evaluation, parent["hash"]), {}) as run:
        top1 = score(values["loss.alpha"], values["seed"], trained=values["train.duration"] != "0 steps")
        run.write_result({"top1": top1, "top5": 90.0, "seconds": 0.1, "protocol": "fake"})


if __name__ == "__main__":
    run_command(main)
