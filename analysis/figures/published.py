"""The published trade-off on ImageNet-1k and Pascal VOC, to compare the direction: its own axes, its own figure."""

from __future__ import annotations

from itertools import pairwise

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.base import GREY, Plot
from analysis.labels import value_text
from analysis.placement import place_labels
from analysis.published import SOURCES, is_comparable, rows_beside
from analysis.report_data import ReportData

# The published methods span far more than the trade-off within VICRegL does; below this they would squeeze it.
LEAST_TOP1 = 64.0
_LABELS = {
    "linear_top1": "Linear top-1, ImageNet-1k (%)",
    "voc_frozen_miou": "Frozen linear mIoU, Pascal VOC (%)",
}


def draw(data: ReportData) -> Figure | None:
    report = data.study.report
    if is_comparable(data.frame) or not {report.x, report.y} <= set(SOURCES):
        return None  # comparable ones lie on the trade-off figure itself
    x, y = SOURCES[report.x], SOURCES[report.y]
    rows = rows_beside(data.frame).dropna(subset=[x, y])
    rows = rows[rows["linear_top1"] >= LEAST_TOP1]
    figure, axes = plt.subplots()
    family = rows[rows["method"].isin(["VICReg", "VICRegL"])].sort_values("alpha")
    others = rows.drop(family.index)
    axes.plot(others[x], others[y], "D", color=GREY, markerfacecolor="white", markersize=3.5)
    axes.plot(family[x], family[y], "o-", color="C0")
    axes.set(xlabel=_LABELS[x], ylabel=_LABELS[y])
    axes.margins(0.14)
    labels = [(r[x], r[y], f"{r['method']}, α = {value_text(r['alpha'])}", "0.1") for _, r in family.iterrows()]
    labels += [(r[x], r[y], str(r["method"]), GREY) for _, r in others.iterrows()]
    place_labels(figure, axes, labels, list(pairwise(zip(family[x], family[y], strict=True))))
    return figure


def caption(data: ReportData) -> str:
    return (
        "Published, for the direction alone: ResNet-50, ImageNet-1k and Pascal VOC, not this study's data. "
        f"Methods below {LEAST_TOP1:g} % top-1 are in the table and not in the figure."
    )


def alt(data: ReportData) -> str:
    return "Published VOC mIoU against published ImageNet top-1"


PLOT = Plot("published", draw, caption, alt)
