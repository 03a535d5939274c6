"""Checkpoints in the trade-off: labelled by name, coloured by method, joined by the column that the study names."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.text import Annotation

from analysis.figures import tradeoff
from analysis.figures.base import STYLE
from analysis.findings import answers, findings
from analysis.report_data import ReportData
from sweeps.study import CheckpointPart, EvalPart, PretrainPart, ReportPart, Study

ROWS = {  # name -> method, alpha, top-1, mIoU
    "VICRegL 0.9": ("VICRegL", 0.9, 71.2, 54.0),
    "VICReg": ("VICRegL", 1.0, 71.5, 47.8),
    "VICRegL 0.75": ("VICRegL", 0.75, 70.4, 55.9),
    "MoCo v2": ("MoCo", None, 67.5, 45.6),
}


def some_data(join: str | None) -> ReportData:
    parts = {
        name: CheckpointPart(weights="w.pth", arch="resnet50", method=method, columns={} if a is None else {"alpha": a})
        for name, (method, a, _, _) in ROWS.items()
    }
    evals = {name: EvalPart(stage=name, config="c.yaml") for name in ("linear", "segmentation")}
    report = ReportPart(vary="checkpoint", x="linear.top1", y="segmentation.miou", join=join)
    study = Study(name="zoo", question="?", checkpoints=parts, evals=evals, report=report)
    records = [
        {"control": None, "grid.checkpoint": name, "grid.method": method, "eval.name": stage, "eval.state": "done"}
        | {"pretrain.state": "done", f"score.{score}": value}
        for name, (method, _, top1, miou) in ROWS.items()
        for stage, score, value in (("linear", "top1", top1), ("segmentation", "miou", miou))
    ]
    return ReportData(study, pd.DataFrame(records))


def lines_and_texts(data: ReportData) -> tuple[list[list[float]], dict[str, str]]:
    with plt.style.context(STYLE):
        figure = tradeoff.draw(data)
        plt.close("all")
    steps = [list(line.get_xdata()) for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    texts = {text.get_text(): str(text.get_color()) for text in figure.findobj(Annotation) if text.get_text()}
    return [step for step in steps if len(step) == 2], texts


def test_points_of_a_method_are_joined_in_the_order_of_the_column() -> None:
    steps, texts = lines_and_texts(some_data("alpha"))
    assert steps == [[70.4, 71.2], [71.2, 71.5]]
    assert set(texts) == set(ROWS)
    assert texts["VICReg"] == texts["VICRegL 0.9"] != texts["MoCo v2"]


def test_checkpoints_of_all_methods_are_compared_in_one_sentence() -> None:
    assert answers(some_data(None).summary) == [
        "Of 4 checkpoints, the highest segmentation mIoU at VICRegL 0.75 (55.9), the highest linear top-1 at VICReg "
        "(71.5). One seed cannot support it."
    ]


def test_a_control_is_compared_with_what_the_study_pretrains_alone() -> None:
    """Random weights of its own network say nothing of a checkpoint's, which has another."""
    data = some_data(None)
    trained = PretrainPart(config="p.yaml", grid={"seed": [0]}, controls={"no pretraining": {}}, method="VICRegL")
    given = data.frame.assign(**{"grid.seed": 0})
    records = given[given["grid.checkpoint"] == "VICReg"]
    own = records.assign(**{"grid.checkpoint": "VICRegL", "grid.method": "VICRegL"})
    control = own.assign(
        control="no pretraining",
        **{"grid.checkpoint": None, "grid.method": None, "score.top1": 20.0, "score.miou": 10.0},
    )
    frame = pd.concat([given, own, control])
    summary = ReportData(data.study.replace(pretrain=trained), frame).summary
    against = [line for line in findings(summary) if "no pretraining" in line]
    assert against
    assert all(line.startswith("method = VICRegL") for line in against)
    assert not any("MoCo" in line for line in against)


def test_without_a_column_nothing_is_joined() -> None:
    assert lines_and_texts(some_data(None))[0] == []
