"""The published trade-off, for the overview of all reports: a study on other data shows no such points on its axes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.base import GREY, STYLE, save
from analysis.figures.placement import place_labels
from analysis.published import names, published

NAME = "published"  # of the files, in the folder of the reports
# The other methods span far more than the trade-off within VICRegL, and would squeeze it.
LEAST_TOP1 = 64.0
X, Y = "linear_top1", "voc_frozen_miou"
CAPTION = (
    "Published, for the direction alone: ResNet-50, ImageNet-1k and Pascal VOC. Methods below "
    f"{LEAST_TOP1:g} % top-1 are in the tables and not in the figure."
)
ALT = "Published VOC mIoU against published ImageNet top-1"


def write_published(folder: Path) -> None:
    """Write published.png, .pdf and .svg."""
    with plt.style.context(STYLE):
        save(draw(), folder, NAME)


def draw() -> Figure:
    known = published().dropna(subset=[X, Y])
    rows = known[(known["backbone"] == "resnet50") & (known[X] >= LEAST_TOP1)]
    family = rows[rows["method"].isin(["VICReg", "VICRegL"])].sort_values("alpha")
    others = rows.drop(family.index)
    figure, axes = plt.subplots()
    axes.plot(others[X], others[Y], "D", color=GREY, markerfacecolor="white", markersize=3.5)
    axes.plot(family[X], family[Y], "o-", color="C0", markerfacecolor="white")
    axes.set(xlabel="Linear top-1, ImageNet-1k (%)", ylabel="Frozen linear mIoU, Pascal VOC (%)")
    axes.margins(0.14)
    labels = [
        (x, y, name, color)
        for some, color in ((family, "0.1"), (others, GREY))
        for x, y, name in zip(some[X], some[Y], names(some), strict=True)
    ]
    place_labels(figure, axes, labels, list(pairwise(zip(family[X], family[Y], strict=True))))
    return figure
