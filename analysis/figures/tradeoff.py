"""The trade-off curve: one score against another, a point for each value of the varied field; numbers are joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import GREY, MANY_CURVES, MANY_LABELS, MARKERS, Plot, describe_axis, empty
from analysis.labels import is_percent, number, symbol, value_text
from analysis.placement import place_labels
from analysis.published import SOURCES, is_comparable, rows_beside
from analysis.report_data import ReportData
from analysis.statistics import Estimate
from analysis.summary import Row, Summary

# A control further from the curve than this share of its extent would squeeze it; it is told in words instead.
NEAR = 0.6


@dataclass(frozen=True)
class Curve:
    """One line of the plot: rows with both scores, in order of the varied field."""

    name: str
    rows: list[Row]
    x: list[Estimate]
    y: list[Estimate]


def draw(data: ReportData) -> Figure:
    """The figure, in whatever style is in force."""
    summary = data.summary
    report = summary.study.report
    curves = _curves(summary)
    if not curves:
        return empty(report.x, report.y, "no run has both scores yet")
    figure, axes = plt.subplots()
    describe_axis(axes.xaxis, report.x)
    describe_axis(axes.yaxis, report.y)
    for index, curve in enumerate(curves):
        _draw_curve(axes, curve, f"C{index % 7}", MARKERS[index % 7], summary)
    overlay = _draw_published(axes, data)
    front = pareto_front([(x.mean, y.mean) for curve in curves for x, y in zip(curve.x, curve.y, strict=True)])
    axes.margins(0.14)
    _draw_front(axes, front)
    controls = _draw_controls(axes, summary)
    if len(curves) > MANY_CURVES:
        figure.legend(loc="outside upper center", ncols=2, fontsize=5)
    elif len(curves) > 1:
        axes.legend(loc="best")
    if sum(len(curve.rows) for curve in curves) <= MANY_LABELS:
        _label_points(figure, axes, summary, curves, [*controls, *overlay])
    return figure


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in one score without losing in the other; by falling x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """The edge of what is reached: steps, because nothing was measured between two points; shaded beyond nothing."""
    (left, _), (low, _) = axes.get_xlim(), axes.get_ylim()
    corners = [(front[0][0], low)]
    for (x, y), (following, _) in zip(front, [*front[1:], (left, 0.0)], strict=True):
        corners += [(x, y), (following, y)]
    x_values, y_values = zip(*corners, strict=True)
    axes.plot(
        x_values, y_values, color="0.75", linewidth=0.7, linestyle=(0, (4, 2)), zorder=0, scalex=False, scaley=False
    )


def _draw_published(axes: Axes, data: ReportData) -> list[tuple[str, Estimate, Estimate]]:
    """Published points, hollow and grey, where the study measures the same; elsewhere they have their own figure."""
    report = data.study.report
    if not is_comparable(data.frame) or not {report.x, report.y} <= set(SOURCES):
        return []
    rows = rows_beside(data.frame).dropna(subset=[SOURCES[report.x], SOURCES[report.y]])
    found = []
    for record in rows.to_dict("records"):
        x, y = record[SOURCES[report.x]], record[SOURCES[report.y]]
        axes.plot(x, y, "D", color=GREY, markerfacecolor="white", markersize=3.5, zorder=2)
        alpha = "" if record["alpha"] != record["alpha"] else f", α = {value_text(record['alpha'])}"
        found.append((f"{record['method']}{alpha} (published)", Estimate(x, None, 1), Estimate(y, None, 1)))
    return found


def _point(row: Row, summary: Summary) -> tuple[Estimate, Estimate] | None:
    x, y = (row.scores[score].estimate for score in (summary.study.report.x, summary.study.report.y))
    return None if x is None or y is None else (x, y)


def _curves(summary: Summary) -> list[Curve]:
    curves = []
    for group, rows in summary.groups():
        points = [(row, point) for row in rows if (point := _point(row, summary)) is not None]
        named = zip(map(symbol, summary.row_keys[1:]), group, strict=True)
        name = ", ".join(f"{key} = {value_text(value)}" for key, value in named)
        if points:
            curves.append(Curve(name, [r for r, _ in points], [p[0] for _, p in points], [p[1] for _, p in points]))
    return curves


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str, summary: Summary) -> None:
    """The baseline's marker is hollow."""
    x, y = [p.mean for p in curve.x], [p.mean for p in curve.y]
    if summary.varies_a_number:
        axes.plot(x, y, color=color, zorder=2)
    wide, high = [p.half or 0.0 for p in curve.x], [p.half or 0.0 for p in curve.y]
    if any(wide + high):
        axes.errorbar(x, y, xerr=wide, yerr=high, fmt="none", ecolor=color, elinewidth=0.6, alpha=0.6, zorder=1)
    for row, a, b in zip(curve.rows, x, y, strict=True):
        fill = "white" if summary.baseline(row) is row else color
        axes.plot(a, b, marker, color=color, markerfacecolor=fill, zorder=3)
    axes.plot([], [], marker=marker, color=color, label=curve.name)


