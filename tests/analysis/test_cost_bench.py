"""The cost of a step is measured for every setting in turns, and refused on a busy machine."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pytest

from analysis import cost_bench
from runtime.errors import UserError
from runtime.provenance import PROJECT

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


def test_a_busy_machine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0))
    with pytest.raises(UserError, match="Wait until the machine is idle, or measure with --busy"):
        cost_bench.main([STUDY, "--reports", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_no_rounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--rounds 0 --steps 20: expected 1 round"):
        cost_bench.main([STUDY, "--rounds", "0", "--reports", str(tmp_path)])
