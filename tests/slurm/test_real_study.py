"""The real stages on the real scheduler: 6 pretrainings, each evaluated twice, one on two nodes and its evaluations by
two processes; while they run one is told to save and go back, others lose their node to a job of higher priority, and
slurmctld is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from cluster import Cluster
from sweep import CLUSTER, PROJECT, Sweep, is_measured

from analysis.results import load_results
from runtime.rundir import open_run
from sweeps.graph import build
from sweeps.study import load_study

pytestmark = pytest.mark.slurm

SMALL = {"scenes": {"train": 96, "val": 32}}
STUDY: dict[str, Any] = {
    "name": "real",
    "question": "Is it what this machine makes by itself?",
    "pretrain": {
        "config": "pretrain/configs/quickstart.yaml",
        "set": {
            "train.duration": "12 steps",
            "train.batch_size": 32,
            "optimizer.warmup": "2 steps",
            "model.expander": "32-32",
            "model.projector": "16-16",
            "diagnostics_images": 64,
            "data.scenes": SMALL["scenes"],
        },
        "grid": {"loss.alpha": [0.5, 0.9, 1.0], "seed": [0, 1]},
    },
    "evals": {
        "linear": {"stage": "linear", "config": "eval/configs/linear_scenes.yaml", "set": {"epochs": 2, "data": SMALL}},
        "knn": {"stage": "knn", "config": "eval/configs/knn_scenes.yaml", "set": {"neighbours": [3, 5], "data": SMALL}},
    },
    "report": {"vary": "loss.alpha", "baseline": 1.0, "x": "linear.top1", "y": "knn.top1"},
}
ONE: dict[str, Any] = {
    **STUDY,
    "pretrain": {**STUDY["pretrain"], "grid": {"loss.alpha": [0.5], "seed": [0]}},
    "report": {**STUDY["report"], "baseline": 0.5},
}
# Every run of a study in one process, one after the other: what the sweep's many processes are compared with.
ALONE = """
import importlib, sys
from sweeps.graph import build
from sweeps.study import load_study
for node in build(load_study("study.yaml"), ["machine.device=cpu"]).nodes:
    _, _, module, *arguments = node.argv(["machine.device=cpu"])
    importlib.import_module("pretrain.__main__" if module == "pretrain" else module).main(arguments)
"""


class RealSweep(Sweep):
    """With the stages of sweeps.stages."""

    def start(self, verb: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return self.python("-m", "sweeps", verb, "study.yaml", "machine.device=cpu", *arguments)

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        data = {"VICREGL_DATA": str(self.folder.parent / "data"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.cluster.environment | data,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def table(self, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
        """What analysis reads, without what tells of the machine."""
        monkeypatch.chdir(self.folder)
        frame = load_results("study.yaml")
        told = [name for name in frame.columns if is_measured(name) or "provenance" in name or name.endswith(".run")]
        return frame.drop(columns=told)


def alone(cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RealSweep:
    """The run of two processes by torchrun, and then all others in one process."""
    sweep = RealSweep(cluster, folder, study=ONE)
    monkeypatch.chdir(folder)  # paths of a study are told from where one is
    first = build(load_study("study.yaml"), ["machine.device=cpu"]).nodes[0].argv(["machine.device=cpu"])[1:]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *first)
    for arguments in (torchrun, ("-c", ALONE)):
        process = sweep.python(*arguments)
        shown, _ = process.communicate()
        assert process.returncode == 0, shown
        sweep.write("study.yaml", STUDY)
    return sweep


def test_the_tables_are_those_of_this_machine_alone(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = {**CLUSTER["all"], "memory_gb": 1.5}
    sweep = RealSweep(cluster, tmp_path / "slurm", study=ONE)
    sweep.write("cluster.yaml", {"all": resources, "pretrain": {"nodes": 2}, "evals": {"tasks": 2}})
    assert "3 runs queued now of 3" in sweep.submit()
    sweep.wait_for(lambda: list(sweep.folder.glob("runs/pretrain/*/run.yaml")), "it is at work on two nodes")
    (job,) = [line.split()[1] for line in sweep.jobs() if "-pretrain-" in line]
    cluster.run("scancel", "--signal=USR2", job)  # both processes save the same step, and it goes on from there
    sweep.wait_for(lambda: "goes back into the queue" in sweep.logs(), "it goes back")
    sweep.write("study.yaml", STUDY)  # five more of them, on one node each
    sweep.write("cluster.yaml", {"all": {**resources, "parallel": 2, "exclude": "n2"}})  # which other tests use too
    assert "15 runs queued now" in sweep.submit()

    def one_is_preempted() -> bool:
        if any(job.startswith("RUNNING") and "-pretrain-" in job for job in sweep.jobs()):
            cluster.take_nodes("-w", "n1", "--exclusive")
        return "DUE TO PREEMPTION" in sweep.logs()

    sweep.wait_for(one_is_preempted, "a pretraining is preempted")
    cluster.lose_controller()
    cluster.start_controller()
    sweep.wait_for_end(18)

    reference = alone(cluster, tmp_path / "alone", monkeypatch)
    assert sweep.results() == reference.results()
    table, expected = sweep.table(monkeypatch), reference.table(monkeypatch)
    assert len(table) == 12
    assert table["score.top1"].notna().all()
    pd.testing.assert_frame_equal(table, expected)
    of_two = [file for file in sweep.folder.glob("runs/pretrain/*/run.yaml") if "processes: 2" in file.read_text()]
    assert len(of_two) == 1
    attempts = yaml.safe_load(of_two[0].read_text())["attempts"]
    assert [attempt["processes"] for attempt in attempts] == [2, 2]
    shared = [file for file in sweep.folder.glob("runs/[kl]*/*/run.yaml") if "processes: 2" in file.read_text()]
    assert sorted(file.parts[-3] for file in shared) == ["knn", "linear"]
    assert all(Path(attempt["snapshot"]).is_relative_to(sweep.folder) for attempt in attempts)


def test_all_processes_of_a_pretraining_wait_for_another_that_holds_it(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then it is done in the same job, and its evaluations have kept their place in the queue."""
    sweep = RealSweep(cluster, tmp_path / "slurm", study=ONE)
    sweep.write(
        "cluster.yaml",
        {"all": {**CLUSTER["all"], "memory_gb": 1.5}, "pretrain": {"nodes": 2, "sbatch": {"hold": True}}},
    )
    sweep.submit()
    (job,) = [line.split()[1] for line in sweep.jobs() if "-pretrain-" in line]
    monkeypatch.chdir(sweep.folder)
    pretraining = build(load_study("study.yaml"), ["machine.device=cpu"]).nodes[0]
    with open_run(pretraining.root, pretraining.identity, {}):
        cluster.run("scontrol", "release", job)
        sweep.wait_for(lambda: sweep.logs().count("is in use by process") >= 2, "both processes have found it held")
    sweep.wait_for_end(3)
    assert "restart 1" not in sweep.logs()
