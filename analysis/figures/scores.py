"""Both scores against the varied field, each on its own axis: where one rises and the other falls is seen at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.base import GREY, MANY_POINTS, Plot, describe_axis
from analysis.labels import symbol, value_text
from analysis.report_data import ReportData
from analysis.summary import Row, Summary

_LINES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
SHIFT = 0.006  # of the horizontal extent


def draw(data: ReportData) -> Figure | None:
    summary, report = data.summary, data.study.report
    scores = list(dict.fromkeys([report.x, report.y]))
    values = list(dict.fromkeys(row.varied for _, rows in summary.groups() for row in rows))
    if len(values) < 2 or not any(row.scores[score].by_seed for row in summary.settings for score in scores):
        return None
    positions = positions_of(values, summary.varies_a_number)
    figure, left = plt.subplots()
    for index, score in enumerate(scores):
        axes = left if index == 0 else left.twinx()
        _draw_score(axes, summary, score, f"C{index}", "os"[index], positions)
        _colour_axis(axes, score, f"C{index}", "left" if index == 0 else "right")
    left.set_xlabel(symbol(report.vary))
    left.set_xticks(list(positions.values()), [value_text(value) for value in positions])
    names = [summary.group_name(group) for group, _ in summary.groups()]
    if len(names) > 1:
        lines = [Line2D([], [], color=GREY, linestyle=_LINES[i % len(_LINES)], label=n) for i, n in enumerate(names)]
        figure.legend(handles=lines, loc="outside upper center", ncols=2, fontsize=6)
    return figure


def positions_of(values: list[object], numbers: bool) -> dict[object, float]:
    """Numbers at their place; names, and lists, side by side."""
    if numbers:
        return {value: float(value) for value in values}  # type: ignore[arg-type]
    return {value: float(index) for index, value in enumerate(values)}


def _draw_score(
    axes: Axes, summary: Summary, score: str, color: str, marker: str, positions: dict[object, float]
) -> None:
    # The two scores' bars stand beside each other, not one over the other.
    spread = max(positions.values()) - min(positions.values())
    shift = SHIFT * spread * (-1 if marker == "o" else 1)
    for index, (_, rows) in enumerate(summary.groups()):
        scored = [row for row in rows if row.scores[score].by_seed]
        x = [positions[row.varied] + shift for row in scored]
        found = [row.scores[score].estimate for row in scored]
        y, half = [f.mean for f in found if f], [f.half or 0.0 for f in found if f]
        line = _LINES[index % len(_LINES)] if summary.varies_a_number else ""
        axes.plot(x, y, marker=marker, color=color, linestyle=line, zorder=3)
        if any(half):
            axes.errorbar(x, y, yerr=half, fmt="none", ecolor=color, elinewidth=0.6, alpha=0.7, zorder=2)
        _draw_seeds(axes, scored, score, color, {value: x + shift for value, x in positions.items()})


def _draw_seeds(axes: Axes, rows: list[Row], score: str, color: str, positions: dict[object, float]) -> None:
    """The single runs behind each mean, small."""
    several = [row for row in rows if len(row.scores[score].by_seed) > 1]
    points = [(positions[row.varied], value) for row in several for value in row.scores[score].by_seed.values()]
    if points:
        many = len(points) > MANY_POINTS
        axes.plot(*np.array(points).T, ".", color=color, markersize=2.5, alpha=0.55, zorder=2, rasterized=many)


def _colour_axis(axes: Axes, score: str, color: str, side: str) -> None:
    describe_axis(axes.yaxis, score)
    axes.yaxis.label.set_color(color)
    axes.tick_params(axis="y", labelcolor=color)
    if side == "right":
        axes.spines["right"].set_visible(True)
        axes.grid(False)


def caption(data: ReportData) -> str:
    report = data.study.report
    text = f"Both scores against {report.vary}: {report.x} left (circles), {report.y} right (squares)"
    if any(len(row.scores[report.x].by_seed) > 1 for row in data.summary.rows):
        text += "; bars are 95 % intervals over seeds, dots the single runs"
    return f"{text}."


def alt(data: ReportData) -> str:
    return f"{data.study.report.x} and {data.study.report.y} against {data.study.report.vary}"


PLOT = Plot("scores", draw, caption, alt)
