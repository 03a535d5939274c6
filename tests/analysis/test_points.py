"""Own and other people's points: drawn where they were measured as the study measures, else in the table alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from analysis import published
from analysis.__main__ import main
from analysis.figures import tradeoff
from analysis.report_data import ReportData
from runtime.errors import UserError
from sweeps.graph import Graph

POINTS = """name,score,data,protocol,value
Mine,linear.top1,imagenet,linear,61.5
Mine,segmentation.miou,voc,frozen linear,29.5
Other head,linear.top1,imagenet,linear,62
Other head,segmentation.miou,voc,fcn,50
"""


@pytest.fixture
def data(report_data_of: Callable[..., ReportData], tmp_path: Path) -> ReportData:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, 30 - a) for a in (0.0, 1.0)]
    made = report_data_of({"loss.alpha": [0.0, 1.0], "seed": [0]}, rows)
    names = made.frame["eval.name"]
    frame = made.frame.assign(
        **{
            "eval.data.name": names.map({"linear": "imagenet", "segmentation": "voc"}),
            "score.protocol": names.map({"linear": "linear", "segmentation": "frozen linear"}),
        }
    )
    (tmp_path / "points.csv").write_text(POINTS, encoding="utf-8")
    return ReportData(made.study, frame, points=published.read_points(tmp_path / "points.csv"))


def test_points_of_the_same_data_and_protocol_are_drawn(data: ReportData) -> None:
    assert data.points is not None
    assert [(name, point.mean) for name, point in tradeoff._points(data)] == [("Mine", (61.5, 29.5))]
    lines = published.points_table(data.points, data.frame).blocks[0]
    assert [line[-1] for line in lines] == ["yes", "yes", "yes", "no"]
    assert "other people's points" in tradeoff.caption(data)


def test_they_stay_beside_the_report(fill: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.report.FIGURES", ())
    fill(lambda a, s: 50.0, lambda a, s: 60.0)
    Path("mine.csv").write_text(POINTS, encoding="utf-8")
    main(["study.yaml", "--points", "mine.csv"])
    page = Path("reports/fake/README.md").read_text(encoding="utf-8")
    assert "| Other head | segmentation.miou |" in page
    main(["study.yaml"])
    assert Path("reports/fake/README.md").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POINTS.replace("protocol", "head", 1), "has no column protocol; expected name, score, data, protocol, value"),
        (POINTS.replace("61.5", "high"), "value 'high'; expected a number, a percentage as 71.5"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        published.read_points(tmp_path / "points.csv")


def test_a_row_of_another_network_replaces_no_published_table(monkeypatch: pytest.MonkeyPatch) -> None:
    known = published.published()
    mine = known.iloc[[0]].assign(method="Mine", backbone="scenes_resnet")
    monkeypatch.setattr(published, "published", lambda: pd.concat([known, mine], ignore_index=True))
    frame = pd.DataFrame({"pretrain.model.backbone.name": ["scenes_resnet"], "pretrain.data.name": ["imagenet"]})
    assert set(published.rows_beside(frame)["backbone"]) == {"resnet50"}
    assert not published.is_comparable(frame.assign(**{"eval.data.name": "imagenet"}))
