"""How settings are named for a reader: by the study's own labels, by the paper's symbols, and never as JSON."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Annotation

from analysis.figures import scores, tradeoff
from analysis.figures.base import STYLE
from analysis.labels import label, short_labels
from analysis.questions import find_row
from analysis.report_data import ReportData
from analysis.tables import results_table
from runtime.errors import UserError

NETWORKS: list[object] = [{"name": "scenes_resnet"}, {"name": "scenes_resnet", "args": {"width_factor": 0.5}}]


def named(make: Callable[..., ReportData], labels: dict[str, list[str]]) -> ReportData:
    data = make({"loss.alpha": [0.0, 1.0], "seed": [0]}, [
        (None, {"loss.alpha": a, "seed": 0}, 60 + a, 30 - a) for a in (0.0, 1.0)
    ])  # fmt: skip
    study = data.study.replace(report=data.study.report.replace(labels=labels))
    return ReportData(study, data.frame)


def test_labels_of_the_study_stand_in_tables_figures_and_questions(report_data_of: Callable[..., ReportData]) -> None:
    data = named(report_data_of, {"loss.alpha": ["local alone", "VICReg"]})
    table = results_table(data.summary)
    assert [line[0] for line in table.blocks[0]] == ["local alone", "VICReg"]
    assert "Δ to VICReg" in table.header
    with plt.style.context(STYLE):
        texts = [text.get_text() for text in tradeoff.draw(data).findobj(Annotation)]
        figure = scores.draw(data)
        plt.close("all")
    assert {"local alone", "VICReg"} <= set(texts)
    assert figure is not None
    ticks = [text.get_text().replace("\n", " ") for text in figure.axes[-1].get_xticklabels()]
    assert ticks == ["local alone", "VICReg"]
    assert find_row(data.summary, "VICReg").varied == 1.0
    assert find_row(data.summary, "loss.alpha = VICReg").varied == 1.0


def test_a_label_for_every_value(report_data_of: Callable[..., ReportData]) -> None:
    with pytest.raises(UserError, match=r"report.labels.loss.alpha.*2 labels, one for each"):
        named(report_data_of, {"loss.alpha": ["local alone"]})
    with pytest.raises(UserError, match=r"report.labels.*loss.alhpa.*did you mean loss.alpha"):
        named(report_data_of, {"loss.alhpa": ["local alone", "VICReg"]})


def test_no_json_and_the_symbols_of_the_paper(report_data_of: Callable[..., ReportData]) -> None:
    study = named(report_data_of, {}).study
    assert label(study, "model.backbone", NETWORKS[1]) == "scenes_resnet, width_factor = 0.5"
    keys = ["loss.alpha", "loss.num_matches", "train.duration", "model.backbone"]
    text = short_labels(study, keys, [0.9, "[20, 4]", "200 steps", '{"name": "scenes_resnet"}'])
    assert text == "α = 0.9, γ = [20, 4], 200 steps, scenes_resnet"
