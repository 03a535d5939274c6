"""200 times kill -9, at any moment of a pretraining's life: each time it ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

KILLS = 200
CLOCKS = ("time", "second", "data_wait", "memory", "seconds_per_step")  # of a run, parts of the names of its figures
OPTIONS = [
    "--config=pretrain/configs/quickstart.yaml",
    "data.name=imagefolder",
    "model.backbone.args={width_factor: 0.25}",
    "model.expander=32-32",
    "model.projector=16-16",
    "train.batch_size=4",
    "train.duration=16 steps",
    "optimizer.warmup=2 steps",
    "diagnostics_images=8",
    "machine.threads=1",
    "machine.save_minutes=0",
    "machine.log_steps=1",
]


def same(a: Any, b: Any) -> bool:
    """Bit for bit, whatever holds them."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def without_clocks(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not any(clock in key for clock in CLOCKS)}


def left_by(run: Path) -> dict[str, Any]:
    """Everything that a run writes, except times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "checkpoint": without_clocks(torch.load(run / "checkpoint.pt", weights_only=True)),
        "result": without_clocks(json.loads((run / "result.json").read_text())),
        "rows": [without_clocks(row) for row in rows],
        "files": sorted(file.name for file in run.iterdir() if not file.name.startswith("attempt-")),  # their diffs
    }


@pytest.mark.slow
def test_killed_two_hundred_times_the_weights_are_the_same(tmp_path: Path, image_folder: Path) -> None:
    script = Path(__file__).with_name("kill_many.py")
    argv = [sys.executable, script, tmp_path, str(KILLS), "0", "--", *OPTIONS, f"data.root={image_folder}"]
    root = script.parents[2]
    done = subprocess.run(argv, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["killed"] == KILLS
    # Steps 1 to 16: some fell into each quarter of the run's life.
    assert {(step - 1) // 4 for step in report["steps"] if step is not None} == {0, 1, 2, 3}, report["steps"]
    undisturbed, *others = [tmp_path / "done" / str(n) for n in range(len(list((tmp_path / "done").iterdir())))]
    assert len(others) >= 3
    weights, left = (undisturbed / "backbone.safetensors").read_bytes(), left_by(undisturbed)
    for run in others:
        assert (run / "backbone.safetensors").read_bytes() == weights, run
        assert same(left_by(run), left), run
