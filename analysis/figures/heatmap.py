"""Two keys at once: a map of each score, the varied key across and the second one down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import COLUMN, PAGE, Plot, varied_values
from analysis.labels import is_percent, label, number, order_of, score_label, symbol
from analysis.report_data import ReportData
from analysis.summary import Row, Summary
from sweeps.study import METHOD

DARK = 0.55  # of the extent of a map; texts on darker cells are white
ALONE = {"loss.alpha": 1.0, "loss.local": "none"}  # values at which no option of the local criterion has an effect
LOCAL = (
    *("loss.num_matches", "loss.feature_matches", "loss.select", "loss.location_threshold", "loss.feature_threshold"),
    *("loss.statistics", "loss.local_stage_weights", "loss.local", "model.projector", "model.local_stages"),
)


def draw(data: ReportData) -> Figure | None:
    summary, report = data.summary, data.study.report
    across, down = varied_values(data), second_values(summary)
    if len(summary.row_keys) != 2 or summary.row_keys[1] == METHOD or min(len(across), len(down)) < 2:
        return None
    scores = list(dict.fromkeys([report.x, report.y]))
    cells = {row.values: row for row in summary.settings}
    size = (COLUMN if len(scores) == 1 else PAGE, 1.0 + 0.32 * len(down))
    figure, panels = plt.subplots(1, len(scores), figsize=size, squeeze=False, sharey=True)
    for axes, score in zip(panels[0], scores, strict=True):
        _draw_map(axes, summary, cells, score, across, down)
    panels[0, 0].set_ylabel(symbol(summary.row_keys[1]))
    return figure


def second_values(summary: Summary) -> list[Any]:
    """Return the values of the second key, in its order where it has one."""
    if len(summary.row_keys) < 2:
        return []
    values = list(dict.fromkeys(row.values[1] for row in summary.settings))
    order = order_of(summary.row_keys[1], values)
    return values if order is None else sorted(values, key=order.__getitem__)


def has_no_effect(summary: Summary, varied: Any) -> bool:
    """Return whether the second key changes nothing at a value of the first: VICReg alone has no local criterion."""
    alone = ALONE.get(summary.row_keys[0], object()) == varied
    return summary.row_keys[1] in LOCAL and alone and not summary.own_criterion


def _draw_map(
    axes: Axes, summary: Summary, cells: Mapping[tuple[Any, ...], Row], score: str, across: list[Any], down: list[Any]
) -> None:
    means = np.full((len(down), len(across)), np.nan)
    for (x, y), row in cells.items():
        if estimate := row.scores[score].estimate:
            means[down.index(y), across.index(x)] = estimate.mean
    for column, varied in enumerate(across):
        if has_no_effect(summary, varied) and not np.isnan(means[:, column]).all():
            means[:, column] = np.nanmean(means[:, column])
    axes.imshow(means, cmap="Blues", aspect="auto")
    low, high = (np.nan, np.nan) if np.isnan(means).all() else (np.nanmin(means), np.nanmax(means))
    for column, varied in enumerate(across):
        once = has_no_effect(summary, varied)
        for line in [(len(down) - 1) / 2] if once else range(len(down)):
            mean = means[int(line), column]
            text = "–" if np.isnan(mean) else number(float(mean), is_percent(score))
            white = high > low and mean > low + DARK * (high - low)
            axes.text(column, line, text, ha="center", va="center", fontsize=7, color="white" if white else "0.1")
    axes.set_xticks(range(len(across)), [summary.label(value) for value in across])
    axes.set_yticks(range(len(down)), [label(summary.study, summary.row_keys[1], value) for value in down])
    axes.set_xlabel(symbol(summary.row_keys[0]))
    axes.set_title(score_label(score), loc="left")
    axes.grid(False)


def caption(data: ReportData) -> str:
    first, second = data.summary.row_keys[:2]
    text = f"Means over seeds at each {first} and {second}; darker is higher, and each map has its own scale."
    once = [data.summary.label(value) for value in varied_values(data) if has_no_effect(data.summary, value)]
    return (
        f"{text} At {first} = {', '.join(once)}, {second} has no effect: one cell, the mean of all." if once else text
    )


PLOT = Plot(
    "heatmap",
    draw,
    caption,
    lambda data: f"Maps of both scores over {' and '.join(data.study.row_keys[:2])}",
    place="findings",
    order=2,
)
