"""The trade-off: one score against the other, one point for each value of the varied key.

Published points lie on the study's own axes where the study measures the same as they do (`is_comparable`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import GREY, MANY_CURVES, Plot, curve_style, describe_axis
from analysis.figures.placement import Segment, place_labels
from analysis.labels import is_percent, number, short_named_values
from analysis.published import SOURCES, is_comparable, names, rows_beside
from analysis.report_data import ReportData
from analysis.statistics import Estimate
from analysis.summary import Row, Summary

MANY_LABELS = 40  # above this, labels could not be read; the table has the values
NEAR = 0.6  # of the curves' extent; a control further off would squeeze them, so it is named above the axes instead
MARGIN = 0.14  # of the extent, on each side, for labels


class Point(NamedTuple):
    x: Estimate
    y: Estimate

    def bars(self) -> list[Segment]:
        """Return the two error bars as lines."""
        x, y, width, height = self.x.mean, self.y.mean, self.x.half or 0.0, self.y.half or 0.0
        return [((x - width, y), (x + width, y)), ((x, y - height), (x, y + height))]


@dataclass(frozen=True)
class Curve:
    """The rows of one curve that have both scores, in order of the varied key."""

    name: str
    rows: list[Row]
    points: list[Point]

    @property
    def means(self) -> list[tuple[float, float]]:
        return [(point.x.mean, point.y.mean) for point in self.points]


def draw(data: ReportData) -> Figure:
    summary, report = data.summary, data.study.report
    curves = list(_curves(summary))
    figure, axes = plt.subplots()
    describe_axis(axes.xaxis, report.x)
    describe_axis(axes.yaxis, report.y)
    if not curves:
        axes.text(0.5, 0.5, "no run has both scores yet", transform=axes.transAxes, ha="center", color=GREY)
        return figure
    for index, curve in enumerate(curves):
        _draw_curve(axes, curve, *curve_style(index), summary)
    marked = _draw_published(axes, data)
    axes.margins(MARGIN)
    _draw_front(axes, pareto_front([mean for curve in curves for mean in curve.means]))
    marked = [*_draw_controls(axes, summary), *marked]
    if len(curves) > MANY_CURVES:
        figure.legend(loc="outside upper center", ncols=2, fontsize=5)
    elif len(curves) > 1:
        axes.legend(loc="best")
    if sum(len(curve.rows) for curve in curves) <= MANY_LABELS:
        _label_points(figure, axes, summary, curves, marked)
    return figure


def _point(row: Row, summary: Summary) -> Point | None:
    x, y = (row.scores[score].estimate for score in (summary.study.report.x, summary.study.report.y))
    return None if x is None or y is None else Point(x, y)


def _curves(summary: Summary) -> Iterator[Curve]:
    for group, rows in summary.groups():
        points = {id(row): point for row in rows if (point := _point(row, summary)) is not None}
        if points:
            name = short_named_values(summary.row_keys[1:], group)
            yield Curve(name, [row for row in rows if id(row) in points], list(points.values()))


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str, summary: Summary) -> None:
    """Draw the points, joined where the varied key is a number; the marker of the baseline is hollow."""
    x, y = zip(*curve.means, strict=True)
    if summary.varies_a_number:
        axes.plot(x, y, color=color, zorder=2)
    width, height = [p.x.half or 0.0 for p in curve.points], [p.y.half or 0.0 for p in curve.points]
    if any(width + height):
        axes.errorbar(x, y, xerr=width, yerr=height, fmt="none", ecolor=color, elinewidth=0.6, alpha=0.6, zorder=1)
    for row, mean in zip(curve.rows, curve.means, strict=True):
        fill = "white" if summary.baseline(row) is row else color
        axes.plot(*mean, marker, color=color, markerfacecolor=fill, zorder=3)
    axes.plot([], [], marker=marker, color=color, label=curve.name)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats in one score without losing in the other; by falling x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """Draw the front as steps: a straight line would claim settings between two points that nobody measured."""
    (left, _), (low, _) = axes.get_xlim(), axes.get_ylim()
    corners = [(front[0][0], low)]
    for (x, y), (following, _) in zip(front, [*front[1:], (left, 0.0)], strict=True):
        corners += [(x, y), (following, y)]
    x_values, y_values = zip(*corners, strict=True)
    dashes = (0, (4, 2))
    axes.plot(x_values, y_values, color="0.75", linewidth=0.7, linestyle=dashes, zorder=0, scalex=False, scaley=False)


def _draw_controls(axes: Axes, summary: Summary) -> list[tuple[str, Point]]:
    """Mark the controls near the curves and return them with their names; name the others above the axes."""
    report, limits = summary.study.report, (axes.get_xlim(), axes.get_ylim())
    near, far = [], []
    for row in summary.controls:
        point = _point(row, summary)
        if point is None:
            continue
        if all(_is_near(estimate.mean, *limit) for estimate, limit in zip(point, limits, strict=True)):
            style: dict[str, Any] = {"color": GREY, "ecolor": GREY, "elinewidth": 0.6, "capsize": 1.5, "zorder": 3}
            x, y = point
            axes.errorbar(x.mean, y.mean, xerr=x.half, yerr=y.half, fmt="x", **style)
            near.append((str(row.control), point))
        else:
            x_text, y_text = (number(e.mean, is_percent(s)) for e, s in zip(point, (report.x, report.y), strict=True))
            far.append(f"{row.control}: ({x_text}, {y_text}), off these axes")
    if far:
        axes.set_title("\n".join(dict.fromkeys(far)), loc="left", color=GREY, fontsize=6.5)
    return near


def _is_near(value: float, low: float, high: float) -> bool:
    return low - NEAR * (high - low) <= value <= high + NEAR * (high - low)


def _label_points(
    figure: Figure, axes: Axes, summary: Summary, curves: Sequence[Curve], marked: Sequence[tuple[str, Point]]
) -> None:
    vary = summary.study.report.vary
    labels = [(point.x.mean, point.y.mean, text, GREY) for text, point in marked]
    segments = [bar for _, point in marked for bar in point.bars()]
    for index, curve in enumerate(curves):
        segments += list(pairwise(curve.means)) if summary.varies_a_number else []
        color = curve_style(index)[0] if len(curves) > 1 else "0.1"
        for point, row in zip(curve.points, curve.rows, strict=True):
            segments += point.bars()
            labels.append((point.x.mean, point.y.mean, short_named_values([vary], [row.varied]), color))
    place_labels(figure, axes, labels, segments)


def _draw_published(axes: Axes, data: ReportData) -> list[tuple[str, Point]]:
    """Mark comparable published points, hollow and grey, and return them with their names."""
    report = data.study.report
    if not is_comparable(data.frame) or not {report.x, report.y} <= set(SOURCES):
        return []
    known = rows_beside(data.frame)
    rows = known.assign(x=known[SOURCES[report.x]], y=known[SOURCES[report.y]]).dropna(subset=["x", "y"])
    axes.plot(rows["x"], rows["y"], "D", color=GREY, markerfacecolor="white", markersize=3.5, zorder=2)
    points = [Point(Estimate(x, None, 1), Estimate(y, None, 1)) for x, y in zip(rows["x"], rows["y"], strict=True)]
    return [(f"{name} (published)", point) for name, point in zip(names(rows), points, strict=True)]


def caption(data: ReportData) -> str:
    report, rows = data.study.report, data.summary.rows
    text = f"Each point is one {report.vary}{', joined in its order' if data.summary.varies_a_number else ''}"
    if report.baseline is not None:
        text += "; the hollow one is the baseline"
    if any(len(row.scores[report.x].by_seed) > 1 for row in rows):
        text += "; bars are 95 % intervals over seeds"
    return f"{text}; the dashed steps are the Pareto front of the means."


PLOT = Plot(
    "tradeoff", draw, caption, lambda data: f"{data.study.report.y} against {data.study.report.x}", place="findings"
)
