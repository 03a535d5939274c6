"""Both scores against the varied key, each on its own axis: this shows where one rises and the other falls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.base import (
    GREY,
    MANY_POINTS,
    Plot,
    describe_axis,
    describe_varied_axis,
    varied_positions,
)
from analysis.report_data import ReportData
from analysis.summary import Row, Summary

_LINES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
SHIFT = 0.006  # of the horizontal extent, between the bars of the two scores


def draw(data: ReportData) -> Figure | None:
    summary, report = data.summary, data.study.report
    scores = list(dict.fromkeys([report.x, report.y]))
    positions = varied_positions(data)
    if len(positions) < 2 or not any(row.scores[score].by_seed for row in summary.settings for score in scores):
        return None
    figure, left = plt.subplots()
    shift = SHIFT * (max(positions.values()) - min(positions.values()))
    _draw_score(left, summary, scores[0], "C0", "o", {value: x - shift for value, x in positions.items()})
    _colour_axis(left, scores[0], "C0")
    if len(scores) == 2:
        right = left.twinx()
        _draw_score(right, summary, scores[1], "C1", "s", {value: x + shift for value, x in positions.items()})
        _colour_axis(right, scores[1], "C1")
        right.spines["right"].set_visible(True)
        right.grid(False)
    describe_varied_axis(left, data, positions)
    names = [summary.group_name(group) for group, _ in summary.groups()]
    if len(names) > 1:
        lines = [Line2D([], [], color=GREY, linestyle=_LINES[i % len(_LINES)], label=n) for i, n in enumerate(names)]
        figure.legend(handles=lines, loc="outside upper center", ncols=2, fontsize=6)
    return figure


def _draw_score(
    axes: Axes, summary: Summary, score: str, color: str, marker: str, positions: Mapping[object, float]
) -> None:
    for index, (_, rows) in enumerate(summary.groups()):
        scored = [row for row in rows if row.scores[score].by_seed]
        x = [positions[row.varied] for row in scored]
        estimates = [row.scores[score].estimate for row in scored]
        y, half = [e.mean for e in estimates if e], [e.half or 0.0 for e in estimates if e]
        line = _LINES[index % len(_LINES)] if summary.varies_a_number else ""
        axes.plot(x, y, marker=marker, color=color, linestyle=line, zorder=3)
        if any(half):
            axes.errorbar(x, y, yerr=half, fmt="none", ecolor=color, elinewidth=0.6, alpha=0.7, zorder=2)
        _draw_seeds(axes, scored, score, color, positions)


def _draw_seeds(axes: Axes, rows: list[Row], score: str, color: str, positions: Mapping[object, float]) -> None:
    """Draw the single seeds of each mean as small dots."""
    several = [row for row in rows if len(row.scores[score].by_seed) > 1]
    points = [(positions[row.varied], value) for row in several for value in row.scores[score].by_seed.values()]
    if points:
        x, y = zip(*points, strict=True)
        many = len(points) > MANY_POINTS
        axes.plot(x, y, ".", color=color, markersize=2.5, alpha=0.55, zorder=2, rasterized=many)


def _colour_axis(axes: Axes, score: str, color: str) -> None:
    describe_axis(axes.yaxis, score)
    axes.yaxis.label.set_color(color)
    axes.tick_params(axis="y", labelcolor=color)


def caption(data: ReportData) -> str:
    report = data.study.report
    text = f"Both scores against {report.vary}: {report.x} left (circles), {report.y} right (squares)"
    if any(len(row.scores[report.x].by_seed) > 1 for row in data.summary.rows):
        text += "; bars are 95 % intervals over seeds, dots the single runs"
    return f"{text}."


PLOT = Plot(
    "scores",
    draw,
    caption,
    lambda data: f"{data.study.report.x} and {data.study.report.y} against {data.study.report.vary}",
    place="findings",
    order=1,
)
