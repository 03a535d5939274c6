"""A study of light stages in a folder, submitted as a user does, and what became of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from cluster import Cluster, wait_until

PROJECT = Path(__file__).resolve().parents[2]
LAUNCHER = Path(__file__).with_name("light_sweeps.py")

STUDY: dict[str, Any] = {
    "name": "light",
    "question": "Does it end as if nothing had happened?",
    "pretrain": {
        "config": "pretrain.yaml",
        "set": {"train.duration": "20 steps"},
        "grid": {"loss.alpha": [0.0, 0.5, 1.0], "seed": [0]},
    },
    "evals": {
        "linear": {"stage": "linear", "config": "linear.yaml"},
        "twice": {"stage": "linear", "config": "linear.yaml", "set": {"rounds": 2}},
    },
    "report": {"vary": "loss.alpha", "baseline": 1.0, "x": "linear.top1", "y": "twice.top1"},
}
CLUSTER = {
    "all": {"gpus": 0, "cpus": 1, "memory_gb": 0.5, "minutes": 10, "partition": "low", "signal_seconds": 20},
}


def is_measured(key: str) -> bool:
    """Of the machine, not of the result."""
    return any(word in key for word in ("second", "memory", "wait"))


class Sweep:
    """Commands are run in `folder`, with the code of `project`."""

    def __init__(
        self, cluster: Cluster, folder: Path, project: Path = PROJECT, study: Mapping[str, Any] = STUDY
    ) -> None:
        self.cluster = cluster
        self.folder = folder
        self.project = project
        self.study = study
        folder.mkdir(parents=True, exist_ok=True)
        self.write("study.yaml", study)
        self.write("pretrain.yaml", {"machine": {"step_seconds": 0.1}})
        self.write("linear.yaml", {"rounds": 1})
        self.write("cluster.yaml", CLUSTER)

    def write(self, name: str, values: Mapping[str, Any]) -> None:
        (self.folder / name).write_text(yaml.safe_dump(dict(values), sort_keys=False))

    def start(self, verb: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        launcher = self.project / LAUNCHER.relative_to(PROJECT)
        argv = [sys.executable, str(launcher), verb, "study.yaml", *arguments]
        shell = self.cluster.environment | {"PYTHONPATH": str(self.project), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=shell | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, verb: str, *arguments: str, code: int = 0, **environment: str) -> str:
        process = self.start(verb, *arguments, **environment)
        shown, _ = process.communicate()
        assert process.returncode == code, shown
        return shown

    def submit(self, *arguments: str, **environment: str) -> str:
        options = ("--cluster", "slurm", "--cluster-config", "cluster.yaml")
        return self.command("submit", *options, *arguments, **environment)

    def jobs(self) -> list[str]:
        """State, number, name and reason of every job of this folder that the controller knows, one line each."""
        text = self.cluster.run("squeue", "-h", "-r", "--states=all", "-o", "%T %i %j %r")
        submissions = [folder.name for folder in self.folder.glob("runs/jobs/*/") if folder.is_dir()]
        return sorted(line for line in text.splitlines() if any(name in line for name in submissions))

    def pretraining(self) -> str:
        """The name of the job of its only submission's pretrainings."""
        (array,) = self.folder.glob("runs/jobs/*/arrays/*-pretrain-*.json")
        return array.stem

    def jobs_left(self) -> list[str]:
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        return [job for job in self.jobs() if not job.startswith(ended)]

    def results(self) -> dict[str, dict[str, Any]]:
        """result.json of every run that is done, without what tells of time and memory."""
        found = {}
        for file in sorted(self.folder.glob("runs/*/*/result.json")):
            values = json.loads(file.read_text())
            found[f"{file.parent.parent.name}/{file.parent.name}"] = {
                key: value for key, value in values.items() if not is_measured(key)
            }
        return found

    def wait_for_end(self, runs: int, hurry: bool = True) -> None:
        """Until that many runs are done; jobs that went back into the queue need not wait out their two minutes."""

        idle = 0

        def done() -> bool:
            nonlocal idle
            if hurry:
                self.hurry()
            idle = 0 if self.jobs_left() else idle + 1
            if len(self.results()) >= runs:
                return True
            if idle > 10:
                raise TimeoutError("no job is left")
            return False

        try:
            wait_until(done, f"{runs} runs are done", 1200, poll=0.5)
        except TimeoutError as error:
            raise TimeoutError(
                f"{error}; done: {list(self.results())}; jobs: {self.jobs()}\n{self.logs(1500)}"
            ) from error

    def hurry(self) -> None:
        """A requeued job may begin two minutes later; from now on at once."""
        waiting = self.cluster.run("squeue", "-h", "-r", "-t", "PD", "-o", "%i %r", check=False)
        for line in waiting.splitlines():
            job, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                self.cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def steps(self) -> dict[str, list[int]]:
        """Every step that was done of each pretraining, in order, by whichever job."""
        logs = sorted(self.folder.glob("runs/pretrain/*/steps.log"))
        return {log.parent.name: [int(line.split()[2]) for line in log.read_text().splitlines()] for log in logs}

    def logs(self, most: int = 1_000_000) -> str:
        """The ends of what the jobs printed."""
        files = sorted(self.folder.glob("runs/jobs/*/logs/*_log.*"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-most:]}" for file in files)

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what)


def study(name: str = "light", steps: int = 20, evals: int = 2, **grid: list[Any]) -> dict[str, Any]:
    """STUDY with another length, fewer evaluations or another grid, as study(steps=8, seed=[0, 1])."""
    keys = {"alpha": "loss.alpha"}
    pretrain = {
        "config": "pretrain.yaml",
        "set": {"train.duration": f"{steps} steps"},
        "grid": {**STUDY["pretrain"]["grid"], **{keys.get(key, key): values for key, values in grid.items()}},
    }
    report = {"vary": "loss.alpha", "baseline": pretrain["grid"]["loss.alpha"][-1], "x": "linear.top1"}
    names = ["linear", "twice"][:evals]
    chosen = {name: STUDY["evals"][name] for name in names}
    report["y"] = f"{names[-1]}.top1"
    return {**STUDY, "name": name, "pretrain": pretrain, "evals": chosen, "report": report}


def undisturbed(cluster: Cluster, folder: Path, study: Mapping[str, Any] = STUDY) -> dict[str, dict[str, Any]]:
    """Results of the same study, run here by `sweeps run` without any scheduler."""
    local = Sweep(cluster, folder, study=study)
    local.write("pretrain.yaml", {"machine": {"step_seconds": 0.0}})
    local.command("run", "--workers", "2")
    return local.results()
