"""What a segmentation evaluation predicted for images of val, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from analysis.figures.base import add_title, grid_size, image_grid
from data.catalog import open_dataset
from data.images import Pixels, read_image
from data.layout import SegmentationLayout
from data.record import recorded_root
from eval.predictions import colour, legend_handles, load_predictions, spread, thin
from eval.segmentation_config import SegmentationConfig
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Run


@dataclass(frozen=True)
class Segmented:
    """An image of val; truth and prediction are classes, (H, W), at its own size."""

    name: str
    image: Pixels
    truth: np.ndarray
    prediction: np.ndarray

    def miou(self, classes: int) -> float:
        """Return the mean IoU in percent over the classes in the truth or the prediction, of this image alone."""
        counted = self.truth < classes
        truth, prediction = self.truth[counted], self.prediction[counted]
        present = np.union1d(truth, prediction)
        shares = [((truth == k) & (prediction == k)).sum() / ((truth == k) | (prediction == k)).sum() for k in present]
        return 100 * float(np.mean(shares)) if shares else float("nan")


@dataclass(frozen=True)
class Segmentation:
    """A finished segmentation run, and the predictions that it kept."""

    name: str
    layout: SegmentationLayout
    images: list[Segmented]
    miou: float  # of its result, over all of val

    def colours(self, labels: np.ndarray) -> np.ndarray:
        """Return classes (H, W) as colours (h, w, 3) uint8; a large image keeps every n-th row and column."""
        return thin(colour(labels, self.layout))


def load_segmentation(path: str | Path, count: int | None, root: str | None = None) -> Segmentation:
    """Load the predictions of `count` images of those that the run kept, evenly spread; None: all.

    The data are at `root`, or where the run's config says. UserError where the run is of another stage, is not done or
    kept no predictions, and where the data differ from those that it predicted.
    """
    run = Run(Path(path))
    document = run.document()
    if document["stage"] != SegmentationConfig.stage:
        raise UserError(
            f"{run.path} is a run of the stage {document['stage']!r}; expected one of {SegmentationConfig.stage!r}"
        )
    result = run.result()
    if result is None:
        raise UserError(f"{run.path} is {run.state()}; only a run that is done has predictions to show")
    kept = load_predictions(run)
    names = list(kept) if count is None else [list(kept)[k] for k in spread(len(kept), count)]
    given = {} if root is None else {"data": {"root": root}}
    layers = [(str(run.path / "run.yaml"), document["config"]), recorded_root(run.path), ("--data", given)]
    layout = open_dataset(configs.from_layers(SegmentationConfig, layers).data).segmentation()
    images = [_beside_truth(layout, name, kept[name], run) for name in names]
    return Segmentation(run.name, layout, images, float(result["miou"]))


def refuse_different_images(segmentations: Sequence[Segmentation]) -> None:
    """Raise UserError where runs to be shown side by side kept predictions of different images."""
    first, *others = segmentations
    for other in others:
        if [image.name for image in other.images] != [image.name for image in first.images]:
            raise UserError(
                f"{first.name} and {other.name} kept predictions of different images; evaluate both with the same "
                "machine.predictions"
            )


def _beside_truth(layout: SegmentationLayout, name: str, prediction: np.ndarray, run: Run) -> Segmented:
    if name not in layout.names("val"):
        raise UserError(
            f"{run.path} predicted {name}, which is not in val of {layout.root}; give its data: --data FOLDER"
        )
    truth = layout.read_mask(layout.mask("val", name))
    if truth.shape != prediction.shape:
        raise UserError(
            f"{run.path} predicted {name} of (height, width) {prediction.shape}, and its mask in {layout.root} has "
            f"{truth.shape}; give the run's own data: --data FOLDER"
        )
    return Segmented(name, read_image(layout.image("val", name)), truth, prediction)


def draw_segmentations(segmentation: Segmentation) -> Figure:
    """Draw one column for each image: the image, the truth, the prediction; below, the colours of the classes."""
    samples, colours = segmentation.images, segmentation.colours
    columns = [(thin(sample.image), colours(sample.truth), colours(sample.prediction)) for sample in samples]
    figure, grid = image_grid(list(zip(*columns, strict=True)), grid_size(3, len(columns), extra=0.85))
    for axes, sample in zip(grid[2], samples, strict=True):
        axes.set_xlabel(f"{sample.miou(len(segmentation.layout.classes)):.0f} %", fontsize=6)
    for axes, name in zip(grid[:, 0], ("image", "truth", "prediction"), strict=True):
        axes.set_ylabel(name, fontsize=6.5)
    scores = f"mIoU {segmentation.miou:.1f} % over all of val; below each image its own, over its classes."
    add_title(figure, f"{segmentation.name}\n{scores}")
    add_legend(figure, [segmentation])
    return figure


def add_legend(figure: Figure, segmentations: Sequence[Segmentation]) -> None:
    """Add the colours of the classes that occur in a truth or a prediction."""
    samples = [sample for segmentation in segmentations for sample in segmentation.images]
    labels = [classes.ravel() for sample in samples for classes in (sample.truth, sample.prediction)]
    handles = legend_handles(segmentations[0].layout, np.bincount(np.concatenate(labels), minlength=256))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(12, len(handles)), fontsize=5.5)
