"""Both scores against the varied key, one panel above the other: where one rises and the other falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import (
    COLUMN,
    MANY_CURVES,
    MANY_POINTS,
    OVER_MEAN,
    OVER_SEED,
    Plot,
    add_links,
    curve_style,
    data_limits,
    describe_axis,
    describe_varied_axis,
    draw_interval,
    interval,
    varied_positions,
)
from analysis.labels import short_labels
from analysis.report_data import ReportData
from analysis.summary import Row, Summary

_LINES: tuple[Literal["-", "--", ":", "-."], ...] = ("-", "--", ":", "-.")
SHIFT = 0.012  # of the horizontal extent, between the bars of two curves


def draw(data: ReportData) -> Figure | None:
    summary, report = data.summary, data.study.report
    scores = list(dict.fromkeys([report.x, report.y]))
    positions = varied_positions(data)
    if len(positions) < 2 or not any(row.scores[score].by_seed for row in summary.settings for score in scores):
        return None
    size = (COLUMN, 0.6 + 1.6 * len(scores))
    figure, panels = plt.subplots(len(scores), 1, figsize=size, squeeze=False, sharex=True)
    for axes, score in zip(panels[:, 0], scores, strict=True):
        _draw_panel(axes, summary, score, positions)
    describe_varied_axis(panels[-1, 0], data, positions)
    figure.align_ylabels(panels[:, 0])
    if 1 < len(list(summary.groups())) <= MANY_CURVES:
        handles, names = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=6)
    return figure


def _draw_panel(axes: Axes, summary: Summary, score: str, positions: Mapping[object, float]) -> None:
    describe_axis(axes.yaxis, score)
    scored = [row.scores[score] for row in summary.settings if row.scores[score].by_seed]
    if scored:
        axes.set_ylim(data_limits(scored, score))
    groups = list(summary.groups())
    extent = max(positions.values()) - min(positions.values())
    for index, (group, rows) in enumerate(groups):
        shift = SHIFT * extent * (index - (len(groups) - 1) / 2)
        own = {value: x + shift for value, x in positions.items()}
        color, marker = curve_style(index)
        name = short_labels(summary.study, summary.row_keys[1:], group)
        style = {"color": color, "marker": marker, "linestyle": _LINES[index % len(_LINES)], "label": name}
        _draw_curve(axes, summary, [row for row in rows if row.scores[score].by_seed], score, own, style)


def _draw_curve(
    axes: Axes,
    summary: Summary,
    rows: Sequence[Row],
    score: str,
    positions: Mapping[object, float],
    style: Mapping[str, Any],
) -> None:
    """Draw the means, joined where the key has an order, over the single seeds and the intervals."""
    color = style["color"]
    estimates = [(positions[row.varied], e) for row in rows if (e := row.scores[score].estimate)]
    add_links(axes, [(x, e.mean) for x, e in estimates], [row.mean_link for row in rows], OVER_MEAN)
    for x, estimate in estimates:
        if (ends := interval(estimate, score)) is not None:
            draw_interval(axes, "y", x, ends, color)
    several = [row for row in rows if len(row.scores[score].by_seed) > 1]
    points = [(positions[row.varied], value) for row in several for value in row.scores[score].by_seed.values()]
    if points:
        many = len(points) > MANY_POINTS
        axes.plot(*zip(*points, strict=True), ".", color=color, markersize=4, alpha=0.4, zorder=1, rasterized=many)
        add_links(axes, points, [row.link(seed) for row in several for seed in row.scores[score].by_seed], OVER_SEED)
    line = style["linestyle"] if summary.order is not None else ""
    means = [(x, estimate.mean) for x, estimate in estimates]
    axes.plot(*zip(*means, strict=True), **{**style, "linestyle": line}, zorder=4)


def caption(data: ReportData) -> str:
    report = data.study.report
    text = f"Both scores against {report.vary}"
    if any(len(row.scores[report.x].by_seed) > 1 for row in data.summary.rows):
        text += "; bars are 95 % intervals of the mean over seeds (within 0 to 100 %), faint points the single seeds"
    return f"{text}."


PLOT = Plot(
    "scores",
    draw,
    caption,
    lambda data: f"{data.study.report.x} and {data.study.report.y} against {data.study.report.vary}",
    place="findings",
    order=1,
)
