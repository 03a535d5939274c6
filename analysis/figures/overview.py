"""The trade-off of all reports together: a panel for each measurement, a colour and a marker for each study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.changes import comparable
from analysis.figures.base import OVER_MEAN, PAGE, STYLE, add_links, describe_axis, save
from analysis.report_data import ReportData
from analysis.summary import Row
from runtime.config import COLUMNS

NAME = "overview"  # of the files, in the folder of the reports
CAPTION = (
    "Each point is a setting's mean over its seeds; studies of one panel have the same data, protocol and settings of "
    "their evaluations. Studies may share trainings, so points that lie on one another may be the same runs."
)
ALT = "The two scores of every setting of every study"
_MARKERS = "os^Dv<>PX*"
_COLORS = 7  # of the style
# Columns of an evaluation that do not change what its score measures.
_NOT_MEASURED = {f"eval.{name}" for name in ("data.root", "data.on_bad_image", "seed", *COLUMNS)}


def write_overview(reports: Sequence[ReportData], folder: Path) -> None:
    """Write overview.png, .pdf and .svg."""
    with plt.style.context(STYLE):
        save(draw(reports), folder, NAME)


def draw(reports: Sequence[ReportData]) -> Figure:
    panels: dict[tuple[str, ...], list[ReportData]] = {}
    for data in reports:
        panels.setdefault(measurement(data), []).append(data)
    count = max(len(panels), 1)
    figure, grid = plt.subplots(count, 1, figsize=(PAGE, 0.3 + 2.7 * count), squeeze=False)
    for axes, studies in zip(grid[:, 0], panels.values(), strict=False):
        _draw_panel(axes, studies)
    return figure


def measurement(data: ReportData) -> tuple[str, ...]:
    """Return what the scores of the trade-off measure: their names, and the settings of their evaluations."""
    report, frame = data.study.report, data.frame
    sources = [score.partition(".")[0] for score in (report.x, report.y)]
    settings = [c for c in map(str, frame.columns) if c.startswith("eval.") and not c.startswith("eval.provenance.")]
    fields = ["score.protocol", *settings] if "score.protocol" in frame else settings
    rows = frame[frame["eval.name"].isin(sources)]
    values = {c: sorted({str(comparable(v)) for v in rows[c].dropna()}) for c in fields if c not in _NOT_MEASURED}
    return report.x, report.y, *(f"{c}={v}" for c, v in values.items() if v)


def _draw_panel(axes: Axes, studies: Sequence[ReportData]) -> None:
    report = studies[0].study.report
    describe_axis(axes.xaxis, report.x)
    describe_axis(axes.yaxis, report.y)
    # Later studies have smaller markers, so that points on one another stay visible.
    sizes = np.linspace(8.0, 4.5, len(studies)) if len(studies) > 1 else [4.5]
    for index, (data, size) in enumerate(zip(studies, sizes, strict=True)):
        rows = [(row, point) for row in data.summary.settings if (point := _point(row, report.x, report.y))]
        if not rows:
            continue
        style: dict[str, Any] = {
            "color": f"C{index % _COLORS}",
            "marker": _MARKERS[index % len(_MARKERS)],
            "linestyle": "",
            "markersize": size,
            "markeredgecolor": "white",
            "markeredgewidth": 0.4,
        }
        axes.plot(*zip(*(point for _, point in rows), strict=True), label=data.study.name, alpha=0.8, **style)
        add_links(axes, [point for _, point in rows], [link(data, row) for row, _ in rows], OVER_MEAN)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=6)


def link(data: ReportData, row: Row) -> str:
    """Return the link from the overview to a setting on the page of its report."""
    return f"{data.study.name}/index.html{row.mean_link or ''}"


def _point(row: Row, x: str, y: str) -> tuple[float, float] | None:
    first, second = row.scores[x].estimate, row.scores[y].estimate
    return None if first is None or second is None else (first.mean, second.mean)
