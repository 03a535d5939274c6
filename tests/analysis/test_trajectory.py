"""The trade-off over training: which points a line has, and when there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.figures import FIGURES, trajectory, write
from analysis.report_data import ReportData
from tests.analysis.conftest import make_study

GRID: dict[str, list[object]] = {"loss.alpha": [0.0, 1.0], "seed": [0, 1]}
MOMENTS = ["100 steps", "20 steps"]


def top1(alpha: float, seed: int, step: int) -> float:
    return 20 + 30 * alpha + seed + step / 10


def miou(alpha: float, seed: int, step: int) -> float:
    return 10 - 5 * alpha - seed + step / 20


def record(control: str | None, alpha: float | None, seed: int, step: int, end: int) -> list[dict[str, object]]:
    at = "" if step == end else f" at {step} steps"
    point = {"control": control, "grid.loss.alpha": alpha, "grid.seed": seed, "pretrain.state": "done"}
    point |= {"pretrain.train.duration": f"{end} steps", "eval.state": "done"}
    scores = (("linear", "top1", top1), ("segmentation", "miou", miou))
    return [point | {"eval.name": n + at, f"score.{s}": value(alpha or 0.0, seed, step)} for n, s, value in scores]


@pytest.fixture
def data() -> ReportData:
    """Two alphas with two seeds, checkpoints of 20, 100 and 200 steps, and a control without training."""
    rows = [(None, alpha, seed, step, 200) for alpha in (0.0, 1.0) for seed in (0, 1) for step in (100, 20, 200)]
    rows += [("no pretraining", None, seed, 0, 0) for seed in (0, 1)]
    return ReportData(make_study(GRID), pd.DataFrame([line for row in rows for line in record(*row)]))  # type: ignore[arg-type]


def test_a_line_has_the_checkpoints_in_order_and_the_end(data: ReportData) -> None:
    settings, controls = trajectory.trajectories(data)
    assert [made.row.varied for made in settings] == [0.0, 1.0]
    for made in settings:
        alpha = made.row.varied
        assert len(made.seeds) == 2
        expected = [[t, top1(alpha, 0, t) + 0.5, miou(alpha, 0, t) - 0.5] for t in (20, 100, 200)]
        np.testing.assert_allclose(made.mean, expected)
    assert [made.row.control for made in controls] == ["no pretraining"]
    np.testing.assert_allclose(controls[0].mean, [[0, 20.5, 9.5]])


def test_a_seed_that_lacks_a_checkpoint_does_not_bend_the_mean(data: ReportData) -> None:
    frame = data.frame
    lacking = (frame["eval.name"] == "linear at 100 steps") & (frame["grid.seed"] == 1)
    assert lacking.sum() == 2
    frame.loc[lacking, ["score.top1", "eval.state"]] = [np.nan, "failed"]
    settings, _ = trajectory.trajectories(data)
    assert [sorted(map(len, made.seeds.values())) for made in settings] == [[2, 3], [2, 3]]
    np.testing.assert_allclose(settings[0].mean[:, 1], [top1(0.0, 0, t) for t in (20, 100, 200)])


def test_the_figure_and_its_words(data: ReportData, tmp_path: Path) -> None:
    assert trajectory.PLOT in FIGURES
    assert write(trajectory.PLOT, data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"trajectory.{kind}" for kind in ("pdf", "png", "svg")]
    first = (tmp_path / "trajectory.png").read_bytes()
    write(trajectory.PLOT, data, tmp_path)
    assert (tmp_path / "trajectory.png").read_bytes() == first
    text = trajectory.caption(data)
    assert "from the checkpoint after 20 steps to the end of training, along its arrow" in text
    assert "thin lines are single seeds" in text
    assert text.endswith("cross: no pretraining.")


def test_a_checkpoint_that_is_given_has_no_line(data: ReportData, tmp_path: Path) -> None:
    """It has no training, and as many scores as it likes."""
    given = data.frame[data.frame["grid.loss.alpha"] == 0.0].assign(**{"pretrain.train.duration": np.nan})
    rest = data.frame[data.frame["grid.loss.alpha"] != 0.0]
    both = ReportData(data.study, pd.concat([given, rest], ignore_index=True))
    assert [made.row.varied for made in trajectory.trajectories(both)[0]] == [1.0]
    assert write(trajectory.PLOT, both, tmp_path)


def test_curves_have_a_line_style_each(data: ReportData, tmp_path: Path) -> None:
    frames = [data.frame.assign(**{"grid.loss.local": kind}) for kind in ("both", "none")]
    study = make_study(GRID | {"loss.local": ["both", "none"]})
    both = ReportData(study, pd.concat(frames, ignore_index=True))
    assert len(trajectory.trajectories(both)[0]) == 4
    assert write(trajectory.PLOT, both, tmp_path)
    assert "local = none" in (tmp_path / "trajectory.svg").read_text(encoding="utf-8")


def test_a_study_without_moments_has_no_such_figure(data: ReportData, tmp_path: Path) -> None:
    frame = data.frame[~data.frame["eval.name"].str.contains(" at ")]
    assert not write(trajectory.PLOT, ReportData(data.study, frame), tmp_path)
    one = data.frame[~data.frame["eval.name"].str.startswith("segmentation at ")]  # of one score alone
    assert not write(trajectory.PLOT, ReportData(data.study, one), tmp_path)


def test_a_report_that_has_no_evaluation_yet(report_data_of: Callable[..., ReportData], tmp_path: Path) -> None:
    made = report_data_of(GRID, [(None, {"loss.alpha": 0.0, "seed": 0}, float("nan"), 1.0)])
    assert not write(trajectory.PLOT, made, tmp_path)
