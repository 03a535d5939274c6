"""Places the labels of points so that they cover no point, line, error bar or other label."""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

Segment = tuple[tuple[float, float], tuple[float, float]]  # start and end of a line, in data units
DISTANCES = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0)  # points (1/72 inch) from the point to the label's nearest edge
DIRECTIONS = 16
MARKER_RADIUS = 4.0  # points
DOT_RADIUS = 1.5  # points, of a single seed


def place_labels(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[float, float, str, str]],
    segments: Sequence[Segment],
    others: Sequence[tuple[float, float]] = (),
) -> list[Bbox]:
    """Write (x, y, text, colour) labels beside their points, clear of segments and `others`; return boxes in pixels.

    `others` are points without a label, such as single seeds: small, and to cover one is less bad than a mean.

    Greedy, one label after the other: among a few directions and distances it takes the place that covers least, and
    the nearest of equal ones. The best places for all labels together would be a search over all combinations. A
    label far from its point gets a thin line to it.
    """
    figure.canvas.draw()  # constrained layout moves the axes while drawing; before that, a point has no pixel
    pixels = figure.dpi / 72
    to_pixels = axes.transData.transform
    points = to_pixels([(x, y) for x, y, _, _ in labels])
    lines = [tuple(to_pixels(segment)) for segment in segments]
    frame = axes.get_window_extent()
    markers = [Bbox.from_extents(*(p - MARKER_RADIUS * pixels), *(p + MARKER_RADIUS * pixels)) for p in points]
    legend = axes.get_legend()
    if legend is not None:
        markers.append(legend.get_window_extent())
    dots = [Bbox.from_extents(*(p - DOT_RADIUS * pixels), *(p + DOT_RADIUS * pixels)) for p in map(to_pixels, others)]
    boxes: list[Bbox] = []
    for point, (_, _, text, color) in zip(points, labels, strict=True):
        width, height = _size(figure, axes, text)
        candidates = [
            (distance, _beside(point, width, height, 2 * math.pi * step / DIRECTIONS, distance * pixels))
            for distance in DISTANCES
            for step in range(DIRECTIONS)
        ]
        distance, box = min(candidates, key=lambda c: _cost(c[1], [*markers, *boxes], dots, lines, frame) + c[0] / 100)
        boxes.append(box)
        _write(axes, point, box, text, color, distance > DISTANCES[2])
    return boxes


def _size(figure: Figure, axes: Axes, text: str) -> tuple[float, float]:
    trial = axes.text(0, 0, text, fontsize=_font_size())
    extent = trial.get_window_extent(figure.canvas.get_renderer())  # type: ignore[attr-defined]
    trial.remove()
    return extent.width, extent.height


def _font_size() -> float:
    return float(mpl.rcParams["xtick.labelsize"])


def _beside(point: np.ndarray, width: float, height: float, angle: float, distance: float) -> Bbox:
    """Return the label's box whose edge is about `distance` pixels from the point, in the direction `angle`."""
    centre = point + np.array([math.cos(angle), math.sin(angle)]) * distance
    centre = centre + np.array([math.cos(angle) * width / 2, math.sin(angle) * height / 2])
    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _cost(
    box: Bbox, marks: Sequence[Bbox], dots: Sequence[Bbox], lines: Sequence[tuple[np.ndarray, np.ndarray]], frame: Bbox
) -> float:
    """Return 0 for a free place; the weights say how bad it looks to cover a label or marker, the frame, or a line."""
    cost = 10.0 * sum(box.overlaps(mark) for mark in marks) + 4.0 * sum(box.overlaps(dot) for dot in dots)
    cost += 3.0 * sum(_crosses(box, *line) for line in lines)
    inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    return cost + (0.0 if inside else 8.0)


def _crosses(box: Bbox, start: np.ndarray, end: np.ndarray) -> bool:
    """Return whether a segment touches the box: clipped to it (Liang and Barsky), some of the segment is left."""
    first, last = 0.0, 1.0
    for axis, (low, high) in enumerate(((box.x0, box.x1), (box.y0, box.y1))):
        step = end[axis] - start[axis]
        if step == 0:
            if not low <= start[axis] <= high:
                return False
            continue
        a, b = sorted(((low - start[axis]) / step, (high - start[axis]) / step))
        first, last = max(first, a), min(last, b)
    return first <= last


def _write(axes: Axes, point: np.ndarray, box: Bbox, text: str, color: str, with_line: bool) -> None:
    centre = ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)
    to_data = axes.transData.inverted().transform
    arrow = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.4, "shrinkA": 1, "shrinkB": 3} if with_line else None
    axes.annotate(
        text,
        xy=tuple(to_data(point)),
        xytext=tuple(to_data(centre)),
        ha="center",
        va="center",
        fontsize=_font_size(),
        color=color,
        arrowprops=arrow,
    )
