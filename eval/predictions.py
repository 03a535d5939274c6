"""A picture of predicted maps: for each of a few validation images the image, the truth and the prediction."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from data.images import read_image
from data.layout import SegmentationLayout
from runtime import files

IGNORED = (255, 255, 255)
LONGEST = 480  # pixels of an image in the picture
INCHES = 2.6  # of one image's width
LEGEND_CLASSES = 24


def spread(total: int, count: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread."""
    return sorted({round(k) for k in np.linspace(0, total - 1, min(count, total))})


def colour(classes: np.ndarray, layout: SegmentationLayout) -> np.ndarray:
    """(H, W) classes -> (H, W, 3) uint8; what counts for nothing is white."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[: len(layout.palette)] = layout.palette
    return table[classes]


def thin(pixels: np.ndarray) -> np.ndarray:
    """Every n-th row and column, so that the longer side has at most LONGEST: no mixture of two classes' colours."""
    step = max(1, -(-max(pixels.shape[:2]) // LONGEST))
    return pixels[::step, ::step]


def draw_predictions(layout: SegmentationLayout, predictions: Mapping[str, np.ndarray], path: Path) -> None:
    """predictions: name of a validation image -> its classes (H, W). One row each; the legend has the classes in it."""
    from matplotlib.figure import Figure

    rows, seen = [], np.zeros(256, np.int64)
    for name, prediction in predictions.items():
        truth = layout.read_mask(layout.mask("val", name))
        seen += np.bincount(truth.ravel(), minlength=256) + np.bincount(prediction.ravel(), minlength=256)
        counted = truth != layout.ignore_index
        right = 100 * float(np.mean(prediction[counted] == truth[counted])) if counted.any() else 0.0
        rows.append((name, read_image(layout.image("val", name)), truth, prediction, right))
    tall = max(row[2].shape[0] / row[2].shape[1] for row in rows)
    height = INCHES * min(2.0, tall)
    legend = legend_handles(layout, seen)
    lines = -(-len(legend) // 6)
    figure = Figure(figsize=(3 * INCHES, len(rows) * (height + 0.3) + 0.2 * lines + 0.3), layout="constrained", dpi=120)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for row, (name, image, truth, prediction, right) in zip(axes, rows, strict=True):
        titles = (name.rpartition("/")[2], "truth", f"prediction, {right:.0f} % of pixels right")
        pictures = (image, colour(truth, layout), colour(prediction, layout))
        for place, title, pixels in zip(row, titles, pictures, strict=True):
            place.imshow(thin(np.asarray(pixels)), interpolation="nearest")
            place.set_title(title, fontsize=7)
            place.set_axis_off()
    figure.legend(handles=legend, loc="outside lower center", ncols=6, fontsize=6, frameon=False)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def legend_handles(layout: SegmentationLayout, seen: np.ndarray) -> list[Any]:
    """A patch for each of the LEGEND_CLASSES most frequent classes in the picture; how many more there are is told."""
    from matplotlib.patches import Patch

    there = [k for k in np.argsort(-seen, kind="stable") if seen[k] and k < len(layout.classes)]
    handles = []
    for k in sorted(there[:LEGEND_CLASSES]):
        red, green, blue = (channel / 255 for channel in layout.palette[k])
        handles.append(Patch(facecolor=(red, green, blue), edgecolor="0.4", linewidth=0.5, label=layout.classes[k]))
    if len(there) > LEGEND_CLASSES:
        handles.append(Patch(facecolor="none", label=f"and {len(there) - LEGEND_CLASSES} more"))
    if seen[layout.ignore_index]:
        handles.append(Patch(facecolor="white", edgecolor="0.4", linewidth=0.5, label="counts for nothing"))
    return handles
