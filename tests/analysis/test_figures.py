"""The figure: its size, its text, what its labels cover, and that the same results make the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image

from analysis.figures import tradeoff, write
from analysis.figures.base import STYLE
from analysis.figures.placement import MARKER_RADIUS, place_labels
from analysis.report_data import ReportData

ReportDataOf = Callable[..., ReportData]
ALPHAS = [0.0, 0.5, 0.75, 0.9, 1.0]


def some_report_data(
    report_data_of: ReportDataOf, seeds: int = 3, control: tuple[float, float] = (19.0, 10.0)
) -> ReportData:
    random = np.random.default_rng(1)
    rows = [
        (None, {"loss.alpha": a, "seed": s}, 60 + 5 * a + random.normal(), 30 - 8 * a * a + random.normal())
        for a in ALPHAS
        for s in range(seeds)
    ]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, *control) for s in range(seeds)]
    return report_data_of({"loss.alpha": ALPHAS, "seed": list(range(seeds))}, rows)


def test_print_size_and_real_text(report_data_of: ReportDataOf, tmp_path: Path) -> None:
    assert write(tradeoff.PLOT, some_report_data(report_data_of), tmp_path)
    with Image.open(tmp_path / "tradeoff.png") as image:
        width, height = image.size
        assert (width, height) == (680, 540)
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    content = (tmp_path / "tradeoff.pdf").read_bytes()
    assert b"/Type0" in content  # TrueType, whole: text that can be searched and edited
    assert b"/Type3" not in content
    assert ">α = 0.75</text>" in (tmp_path / "tradeoff.svg").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tradeoff.pdf", "tradeoff.png", "tradeoff.svg"]


def test_the_same_results_make_the_same_bytes(report_data_of: ReportDataOf, tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        write(tradeoff.PLOT, some_report_data(report_data_of), tmp_path)
        contents.append([path.read_bytes() for path in sorted(tmp_path.iterdir())])
    assert contents[0] == contents[1]


def texts(data: ReportData) -> list[str]:
    with plt.style.context(STYLE):
        figure = tradeoff.draw(data)
        found = [text.get_text() for text in figure.findobj(Annotation)]
        found.append(figure.axes[0].get_title(loc="left"))
        plt.close(figure)
    return [text for text in found if text]


def test_every_point_is_labelled_and_joined_in_order(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)
    assert {"α = 0", "α = 0.5", "α = 0.75", "α = 0.9", "α = 1"} <= set(texts(data))
    with plt.style.context(STYLE):
        figure = tradeoff.draw(data)
        lines = [line for line in figure.axes[0].lines if line.get_zorder() == 3]
        rows = sorted(data.summary.settings, key=lambda row: row.varied)
        expected = [np.mean(list(row.scores["linear.top1"].by_seed.values())) for row in rows]
        assert [x for line in lines for x in line.get_xdata()] == pytest.approx(np.repeat(expected, 2)[1:-1])
        plt.close(figure)


def test_a_control_far_away_is_told_and_a_near_one_drawn(report_data_of: ReportDataOf) -> None:
    assert "no pretraining: (19.0, 10.0), off these axes" in texts(some_report_data(report_data_of))
    assert "no pretraining" in texts(some_report_data(report_data_of, control=(59.0, 20.0)))


def test_a_control_that_is_the_baseline_is_drawn_however_far(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)
    far = ReportData(data.study.replace(report=data.study.report.replace(baseline="no pretraining")), data.frame)
    assert "no pretraining" in texts(far)
    assert "the cross named no pretraining is the baseline" in tradeoff.caption(far)
    assert "the hollow one is the baseline" in tradeoff.caption(data)
    matches: list[object] = [[4, 4], [20, 4]]  # lists, which nothing can look up by hash
    rows = [(None, {"loss.alpha": str(value), "seed": 0}, 60.0, 30.0) for value in matches]
    assert "the hollow one" in tradeoff.caption(report_data_of({"loss.alpha": matches, "seed": [0]}, rows, [20, 4]))


def test_a_study_without_scores_still_has_a_figure(report_data_of: ReportDataOf, tmp_path: Path) -> None:
    nan = float("nan")
    rows = [(None, {"loss.alpha": a, "seed": 0}, nan, 1.0) for a in ALPHAS]
    assert write(tradeoff.PLOT, report_data_of({"loss.alpha": ALPHAS, "seed": [0]}, rows), tmp_path)
    with Image.open(tmp_path / "tradeoff.png") as image:
        assert image.size == (680, 540)


def overlap(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else shared.width * shared.height


@pytest.mark.parametrize("seed", range(6))
def test_labels_cover_no_point_and_no_label(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = np.cumsum(random.normal(size=(6, 2)), axis=0)
    labels = [(x, y, f"α = {i / 10}", "black") for i, (x, y) in enumerate(points)]
    with plt.style.context(STYLE):
        figure, axes = plt.subplots()
        axes.plot(*points.T)
        axes.margins(0.14)
        boxes = place_labels(figure, axes, labels, list(pairwise(points)))
        pixels = axes.transData.transform(points)
        radius = MARKER_RADIUS * figure.dpi / 72
        markers = [Bbox.from_extents(*(p - radius), *(p + radius)) for p in pixels]
        drawn = [text.get_window_extent() for text in axes.findobj(Annotation)]
        frame = axes.get_window_extent()
        plt.close(figure)
    for box, text in zip(boxes, drawn, strict=True):
        assert box.x0 == pytest.approx(text.x0, abs=1.5)  # where it says is where it is
        assert box.y0 == pytest.approx(text.y0, abs=1.5)
        assert frame.x0 <= text.x0
        assert text.x1 <= frame.x1
    assert sum(overlap(a, b) for a, b in combinations(drawn, 2)) == 0
    assert sum(overlap(a, b) for a in drawn for b in markers) == 0
