"""The studies that come with the project say what the project has."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.provenance import PROJECT
from sweeps.graph import build
from sweeps.study import load_study

STUDIES = sorted((PROJECT / "sweeps" / "studies").glob("*.yaml"))


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_can_be_planned(file: Path, tmp_path: Path) -> None:
    study = load_study(file)
    graph = build(study, [f"machine.runs={tmp_path}"])
    assert study.name == file.stem
    assert set(graph.states().values()) == {"new"}
    assert all(point.evals for point in graph.points)


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_opens_with_its_command_and_time(file: Path) -> None:
    command, *more = [line for line in file.read_text().splitlines() if line.startswith("#")]
    assert command.startswith(("# make", "# python -m sweeps"))
    assert any("minute" in line or "hour" in line for line in more)


def test_quickstart_is_the_alpha_study() -> None:
    study = load_study(PROJECT / "sweeps" / "studies" / "quickstart.yaml")
    assert study.pretrain.grid["loss.alpha"] == [0.0, 0.5, 0.75, 0.9, 1.0]
    assert study.report.baseline == 1.0
    assert "no pretraining" in study.pretrain.controls