def _draw_controls(axes: Axes, summary: Summary) -> list[tuple[str, Estimate, Estimate]]:
    """Mark controls near the curve and return their names and points; tell the others in a line above the axes."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    near, far = [], []
    for row in summary.controls:
        point = _point(row, summary)
        if point is None:
            continue
        x, y = point[0].mean, point[1].mean
        inside = left - NEAR * (right - left) <= x <= right + NEAR * (right - left)
        inside &= low - NEAR * (high - low) <= y <= high + NEAR * (high - low)
        if inside:
            _mark_control(axes, *point)
            near.append((str(row.control), *point))
        else:
            report = summary.study.report
            where = f"{number(x, is_percent(report.x))}, {number(y, is_percent(report.y))}"
            far.append(f"{row.control}: ({where}), off these axes")
    if far:
        axes.set_title("\n".join(dict.fromkeys(far)), loc="left", color=GREY, fontsize=6.5)
    return near


def _mark_control(axes: Axes, x: Estimate, y: Estimate) -> None:
    axes.errorbar(
        x.mean,
        y.mean,
        xerr=x.half,
        yerr=y.half,
        fmt="x",
        color=GREY,
        ecolor=GREY,
        elinewidth=0.6,
        capsize=1.5,
        zorder=3,
    )


def _label_points(
    figure: Figure,
    axes: Axes,
    summary: Summary,
    curves: Sequence[Curve],
    controls: Sequence[tuple[str, Estimate, Estimate]],
) -> None:
    name = symbol(summary.study.report.vary)
    labels = [(x.mean, y.mean, text, GREY) for text, x, y in controls]
    segments = [bar for _, x, y in controls for bar in _bars(x, y)]
    for index, curve in enumerate(curves):
        points = [(x.mean, y.mean) for x, y in zip(curve.x, curve.y, strict=True)]
        segments += list(pairwise(points)) if summary.varies_a_number else []
        color = f"C{index % 7}" if len(curves) > 1 else "0.1"
        for x, y, row in zip(curve.x, curve.y, curve.rows, strict=True):
            segments += _bars(x, y)
            labels.append((x.mean, y.mean, f"{name} = {value_text(row.varied)}", color))
    place_labels(figure, axes, labels, segments)


def _bars(x: Estimate, y: Estimate) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The two error bars of a point, as lines."""
    a, b, wide, high = x.mean, y.mean, x.half or 0.0, y.half or 0.0
    return [((a - wide, b), (a + wide, b)), ((a, b - high), (a, b + high))]


def caption(data: ReportData) -> str:
    """What the figure shows, as under a figure of a paper."""
    report, rows = data.study.report, data.summary.rows
    text = f"Each point is one {report.vary}{', joined in its order' if data.summary.varies_a_number else ''}"
    if report.baseline is not None:
        text += "; the hollow one is the baseline"
    if any(len(row.scores[report.x].by_seed) > 1 for row in rows):
        text += "; bars are 95 % intervals over seeds"
    return f"{text}; the dashed steps are the Pareto front of the means."


def alt(data: ReportData) -> str:
    return f"{data.study.report.y} against {data.study.report.x}"


PLOT = Plot("tradeoff", draw, caption, alt)
