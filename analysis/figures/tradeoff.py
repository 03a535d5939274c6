"""The trade-off: one score against the other, one point for each value of the varied key.

Published points lie on the study's own axes where the study measures the same as they do (`is_comparable`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import (
    GREY,
    LEAST_EXTENT,
    MANY_CURVES,
    MANY_POINTS,
    OVER_MEAN,
    OVER_SEED,
    Plot,
    add_links,
    curve_style,
    data_limits,
    describe_axis,
    draw_interval,
    interval,
    varied_colors,
)
from analysis.figures.placement import Segment, place_labels
from analysis.labels import is_percent, number, short_labels
from analysis.published import is_comparable, matching, names, published_figure, rows_beside
from analysis.report_data import ReportData
from analysis.statistics import Estimate
from analysis.summary import Row, Summary

MANY_LABELS = 40  # above this, labels could not be read; the table has the values
NOTE_WIDTH = 62  # characters of a line above the axes
NEAR = 0.6  # of the curves' extent; a control further off would squeeze them, so it is named above the axes instead


class Point(NamedTuple):
    x: Estimate
    y: Estimate

    @property
    def mean(self) -> tuple[float, float]:
        return self.x.mean, self.y.mean


@dataclass(frozen=True)
class Curve:
    """The rows of one curve that have both scores, in order of the varied key."""

    name: str
    rows: list[Row]
    points: list[Point]

    @property
    def means(self) -> list[tuple[float, float]]:
        return [point.mean for point in self.points]


def draw(data: ReportData) -> Figure:
    summary, report = data.summary, data.study.report
    curves = list(_curves(summary))
    figure, axes = plt.subplots()
    describe_axis(axes.xaxis, report.x)
    describe_axis(axes.yaxis, report.y)
    if not curves:
        axes.text(0.5, 0.5, "no run has both scores yet", transform=axes.transAxes, ha="center", color=GREY)
        return figure
    controls, far = _controls(summary, curves)
    published = [*_published(data), *_points(data)]
    marked = [*controls, *published]
    _set_limits(axes, summary, curves, [point for _, point in marked])
    bars: list[Segment] = []
    for index, (curve, colors) in enumerate(zip(curves, _colors(data, curves), strict=True)):
        bars += _draw_curve(axes, curve, colors, curve_style(index)[1], summary)
    for _, point in controls:
        bars += _draw_bars(axes, point, GREY, summary)
        axes.plot(*point.mean, "x", color=GREY, zorder=3)
    for _, point in published:
        axes.plot(*point.mean, "D", color=GREY, markerfacecolor="white", markersize=3.5, zorder=2)
    axes.set_title("\n".join(fill(text, NOTE_WIDTH) for text in far), loc="left", color=GREY, fontsize=6.5)
    bars += _draw_front(axes, pareto_front([mean for curve in curves for mean in curve.means]))
    if len(curves) > 1:  # above the axes: inside, it might cover points that are on no line
        figure.legend(loc="outside upper center", ncols=2, fontsize=5 if len(curves) > MANY_CURVES else None)
    if sum(len(curve.rows) for curve in curves) <= MANY_LABELS:
        _label_points(figure, axes, summary, curves, marked, bars)
    return figure


def _point(row: Row, summary: Summary) -> Point | None:
    x, y = (row.scores[score].estimate for score in (summary.study.report.x, summary.study.report.y))
    return None if x is None or y is None else Point(x, y)


def _curves(summary: Summary) -> Iterator[Curve]:
    for group, rows in summary.groups():
        points = {id(row): point for row in rows if (point := _point(row, summary)) is not None}
        if points:
            name = short_labels(summary.study, summary.row_keys[1:], group)
            yield Curve(name, [row for row in rows if id(row) in points], list(points.values()))


def _colors(data: ReportData, curves: Sequence[Curve]) -> list[list[Any]]:
    """Return the colours of each curve's points: for a single curve those of the varied values, else the curve's."""
    if len(curves) == 1:
        shades = varied_colors(data)
        return [[shades[row.varied] for row in curves[0].rows]]
    return [[curve_style(index)[0]] * len(curve.rows) for index, curve in enumerate(curves)]


def _controls(summary: Summary, curves: Sequence[Curve]) -> tuple[list[tuple[str, Point]], list[str]]:
    """Return the controls near the curves with their names, and a text for each of the others."""
    report = summary.study.report
    near: list[tuple[str, Point]] = []
    far: list[str] = []
    for row in summary.controls:
        if (point := _point(row, summary)) is None:
            continue
        lists = zip(*(mean for curve in curves for mean in curve.means), strict=True)
        is_near = all(_is_near(value, min(means), max(means)) for value, means in zip(point.mean, lists, strict=True))
        # The figure is about the baseline, however far.
        if is_near or any(row is summary.baseline(curve.rows[0]) for curve in curves):
            near.append((str(row.control), point))
        else:
            x, y = (number(e.mean, is_percent(s)) for e, s in zip(point, (report.x, report.y), strict=True))
            far.append(f"{row.control}: ({x}, {y}), off these axes")
    return near, list(dict.fromkeys(far))


def _is_near(value: float, low: float, high: float) -> bool:
    reach = NEAR * max(high - low, LEAST_EXTENT)
    return low - reach <= value <= high + reach


def _set_limits(axes: Axes, summary: Summary, curves: Sequence[Curve], marked: Sequence[Point]) -> None:
    report, rows = summary.study.report, [row for curve in curves for row in curve.rows]
    axes.set_xlim(data_limits([row.scores[report.x] for row in rows], report.x, [point.x.mean for point in marked]))
    axes.set_ylim(data_limits([row.scores[report.y] for row in rows], report.y, [point.y.mean for point in marked]))


def _draw_curve(axes: Axes, curve: Curve, colors: Sequence[Any], marker: str, summary: Summary) -> list[Segment]:
    """Draw the points over their seeds and intervals, joined by arrows in the order of the key; return the bars.

    The marker of the baseline is hollow.
    """
    _draw_seeds(axes, curve, colors, summary)
    bars: list[Segment] = []
    for row, point, color in zip(curve.rows, curve.points, colors, strict=True):
        bars += _draw_bars(axes, point, color, summary)
        fill = "white" if summary.baseline(row) is row else color
        axes.plot(*point.mean, marker, color=color, markerfacecolor=fill, zorder=4)
        if fill == "white":  # its ring once more, over a point that lies on it
            axes.plot(*point.mean, marker, color=color, markerfacecolor="none", zorder=5)
    for start, end in pairwise(_joined(curve, summary)):
        _draw_step(axes, start, end, colors[0] if len(set(colors)) == 1 else GREY)
    axes.plot([], [], marker=marker, color=colors[0], label=curve.name)
    add_links(axes, curve.means, [row.mean_link for row in curve.rows], OVER_MEAN)
    return bars


def _joined(curve: Curve, summary: Summary) -> list[tuple[float, float]]:
    """Return the means to be joined, in order: of the varied key, or of checkpoints of the column report.join."""
    if summary.order is not None:
        return curve.means
    column, descriptions = str(summary.study.report.join), summary.study.descriptions
    places = [
        (descriptions.get(row.varied, {}).get(column), mean) for row, mean in zip(curve.rows, curve.means, strict=True)
    ]
    return [mean for place, mean in sorted((place, mean) for place, mean in places if isinstance(place, int | float))]


def _draw_seeds(axes: Axes, curve: Curve, colors: Sequence[Any], summary: Summary) -> None:
    """Draw the single seeds that have both scores as faint points."""
    for row, color in zip(curve.rows, colors, strict=True):
        if len(both := _seeds(row, summary)) > 1:
            many = len(both) * len(curve.rows) > MANY_POINTS
            style = {"color": color, "markersize": 4, "alpha": 0.4, "zorder": 1, "rasterized": many}
            axes.plot(*zip(*both.values(), strict=True), ".", **style)
            add_links(axes, both.values(), [row.link(seed) for seed in both], OVER_SEED)


def _seeds(row: Row, summary: Summary) -> dict[Hashable, tuple[float, float]]:
    """Return both scores of each seed that has both."""
    x, y = (row.scores[score].by_seed for score in (summary.study.report.x, summary.study.report.y))
    return {seed: (x[seed], y[seed]) for seed in x if seed in y}


def _draw_bars(axes: Axes, point: Point, color: Any, summary: Summary) -> list[Segment]:
    """Draw both intervals of a point and return them as lines."""
    bars: list[Segment] = []
    if (ends := interval(point.x, summary.study.report.x)) is not None:
        draw_interval(axes, "x", point.y.mean, ends, color)
        bars.append(((ends[0], point.y.mean), (ends[1], point.y.mean)))
    if (ends := interval(point.y, summary.study.report.y)) is not None:
        draw_interval(axes, "y", point.x.mean, ends, color)
        bars.append(((point.x.mean, ends[0]), (point.x.mean, ends[1])))
    return bars


def _draw_step(axes: Axes, start: tuple[float, float], end: tuple[float, float], color: Any) -> None:
    """Join two points by a line with an arrowhead in its middle, which shows where the key rises."""
    axes.plot(*zip(start, end, strict=True), color=color, linewidth=0.9, zorder=3)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 0, "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=middle, xytext=start, arrowprops=arrow, zorder=3)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other point beats in one score without losing in the other; by falling x."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), reverse=True):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _draw_front(axes: Axes, front: Sequence[tuple[float, float]]) -> list[Segment]:
    """Draw a front of two points or more as steps, and return them.

    A straight line would claim settings that nobody measured.
    """
    if len(front) < 2:
        return []
    (left, _), (low, _) = axes.get_xlim(), axes.get_ylim()
    corners = [(front[0][0], low)]
    for (x, y), (following, _) in zip(front, [*front[1:], (left, 0.0)], strict=True):
        corners += [(x, y), (following, y)]
    x_values, y_values = zip(*corners, strict=True)
    dashes = (0, (4, 2))
    axes.plot(x_values, y_values, color="0.6", linewidth=0.7, linestyle=dashes, zorder=0, scalex=False, scaley=False)
    return list(pairwise(corners))


def _label_points(
    figure: Figure,
    axes: Axes,
    summary: Summary,
    curves: Sequence[Curve],
    marked: Sequence[tuple[str, Point]],
    bars: Sequence[Segment],
) -> None:
    vary = summary.study.report.vary
    labels = [(*point.mean, text, GREY) for text, point in marked]
    segments = list(bars)
    for index, curve in enumerate(curves):
        segments += list(pairwise(_joined(curve, summary)))
        color = curve_style(index)[0] if len(curves) > 1 else "0.1"
        for point, row in zip(curve.points, curve.rows, strict=True):
            labels.append((*point.mean, short_labels(summary.study, [vary], [row.varied]), color))
    seeds = [point for curve in curves for row in curve.rows for point in _seeds(row, summary).values()]
    place_labels(figure, axes, labels, segments, seeds)


def _published(data: ReportData) -> list[tuple[str, Point]]:
    """Return the published points that the study may be compared with, with their names."""
    if not is_comparable(data.frame):
        return []
    report, rows = data.study.report, rows_beside(data.frame)
    points = []
    for name, row in zip(names(rows), rows.to_dict("records"), strict=True):
        x, y = (published_figure(data.frame, score, row) for score in (report.x, report.y))
        if x is not None and y is not None:
            points.append((f"{name} (published)", Point(Estimate(x, None, 1), Estimate(y, None, 1))))
    return points


def _points(data: ReportData) -> list[tuple[str, Point]]:
    """Return own or other people's points that were measured as here, with their names."""
    if data.points is None:
        return []
    report, rows = data.study.report, matching(data.points, data.frame)
    values = rows.drop_duplicates(["name", "score"]).pivot(index="name", columns="score", values="value")
    if not {report.x, report.y} <= set(values):
        return []
    pairs = values.dropna(subset=[report.x, report.y])[[report.x, report.y]]
    return [(str(name), Point(Estimate(x, None, 1), Estimate(y, None, 1))) for name, x, y in pairs.itertuples()]


def caption(data: ReportData) -> str:
    report, summary = data.study.report, data.summary
    joined = report.vary if summary.order else report.join
    text = f"Each point is one {report.vary}{f', joined by {joined}; arrows: where it rises' if joined else ''}"
    if report.baseline is not None:
        named = f"cross named {report.baseline}" if summary.baseline_is_control else "hollow one"
        text += f"; the {named} is the baseline"
    if any(len(row.scores[report.x].by_seed) > 1 for row in summary.rows):
        text += (
            "; faint points are single seeds, bars 95 % intervals of the mean over seeds (within 0 to 100 %), an arrow "
            "at the edge stands for an end beyond the axes"
        )
    if len(pareto_front([mean for curve in _curves(summary) for mean in curve.means])) > 1:
        text += "; the dashed steps are the Pareto front of the means"
    if _published(data) or _points(data):
        text += "; hollow diamonds are published or other people's points"
    return f"{text}."


PLOT = Plot(
    "tradeoff", draw, caption, lambda data: f"{data.study.report.y} against {data.study.report.x}", place="findings"
)
