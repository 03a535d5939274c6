"""Pretraining by srun on two nodes: its processes find each other by SLURM's variables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cluster import Cluster

from runtime.rundir import Run

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_two_processes_on_two_nodes(cluster: Cluster, image_folder: Path, tmp_path: Path) -> None:
    said = cluster.run(
        *("srun", "--nodes=2", "--ntasks=2", "--mem=1000", f"--chdir={ROOT}", "--export=ALL,OMP_NUM_THREADS=1"),
        *(sys.executable, "-m", "pretrain", "--config=pretrain/configs/quickstart.yaml", "data.name=imagefolder"),
        *(f"data.root={image_folder}", "model.expander=32-32", "model.projector=16-16", "train.batch_size=16"),
        *("train.duration=3 steps", "optimizer.warmup=1 steps", "diagnostics_images=16", f"machine.runs={tmp_path}"),
        "machine.device=cpu",  # the cluster's GPUs are none
    )
    assert said.count("2 processes") == 1  # one of them speaks
    assert "Warning" not in said
    (path,) = (tmp_path / "pretrain").iterdir()
    result = Run(path).result()
    assert result is not None
    assert result["steps"] == 3
    assert Run(path).document()["attempts"][0]["processes"] == 2
