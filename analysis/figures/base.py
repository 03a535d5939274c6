"""What figures and pictures share: style, how a figure is written, how the varied key is drawn, grids of images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import AutoLocator

from analysis.labels import is_percent, score_label, short_named_values, symbol, value_text
from analysis.report_data import ReportData
from runtime import files

STYLE = Path(__file__).with_name("style.mplstyle")
GREY = "0.45"
COLUMN = 3.4  # inches, of a two-column paper
PAGE = 6.9  # inches, both columns
MANY_POINTS = 500  # above this, points are pixels in the PDF and the SVG too: as shapes they would take megabytes
MANY_CURVES = 8  # above this, the legend stands above the axes: inside there would be no room for it
_MARKERS = "os^Dv<>"
# Without dates and versions, so that the same results give the same bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
}
Rgba = tuple[float, float, float, float]
PLACES = ("findings", "scores", "collapse", "training", "cost")  # sections of the page, which end with their figures


@dataclass(frozen=True)
class Plot:
    """A figure of the report, its caption, its text for readers who cannot see it, and its place on the page."""

    name: str  # of its files
    draw: Callable[[ReportData], Figure | None]  # in the current style; None where there is nothing to show
    caption: Callable[[ReportData], str]
    alt: Callable[[ReportData], str]
    place: str  # one of PLACES
    order: int = 0  # within its place; equal ones stand by name

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise ValueError(f"figure {self.name}: place {self.place!r}; expected one of {', '.join(PLACES)}")


def write(plot: Plot, data: ReportData, folder: Path) -> bool:
    """Write <name>.png, .pdf and .svg; return False where there is nothing to show.

    Then the files of an earlier report are deleted: they would show results that this report does not have.
    """
    with plt.style.context(STYLE):
        figure = plot.draw(data)
        if figure is None:
            for kind in _METADATA:
                (folder / f"{plot.name}.{kind}").unlink(missing_ok=True)
            return False
        save(figure, folder, plot.name)
    return True


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write a figure in each format, and close it."""
    for kind in _METADATA:
        _save(figure, folder / f"{name}.{kind}", kind)
    plt.close(figure)


def _save(figure: Figure, path: Path, kind: str) -> None:
    files.write_atomic(path, lambda to: figure.savefig(to, format=kind, metadata=_METADATA[kind]))


class _PercentLocator(AutoLocator):
    """Ticks from 0 to 100 only, even where an error bar reaches beyond."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        return [float(tick) for tick in super().tick_values(vmin, vmax) if 0 <= tick <= 100]


def describe_axis(axis: Axis, score: str) -> None:
    """Label an axis that shows a score, with suitable ticks."""
    label = score_label(score)
    axis.set_label_text(label[0].upper() + label[1:])
    if is_percent(score):
        axis.set_major_locator(_PercentLocator())


def curve_style(index: int) -> tuple[str, str]:
    """Return the colour and the marker of a curve."""
    return f"C{index % len(_MARKERS)}", _MARKERS[index % len(_MARKERS)]


def varied_values(data: ReportData) -> list[object]:
    """Return the values of the varied key: numbers by size, names as the study lists them."""
    return list(dict.fromkeys(row.varied for _, rows in data.summary.groups() for row in rows))


def varied_positions(data: ReportData) -> dict[object, float]:
    """Return where each value of the varied key lies on an axis: numbers in scale, names one after another."""
    values = varied_values(data)
    if data.summary.varies_a_number:
        return {value: float(value) for value in values}  # type: ignore[arg-type]
    return {value: float(index) for index, value in enumerate(values)}


def describe_varied_axis(axes: Axes, data: ReportData, positions: Mapping[object, float]) -> None:
    """Label the x axis with the varied key and its values."""
    axes.set_xlabel(symbol(data.study.report.vary))
    axes.set_xticks(list(positions.values()), [value_text(value) for value in positions])


def varied_colors(data: ReportData) -> dict[object, Rgba]:
    """Return a colour for each value of the varied key, light to dark in its order, so that grey print shows it too."""
    values = varied_values(data)
    shades = np.linspace(0.88, 0.0, len(values)) if len(values) > 1 else [0.3]
    return {value: mpl.colormaps["viridis"](shade) for value, shade in zip(values, shades, strict=True)}


def add_varied_legend(figure: Figure, data: ReportData, columns: int, marker: str | None = None) -> None:
    """Add a legend of the colours of `varied_colors` above the axes: of lines, or of points with a `marker`."""
    vary = data.study.report.vary
    handles = [
        Line2D(
            [],
            [],
            marker=marker,
            linestyle="-" if marker is None else "",
            color=color,
            label=short_named_values([vary], [value]),
        )
        for value, color in varied_colors(data).items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), columns))


def image_grid(rows: Sequence[Sequence[np.ndarray | str]], size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Draw rows of images (H, W, 3), uint8 or 0..1, in a figure of that size in inches; return it and its axes.

    A text stands in the place of an image that is missing.
    """
    figure, grid = plt.subplots(len(rows), len(rows[0]), figsize=size, squeeze=False)
    for axes, image in zip(grid.flat, chain.from_iterable(rows), strict=True):
        axes.set(xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        if isinstance(image, str):
            axes.text(0.5, 0.5, image, ha="center", va="center", color=GREY, fontsize=6)
        else:
            axes.imshow(image, interpolation="nearest")
    return figure, grid


def grid_size(rows: int, columns: int, extra: float) -> tuple[float, float]:
    """Return the inches of a grid of square images that fits a page, with `extra` height for texts."""
    cell = min(1.1, PAGE / columns)
    return max(COLUMN, cell * columns + 0.3), cell * rows + extra


def add_title(figure: Figure, text: str) -> None:
    figure.suptitle(text, fontsize=6, x=0.01, ha="left", wrap=True)
