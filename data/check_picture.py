"""A few samples of a dataset with their labels, or with their masks over them, on one sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Dataset
from data.check_images import SPLITS, sample
from data.images import Pixels, read_image
from data.layout import SegmentationLayout
from runtime.errors import UserError

COLUMNS = 6
IGNORED = (224, 224, 192)  # as VOC draws it


def draw(dataset: Dataset, layout: SegmentationLayout | None, out: Path) -> None:
    """One row a split of labelled images; two, images and masks over them, of a dataset with masks."""
    from matplotlib.figure import Figure

    rows = []
    for split in SPLITS:
        if dataset.classes:
            rows.append(labelled(dataset, split))
        if layout is not None:
            rows += masked(layout, split)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.5 * len(rows)), dpi=110, layout="constrained")
    figure.suptitle(f"{dataset.name}: {dataset.root}", fontsize=9)
    axes = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for row, cells in zip(axes, rows, strict=True):
        for place, (title, pixels) in zip(row, [*cells, *[("", None)] * COLUMNS], strict=False):
            _draw_cell(place, title, pixels)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def _draw_cell(axes: Any, title: str, pixels: Pixels | None) -> None:
    axes.axis("off")
    axes.set_title(title, fontsize=7)
    if pixels is not None:
        axes.imshow(pixels, interpolation="nearest")


def labelled(dataset: Dataset, split: str) -> list[tuple[str, Pixels | None]]:
    """("train: class", image) of some images; none of a split that cannot be opened."""
    try:
        images = dataset.images(split)
    except UserError:
        return []
    labels = dict(zip(images.paths, images.labels or [], strict=True))
    return [
        (f"{split}: {dataset.classes[labels[path]]}\n{path.name}", _read(path))
        for path in sample(images.paths, COLUMNS)
    ]


def masked(layout: SegmentationLayout, split: str) -> list[list[tuple[str, Pixels | None]]]:
    """A row of images, and a row of the same under their masks, titled by the classes that cover most."""
    names = layout.names(split)
    by_path = {layout.image(split, name): layout.mask(split, name) for name in names}
    plain: list[tuple[str, Pixels | None]] = []
    covered: list[tuple[str, Pixels | None]] = []
    for image, mask in ((path, by_path[path]) for path in sample(list(by_path), COLUMNS)):
        pixels = _read(image)
        plain.append((f"{split}\n{image.name}", pixels))
        try:
            labels = layout.read_mask(mask)
        except UserError:
            covered.append((f"{mask.name}\ncannot be read", None))
            continue
        covered.append((_present(labels, layout.classes), overlay(pixels, labels, layout)))
    return [plain, covered]


def _present(labels: np.ndarray, classes: Sequence[str]) -> str:
    number = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    most = [classes[k] for k in np.argsort(-number, kind="stable")[:4] if number[k]]
    return "\n".join([", ".join(most[:2]), ", ".join(most[2:])])


def overlay(pixels: Pixels | None, labels: np.ndarray, layout: SegmentationLayout) -> Pixels:
    """The classes' colours, over the image where that was read and has the mask's size."""
    palette = np.full((256, 3), IGNORED, np.uint8)
    palette[: len(layout.palette)] = layout.palette
    colours = palette[labels]
    if pixels is None or pixels.shape[:2] != labels.shape:
        return colours
    return (0.4 * pixels + 0.6 * colours).astype(np.uint8)


def _read(path: Path) -> Pixels | None:
    try:
        return read_image(path)
    except UserError:
        return None
