"""What every figure shares: its contract, its style, how it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator

from analysis.labels import is_percent, score_label
from analysis.report_data import ReportData
from runtime import files

STYLE = Path(__file__).with_name("style.mplstyle")
MARKERS = "os^Dv<>"
GREY = "0.45"
COLUMN = 3.4  # inches, of a two-column paper
PAGE = 6.9  # inches, both columns
MANY_POINTS = 500  # more are drawn as pixels in the PDF and the SVG too, which would be megabytes otherwise
MANY_CURVES = 8  # more have their legend above the axes, where a place need not be looked for
MANY_LABELS = 40  # more cannot be read: the table has them
# Neither a clock nor a version: the same results make the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}


@dataclass(frozen=True)
class Plot:
    """A figure of the report: a function of the data, its caption and its text for those who cannot see it."""

    name: str  # of its files
    draw: Callable[[ReportData], Figure | None]  # in whatever style is in force; None where there is nothing to show
    caption: Callable[[ReportData], str]
    alt: Callable[[ReportData], str]


def write(plot: Plot, data: ReportData, folder: Path) -> bool:
    """<name>.png, .pdf and .svg; without anything to show, none of them, not even those of an earlier report."""
    with plt.style.context(STYLE):
        figure = plot.draw(data)
        for kind in _METADATA:
            path = folder / f"{plot.name}.{kind}"
            if figure is None:
                path.unlink(missing_ok=True)
            else:
                _save(figure, path, kind)
        plt.close(figure)
    return figure is not None


def _save(figure: Figure, path: Path, kind: str) -> None:
    def save(to: Path) -> None:
        figure.savefig(to, format=kind, metadata=_METADATA[kind])

    files.write_atomic(path, save)


class _PercentLocator(AutoLocator):
    """No tick where no share can be, though an interval reach there."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [float(tick) for tick in super().tick_values(vmin, vmax) if 0 <= tick <= 100]


def describe_axis(axis: Axis, score: str) -> None:
    """What the axis shows, and ticks that suit it."""
    label = score_label(score)
    axis.set_label_text(label[0].upper() + label[1:])
    if is_percent(score):
        axis.set_major_locator(_PercentLocator())


def empty(x: str, y: str, words: str) -> Figure:
    """Axes without points, and why."""
    figure, axes = plt.subplots()
    describe_axis(axes.xaxis, x)
    describe_axis(axes.yaxis, y)
    axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=GREY)
    return figure
