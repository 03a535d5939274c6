"""The table has every run, in whatever state, with its configs and scores; what is not there is a gap."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import load_results
from analysis.results import history_of, score_column
from runtime.errors import UserError
from runtime.rundir import open_run
from sweeps.graph import Graph, build
from sweeps.study import load_study


def top1(alpha: float | None, seed: int) -> float:
    return 10.0 if alpha is None else 50 + 20 * alpha + seed


def test_a_study_without_runs_is_all_gaps(folder: Path) -> None:
    frame = load_results("study.yaml")
    assert len(frame) == 8
    assert set(frame["pretrain.state"]) == set(frame["eval.state"]) == {"new"}
    assert score_column(frame, "linear.top1")["value"].isna().all()
    assert not (folder / "runs").exists()


def test_a_row_has_both_configs_and_the_scores(fill: Callable[..., Graph]) -> None:
    graph = fill(top1, lambda alpha, seed: 90.0)
    frame = load_results("study.yaml")
    assert len(frame) == len(graph.points)
    for point, (_, row) in zip(graph.points, frame.iterrows(), strict=True):
        assert row["pretrain.hash"] == point.pretrain.identity.hash
        assert row["eval.hash"] == point.evals["linear"].identity.hash
        assert row["eval.run"] == f"linear/{point.evals['linear'].run.name}"
        assert row["pretrain.loss.alpha"] == point.pretrain.identity.config["loss"]["alpha"]
        assert row["pretrain.train.duration"] == ("0 steps" if point.control else "4 steps")
        assert row["eval.noise"] == 0.0
        assert row["score.top1"] == top1(point.varied["loss.alpha"], point.varied["seed"])
        assert row["score.protocol"] == "fake"
        assert row["pretrain.result.rank_pooled"] == 5.0 + row["grid.seed"]
        assert pd.isna(row["control"]) == (point.control is None)
        assert pd.isna(row["grid.loss.alpha"]) == (point.control is not None)
        assert len(row["pretrain.provenance.commit"]) == 40
    own = score_column(frame, "pretrain.rank_pooled")
    assert list(own["value"]) == [5.0, 6.0] * 4


@pytest.mark.parametrize(
    ("content", "state", "score"),
    [
        (b'{"top1": 7', "interrupted", math.nan),
        (b"\xff\x00\x12", "interrupted", math.nan),
        (b"[1, 2]", "interrupted", math.nan),
        (b'{"top1": NaN}', "done", math.nan),
        (b'{"top1": "high"}', "done", math.nan),
        (b'{"other": 1.0}', "done", math.nan),
        (b'{"top1": 7.5}', "done", 7.5),
    ],
)
def test_a_damaged_result_is_a_gap(fill: Callable[..., Graph], content: bytes, state: str, score: float) -> None:
    graph = fill(top1, lambda alpha, seed: 90.0)
    (graph.points[3].evals["linear"].run.path / "result.json").write_bytes(content)
    frame = load_results("study.yaml")
    assert frame["eval.state"][3] == state
    assert score_column(frame, "linear.top1")["value"].tolist()[3] == pytest.approx(score, nan_ok=True)
    assert frame["score.top1"].drop(3).notna().all()


def test_states_of_a_study_that_is_half_way(folder: Path) -> None:
    graph = build(load_study("study.yaml"))
    first, second, third = graph.points[:3]
    with open_run("runs", first.pretrain.identity, {}) as run:
        run.write_result({"seconds": 1.0})
    with pytest.raises(ValueError), open_run("runs", second.pretrain.identity, {}):
        raise ValueError
    with open_run("runs", third.pretrain.identity, {}):
        frame = load_results("study.yaml")
    assert frame["pretrain.state"][:4].tolist() == ["done", "failed", "running", "new"]
    assert frame["eval.state"][:4].tolist() == ["new", "blocked", "new", "new"]


def test_a_damaged_run_yaml_loses_the_provenance_only(fill: Callable[..., Graph]) -> None:
    graph = fill(top1, lambda alpha, seed: 90.0)
    (graph.points[0].pretrain.run.path / "run.yaml").write_text("{")
    frame = load_results("study.yaml")
    assert pd.isna(frame["pretrain.provenance.commit"][0])
    assert frame["score.top1"].notna().all()


def test_a_study_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_results("no.yaml")


def test_a_metrics_file_that_a_kill_cut_off_loses_its_last_line_alone(fill: Callable[..., Graph]) -> None:
    graph = fill(top1, lambda alpha, seed: 90.0)
    whole, cut = graph.points[0].pretrain.run, graph.points[1].pretrain.run
    for run in (whole, cut):
        for step in (10, 20, 30):
            run.append_metrics({"step": step, "loss": step / 2})
    with open(cut.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "lo')
    history = history_of(graph)
    assert history.groupby("run")["step"].agg(list).tolist() == [[10, 20, 30]] * 2
    assert history["loss"].tolist() == [5.0, 10.0, 15.0] * 2
