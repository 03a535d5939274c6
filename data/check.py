"""Check a dataset before spending hours on it.

    python -m data.check imagenet data.root=/path/to/imagenet           # some hundred files, a picture
    python -m data.check voc data.root=/path/to/VOCdevkit --all         # every file

Describes the dataset, draws a sheet of samples with their labels or masks, and exits with 2 if anything is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from data.catalog import Dataset, open_dataset
from data.check_files import SPLITS, Findings, check_images, check_masks, check_strays, sample
from data.config import DataConfig
from data.images import Pixels, read_image
from data.layout import SegmentationLayout
from runtime import PROJECT, files
from runtime import config as configs
from runtime.config import Config, require
from runtime.console import make_parser
from runtime.errors import UserError, run_command

T = TypeVar("T")

SAMPLES = 200  # files of each split
BRIEF = 16  # the same for a preflight
COLUMNS = 6  # of the sheet
IGNORED = (224, 224, 192)  # the colour that VOC gives to ignored pixels
Cell = tuple[str, Pixels | None]  # a title, and what is shown under it


class CheckConfig(Config):
    data: DataConfig = DataConfig()


def main(argv: Sequence[str]) -> None:
    parser = make_parser("data.check", __doc__)
    parser.add_argument("dataset", help="its name, as scenes, imagenet, imagefolder, voc")
    parser.add_argument("--all", action="store_true", help=f"read every file, not {SAMPLES} of each split")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="files of each split to read")
    parser.add_argument("--out", type=Path, help="the picture; default: reports/check/<dataset>.png")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as data.root=/path")
    arguments = configs.parse_command(parser, argv)
    require(arguments.samples >= 1, "--samples", arguments.samples, "1 or more")
    config = configs.load(CheckConfig, None, [f"data.name={arguments.dataset}", *arguments.overrides])
    dataset = open_dataset(config.data)
    out = arguments.out or PROJECT / "reports" / "check" / f"{dataset.name}.png"
    files.make_folder(out.parent, "write elsewhere: --out FILE")  # before minutes of reading
    print(f"{dataset.name} at {dataset.root}", flush=True)
    findings = check_all(dataset, None if arguments.all else arguments.samples)
    print("\n".join([*findings.lines, *findings.notes]))
    draw_sheet(dataset, out)
    print(f"wrote {out}", flush=True)
    refuse(dataset.name, dataset.root, findings.problems)
    print("no problem found" + ("" if arguments.all else " in what was read; --all reads every file"))


def check_all(dataset: Dataset, samples: int | None) -> Findings:
    """Run every check that fits the dataset. A split that cannot be opened is a problem, and the others continue."""
    findings = Findings()
    if dataset.classes:
        try:
            findings.join(check_images(dataset, samples))
        except UserError as error:
            findings.problems.append(str(error))
    if dataset.has_masks:
        findings.join(check_masks(dataset.segmentation(), samples))
        findings.join(check_strays(dataset.segmentation()))
    return findings


def preflight(config: DataConfig, masks: bool) -> tuple[Dataset, list[str]]:
    """Check the dataset of an evaluation briefly (its masks if `masks`): return it with notes, refuse problems.

    Reads BRIEF files of each split, whatever the dataset's size, and with masks the headers of all (a second for ten
    thousand files). open_dataset refuses what the layout alone shows.
    """
    dataset = open_dataset(config)
    findings = check_masks(dataset.segmentation(), BRIEF) if masks else check_images(dataset, BRIEF)
    refuse(config.name, dataset.root, findings.problems)
    return dataset, findings.notes


def refuse(name: str, root: Path, problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"dataset {name} at {root}: {len(problems)} kinds of problems{listed}")


def draw_sheet(dataset: Dataset, out: Path) -> None:
    """Draw samples of each split: a row with their labels; a row without and one with their masks."""
    from matplotlib.figure import Figure

    rows: list[list[Cell]] = []
    for split in SPLITS:
        if dataset.classes:
            rows.append(labelled(dataset, split))
        if dataset.has_masks:
            rows += masked(dataset.segmentation(), split)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.5 * len(rows)), dpi=110, layout="constrained")
    figure.suptitle(f"{dataset.name}: {dataset.root}", fontsize=9)
    axes: Any = figure.subplots(len(rows), COLUMNS, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for row, cells in zip(axes, rows, strict=True):
        for axis, (title, pixels) in zip(row, cells, strict=False):
            axis.set_title(title, fontsize=7)
            if pixels is not None:
                axis.imshow(pixels, interpolation="nearest")
    figure.savefig(out)


def labelled(dataset: Dataset, split: str) -> list[Cell]:
    """Return some images with their classes; none of a split that cannot be opened."""
    try:
        images = dataset.images(split)
    except UserError:
        return []
    labels = images.labels or []
    return [
        (f"{split}: {dataset.classes[labels[number]]}\n{images.paths[number].name}", _try(images.read, number))
        for number in sample(range(len(images)), COLUMNS)
    ]


def masked(layout: SegmentationLayout, split: str) -> list[list[Cell]]:
    """Return a row of images, and a row of the same with their masks, titled by the largest classes."""
    masks = {layout.image(split, name): layout.mask(split, name) for name in layout.names(split)}
    plain: list[Cell] = []
    covered: list[Cell] = []
    for image in sample(list(masks), COLUMNS):
        pixels, mask = _try(read_image, image), masks[image]
        plain.append((f"{split}\n{image.name}", pixels))
        try:
            labels = layout.read_mask(mask)
        except UserError:
            covered.append((f"{mask.name}\ncannot be read", None))
        else:
            covered.append((_largest(labels, layout.classes), overlay(pixels, labels, layout)))
    return [plain, covered]


def _largest(labels: np.ndarray, classes: Sequence[str]) -> str:
    """Return the names of the four classes with most pixels, on two lines."""
    number = np.bincount(labels.ravel(), minlength=256)[: len(classes)]
    most = [classes[k] for k in np.argsort(-number, kind="stable")[:4] if number[k]]
    return "\n".join([", ".join(most[:2]), ", ".join(most[2:])])


def overlay(pixels: Pixels | None, labels: np.ndarray, layout: SegmentationLayout) -> Pixels:
    """Return the classes' colours, over the image if it could be read and has the mask's size."""
    palette = np.full((256, 3), IGNORED, np.uint8)
    palette[: len(layout.palette)] = layout.palette
    colours = palette[labels]
    if pixels is None or pixels.shape[:2] != labels.shape:
        return colours
    return (0.4 * pixels + 0.6 * colours).astype(np.uint8)


def _try(read: Callable[[T], Pixels], item: T) -> Pixels | None:
    try:
        return read(item)
    except UserError:
        return None


if __name__ == "__main__":
    run_command(main)
