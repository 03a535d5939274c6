"""A whole study with the real stages, made as small as they allow: killed, gone on with, reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from runtime import PROJECT

STUDY = """
base: {project}/sweeps/studies/quickstart.yaml
name: tiny
pretrain:
  set:
    train.duration: 60 steps
    train.batch_size: 32
    optimizer.warmup: 2 steps
    model.expander: 32-32
    model.projector: 16-16
    diagnostics_images: 64
    data.scenes: {{train: 96, val: 32}}
  grid: {{loss.alpha: [0.5, 1.0]}}
evals:
  linear: {{set: {{epochs: 2, data.scenes: {{train: 96, val: 32}}}}}}
  segmentation: {{set: {{iterations: 4, batch_size: 8, data.scenes: {{train: 96, val: 32}}}}}}
"""


def sweep(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "VICREGL_DATA": str(folder / "data")}
    argv = [sys.executable, "-m", *arguments, "machine.device=cpu"]
    return subprocess.Popen(
        argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_a_study_killed_half_way_goes_on_and_is_reported(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(STUDY.format(project=PROJECT))
    first = sweep(tmp_path, "sweeps", "run", "tiny.yaml", "--workers", "2")
    while not list(tmp_path.glob("runs/pretrain/*/heartbeat.json")):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.communicate()

    second = sweep(tmp_path, "sweeps", "run", "tiny.yaml", "--workers", "2")
    shown, _ = second.communicate()
    assert second.returncode == 0, shown
    assert "all 9 runs done" in shown

    status = sweep(tmp_path, "sweeps", "status", "tiny.yaml", "--json")
    assert json.loads(status.communicate()[0])["counts"] == {"done": 9}
    files = {file: file.read_bytes() for file in tmp_path.glob("runs/*/*/*") if file.is_file()}
    third = sweep(tmp_path, "sweeps", "run", "tiny.yaml")
    assert "nothing was left to do" in third.communicate()[0]
    assert files == {file: file.read_bytes() for file in tmp_path.glob("runs/*/*/*") if file.is_file()}

    report = sweep(tmp_path, "analysis", "tiny.yaml")
    shown, _ = report.communicate()
    assert report.returncode == 0, shown
    frame = pd.read_csv(tmp_path / "reports" / "tiny" / "results.csv")
    assert len(frame) == 6
    assert set(frame["eval.state"]) == {"done"}
    assert frame["score.top1"].notna().sum() == frame["score.miou"].notna().sum() == 3
    assert frame["pretrain.result.steps"].tolist() == [60, 60, 60, 60, 0, 0]
    assert "Gaps" not in (tmp_path / "reports" / "tiny" / "README.md").read_text()
