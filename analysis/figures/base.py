"""What figures and pictures share: style, how a figure is written, how the varied key is drawn, grids of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from textwrap import wrap
from typing import Any, Literal

import matplotlib as mpl
import numpy as np

mpl.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.labels import is_percent, score_label, short_labels, symbol
from analysis.report_data import ReportData
from analysis.statistics import Estimate
from analysis.summary import Scores
from runtime import files

STYLE = Path(__file__).with_name("style.mplstyle")
GREY = "0.45"
COLUMN = 3.4  # inches, of a two-column paper
PAGE = 6.9  # inches, both columns
MANY_POINTS = 500  # above this, points are pixels in the PDF and the SVG too: as shapes they would take megabytes
MANY_CURVES = 8  # above this, a legend has small letters or is left out
MARGIN = 0.12  # of an axis' extent, on each side of the points, for labels
FAR, WIDE = 1.0, 0.3  # of the extent of the means: a seed, and an interval's end, that lie further beyond are cut off
LEAST_EXTENT = 2.0  # percentage points; means closer together than that count as this far apart
LIGHTEST = 0.62  # of the colour map plasma; beyond, the contrast to white is below 3:1
TICK_LETTERS = 32  # that fit below an axis of one column
OVER_MEAN, OVER_SEED = 4.0, 2.0  # radius of a link
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


def describe_axis(axis: Axis, score: str) -> None:
    """Label an axis that shows a score."""
    label = score_label(score)
    axis.set_label_text(label[0].upper() + label[1:])


def interval(estimate: Estimate, score: str) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean, of a percentage within 0 to 100; None for one seed."""
    if estimate.half is None:
        return None
    low, high = estimate.mean - estimate.half, estimate.mean + estimate.half
    return (max(low, 0.0), min(high, 100.0)) if is_percent(score) else (low, high)


def data_limits(scores: Sequence[Scores], name: str, others: Sequence[float] = ()) -> tuple[float, float]:
    """Return limits of an axis that show the means of a score, `others`, and seeds and intervals not far beyond them.

    One far off does not set them, because it would squeeze what the figure is for. A percentage is within 0 to 100.
    """
    estimates = [found for cell in scores if (found := cell.estimate)]
    means = [*others, *(found.mean for found in estimates)]
    low, high = min(means), max(means)
    extent = max(high - low, LEAST_EXTENT if is_percent(name) else 0.0)
    seeds = [value for cell in scores for value in cell.by_seed.values()]
    ends = [end for found in estimates for end in interval(found, name) or ()]
    for values, reach in ((seeds, FAR * extent), (ends, WIDE * extent)):
        near = [value for value in values if low - reach <= value <= high + reach]
        low, high = min([low, *near]), max([high, *near])
    margin = MARGIN * (high - low or abs(high) or 1.0)
    low, high = low - margin, high + margin
    return (max(low, 0.0), min(high, 100.0)) if is_percent(name) else (low, high)


def draw_interval(axes: Axes, along: Literal["x", "y"], at: float, ends: tuple[float, float], color: Any) -> None:
    """Draw an interval parallel to an axis, whose limits are set; an end beyond them becomes an arrow."""
    limits = axes.get_xlim() if along == "x" else axes.get_ylim()
    shown = [min(max(end, limits[0]), limits[1]) for end in ends]
    if shown[0] == shown[1]:
        return
    caps = ("|", "<", ">") if along == "x" else ("_", "v", "^")
    style: dict[str, Any] = {"color": color, "alpha": 0.8, "zorder": 2, "scalex": False, "scaley": False}
    marks = [
        cap if end == was else arrow for end, was, cap, arrow in zip(shown, ends, caps[:1] * 2, caps[1:], strict=True)
    ]
    points = [(end, at) if along == "x" else (at, end) for end in shown]
    axes.plot(*zip(*points, strict=True), linewidth=0.6, **style)
    for point, mark in zip(points, marks, strict=True):
        axes.plot(*point, mark, markersize=3, markeredgewidth=0.6, clip_on=False, **style)


def add_links(axes: Axes, points: Iterable[tuple[float, float]], links: Sequence[str | None], radius: float) -> None:
    """Lay a link over each point, for the page of the report; nothing of it is seen in the figure's files.

    The radius is in points (1/72 inch). The links of many points would take more bytes than the points.
    """
    linked = [(*point, link) for point, link in zip(points, links, strict=True) if link is not None]
    if linked and len(links) <= MANY_POINTS:
        x, y, urls = zip(*linked, strict=True)
        axes.scatter(x, y, s=(2 * radius) ** 2, c="0.3", alpha=0, linewidths=0, zorder=9 - radius / 10, urls=urls)


def curve_style(index: int) -> tuple[str, str]:
    """Return the colour and the marker of a curve."""
    return f"C{index % len(_MARKERS)}", _MARKERS[index % len(_MARKERS)]


def varied_values(data: ReportData) -> list[object]:
    """Return the values of the varied key: numbers by size, names as the study lists them."""
    return list(dict.fromkeys(row.varied for _, rows in data.summary.groups() for row in rows))


def varied_positions(data: ReportData) -> dict[object, float]:
    """Return where each value of the varied key lies on an axis: numbers in scale, others one after another."""
    values, order = varied_values(data), data.summary.order
    if order and all(len(order[value]) == 1 for value in values):
        return {value: order[value][0] for value in values}
    return {value: float(index) for index, value in enumerate(values)}


def describe_varied_axis(axes: Axes, data: ReportData, positions: Mapping[object, float]) -> None:
    """Label the x axis with the varied key and its values."""
    axes.set_xlabel(symbol(data.study.report.vary))
    texts = [data.summary.label(value) for value in positions]
    if max(map(len, texts)) * len(texts) > TICK_LETTERS:
        # Numbers with a unit break alike, names where they must.
        width = TICK_LETTERS // len(texts) + 1 if data.summary.order is None else 1
        texts = ["\n".join(wrap(text, width, break_long_words=False, break_on_hyphens=False)) for text in texts]
    axes.set_xticks(list(positions.values()), texts)
    if data.summary.order is None:
        axes.set_xlim(-0.5, len(positions) - 0.5)  # room for names, which are wider than numbers


def varied_colors(data: ReportData) -> dict[object, Rgba]:
    """Return a colour for each value of the varied key, all with a contrast of 3:1 or more to white.

    Values with an order get light to dark, which grey print shows too; a few names get colours told apart by hue.
    """
    values = varied_values(data)
    hues = mpl.rcParams["axes.prop_cycle"].by_key()["color"]
    if data.summary.order is None and len(values) <= len(hues):
        return {value: to_rgba(hue) for value, hue in zip(values, hues, strict=False)}
    shades = np.linspace(LIGHTEST, 0.0, len(values)) if len(values) > 1 else [0.3]
    return {value: mpl.colormaps["plasma"](shade) for value, shade in zip(values, shades, strict=True)}


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
            label=short_labels(data.study, [vary], [value]),
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
