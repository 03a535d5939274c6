"""A study of fake stages whose run directories the tests fill with scores of their choice."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "sweeps"))

import fake_study
import pandas as pd

from analysis.report_data import ReportData
from analysis.summary import Summary
from runtime import provenance
from runtime.rundir import open_run
from sweeps import stages
from sweeps.graph import Graph, Node, build
from sweeps.study import EvalPart, PretrainPart, ReportPart, Study, load_study


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with study.yaml and the configs that it names; it is the working directory."""
    monkeypatch.setattr(stages, "STAGES", fake_study.fake_registry())
    (tmp_path / "study.yaml").write_text(fake_study.STUDY.replace("pretrain.rank_pooled", "linear.top5"))
    (tmp_path / "pretrain.yaml").write_text("train: {duration: 4 steps}\n")
    (tmp_path / "linear.yaml").write_text("noise: 0.0\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


_provenance = functools.cache(provenance.collect)


@pytest.fixture(autouse=True)
def _one_provenance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking git once is enough for the hundreds of runs that these tests make."""
    found = _provenance() | {"commit": "c0ffee" * 6 + "0123", "dirty": False}  # also where there is no git
    monkeypatch.setattr(provenance, "collect", lambda: found)
    monkeypatch.setattr(provenance, "code", provenance.Code)


def write(node: Node, result: dict[str, object] | None) -> None:
    """Make the node's run directory as its stage would; None leaves it interrupted."""
    with open_run(node.root, node.identity, {}) as run:
        if result is not None:
            run.write_result(result)


@pytest.fixture
def fill(folder: Path) -> Callable[..., Graph]:
    """Make every run of study.yaml, with top1 and top5 as a function of (alpha or None, seed)."""

    def make(top1: Callable[[float | None, int], float], top5: Callable[[float | None, int], float]) -> Graph:
        graph = build(load_study("study.yaml"))
        for point in graph.points:
            alpha, seed = point.varied["loss.alpha"], point.varied["seed"]
            write(point.pretrain, {"seconds": 60.0, "rank_pooled": 5.0 + seed, "std_local": 0.5})
            scores = {"top1": top1(alpha, seed), "top5": top5(alpha, seed), "seconds": 7.0, "protocol": "fake"}
            write(point.evals["linear"], scores)
        return graph

    return make


def make_study(grid: dict[str, list[object]], baseline: object = 1.0) -> Study:
    evals = {
        "linear": EvalPart(stage="linear", config="l.yaml"),
        "segmentation": EvalPart(stage="segmentation", config="s.yaml"),
    }
    report = ReportPart(vary="loss.alpha", baseline=baseline, x="linear.top1", y="segmentation.miou")
    controls: dict[str, dict[str, object]] = {"no pretraining": {"train.duration": "0 steps"}}
    return Study(
        name="made",
        question="?",
        pretrain=PretrainPart(config="p.yaml", grid=grid, controls=controls),
        evals=evals,
        report=report,
    )


Rows = list[tuple[str | None, dict[str, object], float, float]]


@pytest.fixture
def report_data_of() -> Callable[..., ReportData]:
    """Make ReportData of rows (control, grid values, top-1, mIoU) without run directories; NaN: the run failed."""

    def make(grid: dict[str, list[object]], rows: Rows, baseline: object = 1.0) -> ReportData:
        study, records = make_study(grid, baseline), []
        for control, values, top1, miou in rows:
            point = {"control": control, "pretrain.state": "done", **{f"grid.{k}": v for k, v in values.items()}}
            for name, score, value in (("linear", "top1", top1), ("segmentation", "miou", miou)):
                state = "failed" if value != value else "done"
                records.append(point | {"eval.name": name, "eval.state": state, f"score.{score}": value})
        return ReportData(study, pd.DataFrame(records))

    return make


@pytest.fixture
def summary_of(report_data_of: Callable[..., ReportData]) -> Callable[..., Summary]:
    """The summary of such rows."""
    return lambda *arguments, **named: report_data_of(*arguments, **named).summary
