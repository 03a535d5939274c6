"""The predicted maps that a segmentation keeps, and their picture: the image, the truth and the prediction of each."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from data.images import read_image
from data.layout import SegmentationLayout
from runtime import files
from runtime.errors import UserError
from runtime.rundir import Run

FILE = "predictions.npz"
PICTURE = "predictions.png"
IGNORED = (255, 255, 255)
LONGEST = 480  # pixels of an image in the picture
INCHES = 2.6  # of one image's width
LEGEND_CLASSES = 24


def spread(total: int, count: int) -> list[int]:
    """At most `count` different indices below `total`, evenly spread."""
    return sorted({round(k) for k in np.linspace(0, total - 1, min(count, total))})


def save_predictions(run: Run, predictions: Mapping[str, np.ndarray]) -> None:
    """Keep the classes (H, W) uint8 of validation images by name; the same predictions make the same bytes."""
    # By number, because a name may be a path, and numpy's own arguments are names too.
    maps: dict[str, Any] = {str(number): prediction for number, prediction in enumerate(predictions.values())}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, names=np.array(list(predictions)), **maps)

    files.write_atomic(run.path / FILE, write)


def load_predictions(run: Run) -> dict[str, np.ndarray]:
    """Return what `save_predictions` kept. UserError where the run has none."""
    again = f"delete {run.path / 'result.json'} and give the run's command again: only val is predicted again"
    try:
        with np.load(run.path / FILE) as contents:
            return {str(name): contents[str(number)] for number, name in enumerate(contents["names"])}
    except FileNotFoundError as error:
        raise UserError(
            f"{run.path} has no {FILE}: it was evaluated with machine.predictions=0, or before predictions were kept. "
            f"To make them, {again}"
        ) from error
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{run.path / FILE} is damaged ({error}). To make it again, {again}") from error


def colour(classes: np.ndarray, layout: SegmentationLayout) -> np.ndarray:
    """(H, W) classes -> (H, W, 3) uint8; ignored pixels are white."""
    table = np.full((256, 3), IGNORED, np.uint8)
    table[: len(layout.palette)] = layout.palette
    return table[classes]


def thin(pixels: np.ndarray) -> np.ndarray:
    """Every n-th row and column, so that the longer side has at most LONGEST: no mixture of two classes' colours."""
    step = max(1, -(-max(pixels.shape[:2]) // LONGEST))
    return pixels[::step, ::step]


def draw_predictions(layout: SegmentationLayout, predictions: Mapping[str, np.ndarray], path: Path) -> None:
    """predictions: name of a validation image -> its classes (H, W). One row each; the legend has the classes in it."""
    rows, seen = [], np.zeros(256, np.int64)
    for name, prediction in predictions.items():
        truth = layout.read_mask(layout.mask("val", name))
        seen += np.bincount(truth.ravel(), minlength=256) + np.bincount(prediction.ravel(), minlength=256)
        counted = truth != layout.ignore_index
        correct = 100 * float(np.mean(prediction[counted] == truth[counted])) if counted.any() else 0.0
        titles = (name.rpartition("/")[2], "truth", f"prediction, {correct:.0f} % of pixels right")
        pictures = (read_image(layout.image("val", name)), colour(truth, layout), colour(prediction, layout))
        rows.append((titles, pictures))
    height = INCHES * min(2.0, max(image.shape[0] / image.shape[1] for _, (image, *_) in rows))
    legend = legend_handles(layout, seen)
    lines = -(-len(legend) // 6)
    figure = Figure(figsize=(3 * INCHES, len(rows) * (height + 0.3) + 0.2 * lines + 0.3), layout="constrained", dpi=120)
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for places, (titles, pictures) in zip(axes, rows, strict=True):
        for place, title, pixels in zip(places, titles, pictures, strict=True):
            place.imshow(thin(pixels), interpolation="nearest")
            place.set_title(title, fontsize=7)
            place.set_axis_off()
    figure.legend(handles=legend, loc="outside lower center", ncols=6, fontsize=6, frameon=False)
    files.write_atomic(path, lambda temporary: figure.savefig(temporary, format="png"))


def legend_handles(layout: SegmentationLayout, seen: np.ndarray) -> list[Any]:
    """A patch for each of the LEGEND_CLASSES most frequent classes in the picture, and how many more there are."""
    present = [k for k in np.argsort(-seen, kind="stable") if seen[k] and k < len(layout.classes)]
    handles = []
    for k in sorted(present[:LEGEND_CLASSES]):
        red, green, blue = (channel / 255 for channel in layout.palette[k])
        handles.append(Patch(facecolor=(red, green, blue), edgecolor="0.4", linewidth=0.5, label=layout.classes[k]))
    if len(present) > LEGEND_CLASSES:
        handles.append(Patch(facecolor="none", label=f"and {len(present) - LEGEND_CLASSES} more"))
    if seen[layout.ignore_index]:
        handles.append(Patch(facecolor="white", edgecolor="0.4", linewidth=0.5, label="ignored"))
    return handles
