"""The trade-off curve: one score against another, a point for each value of the varied field, joined in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.labels import is_percent, number, score_label, symbol, value_text
from analysis.placement import place_labels
from analysis.statistics import Estimate
from analysis.summary import Row, Summary
from runtime import files

STYLE = Path(__file__).with_name("style.mplstyle")
MARKERS = "os^Dv<>"
GREY = "0.45"
# A control further from the curve than this share of its extent would squeeze it; it is told in words instead.
NEAR = 0.6
# Neither a clock nor a version: the same results make the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@dataclass(frozen=True)
class Curve:
    """One line of the plot: rows with both scores, in order of the varied field."""

    name: str
    rows: list[Row]
    x: list[Estimate]
    y: list[Estimate]


def write_tradeoff(summary: Summary, folder: Path) -> list[Path]:
    """tradeoff.png and tradeoff.pdf of a summary that has the report's x and y."""
    with plt.style.context(STYLE):
        figure = draw_tradeoff(summary)
        written = [_save(figure, folder / f"tradeoff.{kind}", kind) for kind in _METADATA]
        plt.close(figure)
    return written


def _save(figure: Figure, path: Path, kind: str) -> Path:
    def save(to: Path) -> None:
        figure.savefig(to, format=kind, metadata=_METADATA[kind])

    files.write_atomic(path, save)
    return path


def draw_tradeoff(summary: Summary) -> Figure:
    """The figure, in whatever style is in force."""
    report = summary.study.report
    figure, axes = plt.subplots()
    axes.set(xlabel=_axis_label(report.x), ylabel=_axis_label(report.y))
    curves = _curves(summary)
    for index, curve in enumerate(curves):
        _draw_curve(axes, curve, f"C{index % 7}", MARKERS[index % 7], summary)
    if not curves:
        axes.text(0.5, 0.5, "no run has both scores yet", transform=axes.transAxes, ha="center", color=GREY)
        return figure
    axes.margins(0.14)
    controls = _draw_controls(axes, summary)
    if len(curves) > 1:
        axes.legend(loc="best")
    _label_points(figure, axes, summary, curves, controls)
    return figure


def _axis_label(score: str) -> str:
    label = score_label(score)
    return label[0].upper() + label[1:]


def _point(row: Row, summary: Summary) -> tuple[Estimate, Estimate] | None:
    x, y = (row.scores[score].estimate for score in (summary.study.report.x, summary.study.report.y))
    return None if x is None or y is None else (x, y)


def _curves(summary: Summary) -> list[Curve]:
    curves = []
    keys = summary.study.row_keys[1:]
    for group, rows in summary.groups():
        points = [(row, point) for row in rows if (point := _point(row, summary)) is not None]
        name = ", ".join(f"{symbol(key)} = {value_text(value)}" for key, value in zip(keys, group, strict=True))
        if points:
            curves.append(Curve(name, [r for r, _ in points], [p[0] for _, p in points], [p[1] for _, p in points]))
    return curves


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str, summary: Summary) -> None:
    """The baseline's marker is hollow."""
    x, y = [p.mean for p in curve.x], [p.mean for p in curve.y]
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
        segments += list(pairwise(points))
        color = f"C{index % 7}" if len(curves) > 1 else "0.1"
        for x, y, row in zip(curve.x, curve.y, curve.rows, strict=True):
            segments += _bars(x, y)
            labels.append((x.mean, y.mean, f"{name} = {value_text(row.varied)}", color))
    place_labels(figure, axes, labels, segments)


def _bars(x: Estimate, y: Estimate) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The two error bars of a point, as lines."""
    a, b, wide, high = x.mean, y.mean, x.half or 0.0, y.half or 0.0
    return [((a - wide, b), (a + wide, b)), ((a, b - high), (a, b + high))]
