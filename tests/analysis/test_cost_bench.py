"""The cost of a step is measured for every setting in turns, and refused on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml

from analysis import cost_bench
from runtime import PROJECT, provenance
from runtime.errors import UserError

STUDY = str(PROJECT / "sweeps" / "studies" / "smoke.yaml")


@pytest.mark.slow
def test_every_setting_in_turns(tmp_path: Path) -> None:
    cost_bench.main([STUDY, "--rounds", "2", "--steps", "4", "--busy", "--reports", str(tmp_path)])
    frame = pd.read_csv(tmp_path / "smoke" / "cost.csv")
    settings = frame["grid.loss.alpha"].tolist()
    half = len(settings) // 2
    assert settings[:half] == settings[half:] == list(dict.fromkeys(settings))
    assert frame["round"].tolist() == [0] * half + [1] * half
    assert (frame["milliseconds"] > 0).all()
    assert (frame["gigabytes"] > 0).all()
    (commit,) = frame["commit"].unique()
    assert commit.startswith(provenance.collect()["commit"])


def test_checkpoints_beside_pretrainings_have_no_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = "0" * 64  # with it, planning needs no file
    study = {
        "name": "both",
        "question": "?",
        "pretrain": {"config": "pretrain/configs/quickstart.yaml", "grid": {"loss.alpha": [0.5, 1.0]}},
        "checkpoints": {"given": {"weights": "given.pth", "arch": "resnet18", "sha256": sha256}},
        "evals": {"linear": {"stage": "linear", "config": "eval/configs/linear_scenes.yaml"}},
        "report": {"vary": "checkpoint", "x": "linear.top1", "y": "pretrain.probe_top1"},
    }
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(study))
    measured: list[str] = []
    cost = {cost_bench.TIME: 1.0, cost_bench.MEMORY: 1.0}
    monkeypatch.setattr(cost_bench, "_run", lambda node, steps, machine: measured.append(node.stage.name) or cost)
    frame = cost_bench.measure(str(tmp_path / "both.yaml"), 1, 2)
    assert measured == ["pretrain", "pretrain"]
    assert frame["grid.checkpoint"].tolist() == ["alpha 0.5", "alpha 1.0"]


def test_a_busy_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0))
    with pytest.raises(UserError, match="Wait until the machine is idle, or measure with --busy"):
        cost_bench.main([STUDY, "--reports", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_no_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds 0 --steps 20: expected 1 round"):
        cost_bench.main([STUDY, "--rounds", "0", "--reports", str(tmp_path)])
