"""A pretraining and an evaluation that need no torch: what a scheduler's whims are tried on.

As a script it is the stage: python light_stages.py pretrain --config F key=value. Its state is a chain of hashes, one
link a step, so that a step left out, done twice or done from a wrong state shows in the result. It takes `runtime`
from where Python finds it: in a job, from the submission's copy.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parent))  # where Python is told not to look
    import no_torch  # noqa: F401

import runtime
from runtime import config as configs
from runtime.config import Config, MachineConfig
from runtime.errors import NotFiniteError, UserError, run_command
from runtime.rundir import Identity, Run, open_run
from runtime.stopping import stop_request


class LossConfig(Config):
    alpha: float = 0.75


class TrainConfig(Config):
    duration: str = "4 steps"


class LightMachineConfig(MachineConfig):
    step_seconds: float = 0.1
    save_steps: int = 1  # 0: only when it is asked to stop
    hold: str = ""  # while a file of that name is there, no step ends
    trouble: str = ""  # a folder: a file in it, named by an alpha, has the word of what that alpha's run does


class LightPretrainConfig(Config):
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    seed: int = 0
    machine: LightMachineConfig = LightMachineConfig()


class LightEvalConfig(Config):
    rounds: int = 1
    machine: LightMachineConfig = LightMachineConfig()


def pretrain_identity(config: LightPretrainConfig) -> Identity:
    slug = f"light-alpha{config.loss.alpha:g}-seed{config.seed}"
    return Identity("pretrain", slug, 1, configs.split_machine(config)[0])


def work_of(config: LightPretrainConfig) -> float:
    return float(config.train.duration.split()[0])


def eval_identity(config: LightEvalConfig, parent_hash: str) -> Identity:
    return Identity("linear", f"light-of-{parent_hash[:6]}", 1, configs.split_machine(config)[0], parent_hash)


def link(chain: str, step: int) -> str:
    return hashlib.sha256(f"{chain} {step}".encode()).hexdigest()


def misbehave(folder: str, alpha: float) -> None:
    """As the word of that alpha says; nothing where there is none."""
    file = Path(folder) / f"{alpha:g}"
    word = file.read_text() if folder and file.exists() else ""
    if word == "raise":
        raise RuntimeError("told to raise\nand to say more")
    if word == "nan":
        raise NotFiniteError("the loss is not finite at step 1: loss = nan")
    if word == "allocate":
        bytearray(10**17)
    if word == "grow":  # until the cluster ends it for its memory
        held = []
        while True:
            held.append(b"x" * 50_000_000)
            time.sleep(0.1)


def train(run: Run, config: LightPretrainConfig) -> dict[str, Any]:
    """Goes on where its checkpoint says; steps.log has every step that was ever done."""
    checkpoint, steps = run.path / "checkpoint", int(config.train.duration.split()[0])
    chain, first = f"alpha {config.loss.alpha} seed {config.seed}", 0
    if checkpoint.exists():
        text, chain = checkpoint.read_text().split()
        first = int(text)
    machine = config.machine
    with stop_request() as stop:
        for step in range(first, steps):
            time.sleep(machine.step_seconds)
            if step == 1:
                misbehave(machine.trouble, config.loss.alpha)
            while machine.hold and Path(machine.hold).exists() and not stop:
                time.sleep(0.05)
            chain = link(chain, step)
            with open(run.path / "steps.log", "a") as log:
                log.write(f"{os.environ.get('SLURM_JOB_ID')} {os.getpid()} {step}\n")
            run.set_progress(step + 1, steps, "steps")
            if stop or (machine.save_steps and (step + 1) % machine.save_steps == 0):
                temporary = checkpoint.with_suffix(".new")
                temporary.write_text(f"{step + 1} {chain}")
                temporary.replace(checkpoint)
            if stop:
                print(f"saved at step {step + 1}", flush=True)
                stop.leave()
    return {"steps": steps, "chain": chain, "rank_pooled": int(chain[:4], 16) / 100, "seconds": 1.0}


def evaluate(parent: Run, config: LightEvalConfig) -> dict[str, Any]:
    trained = parent.result()
    if trained is None:
        raise UserError(f"{parent.path} is {parent.state()}, and only a pretraining that is done can be evaluated")
    chain = trained["chain"]
    for number in range(config.rounds):
        chain = link(chain, number)
    return {"top1": int(chain[:4], 16) / 1000, "top5": 90.0, "seconds": 0.1, "protocol": "light"}


def main(argv: list[str]) -> None:
    stage, *rest = argv
    parser = argparse.ArgumentParser()
    if stage == "linear":
        parser.add_argument("parent")
    parser.add_argument("--config")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args(rest)
    print(f"{stage} with the code of {Path(runtime.__file__).parent.parent}", flush=True)
    if stage == "pretrain":
        config = configs.load(LightPretrainConfig, arguments.config, arguments.overrides)
        name = pretrain_identity(config)
        if Run.at(config.machine.runs, name).result() is None:
            with open_run(config.machine.runs, name, {}) as run:
                run.write_result(train(run, config))
        return
    evaluation = configs.load(LightEvalConfig, arguments.config, arguments.overrides)
    parent = Run(Path(arguments.parent))
    with open_run(evaluation.machine.runs, eval_identity(evaluation, parent.document()["hash"]), {}) as run:
        run.write_result(evaluate(parent, evaluation))


if __name__ == "__main__":
    run_command(main)
