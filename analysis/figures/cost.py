"""What a training step costs at each setting, in time and in memory: each run a dot; medians, joined for numbers."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.cost import MEMORY, TIME, cost_of_a_step
from analysis.figures.base import COLUMN, MANY_CURVES, MANY_POINTS, MARKERS, PAGE, Plot
from analysis.figures.scores import positions_of
from analysis.labels import symbol, value_text
from analysis.report_data import ReportData

_LABELS = {TIME: "ms a step", MEMORY: "peak memory (GB)"}


def draw(data: ReportData) -> Figure | None:
    """A panel for each of time and memory that runs of two settings or more have measured."""
    costs = cost_of_a_step(data)
    known = [name for name in _LABELS if costs.dropna(subset=[name])["varied"].nunique() > 1]
    if not known:
        return None
    values = list(dict.fromkeys(r.varied for _, rows in data.summary.groups() for r in rows))
    positions = positions_of(values, numbers := data.summary.varies_a_number)
    size = (COLUMN if len(known) == 1 else PAGE, 2.2)
    figure, panels = plt.subplots(1, len(known), figsize=size, squeeze=False)
    for axes, name in zip(panels[0], known, strict=True):
        _draw_panel(axes, costs.dropna(subset=[name]), name, positions, "-" if numbers else "")
        axes.set(xlabel=symbol(data.study.report.vary), ylabel=_LABELS[name])
        axes.set_xticks(list(positions.values()), [value_text(value) for value in positions])
        axes.set_ylim(bottom=0)
    if 1 < costs["group"].nunique() <= MANY_CURVES:
        panels[0][0].legend(loc="best", fontsize=6)
    return figure


def _draw_panel(axes: Axes, costs: pd.DataFrame, name: str, positions: dict[object, float], line: str) -> None:
    for index, (group, rows) in enumerate(costs.groupby("group", sort=False)):
        color, marker = f"C{index % 7}", MARKERS[index % 7]
        x = rows["varied"].map(positions)
        axes.plot(x, rows[name], ".", color=color, markersize=3, alpha=0.6, rasterized=len(costs) > MANY_POINTS)
        medians = rows.assign(x=x).groupby("x")[name].median()
        axes.plot(medians.index, medians, line, marker=marker, color=color, label=str(group))


def caption(data: ReportData) -> str:
    vary, costs = data.study.report.vary, cost_of_a_step(data)
    text = (
        f"Milliseconds a training step against {vary}: each run's time over its steps (dots) and their medians. Runs "
        "that shared a machine with other work are slower than they need be."
    )
    missing = int(costs[MEMORY].isna().sum())
    if missing == len(costs):
        return f"{text} Memory: no run has measured it."
    text += " Right: the most memory that a process took, of the GPU where it used one."
    return f"{text} {missing} of {len(costs)} runs have not measured it." if missing else text


def alt(data: ReportData) -> str:
    return f"Time and memory of a training step against {data.study.report.vary}"


PLOT = Plot("cost", draw, caption, alt)
