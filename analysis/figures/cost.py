"""What training costs: the time of each stage; time and memory of a step, where analysis.cost_bench measured them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import (
    COLUMN,
    MANY_CURVES,
    MANY_POINTS,
    PAGE,
    Plot,
    curve_style,
    describe_varied_axis,
    varied_positions,
)
from analysis.labels import NONE, number, short_labels
from analysis.render import Table
from analysis.report_data import ReportData
from analysis.results import commit_text, runs_of
from analysis.summary import comparable
from runtime.progress import describe_seconds

TIME, MEMORY = "milliseconds", "gigabytes"  # columns of step_costs
_COLUMNS = ["varied", "group", "round", TIME, MEMORY]
_LABELS = {TIME: "ms a step", MEMORY: "peak memory (GB)"}


def stage_table(frame: pd.DataFrame) -> Table:
    """Return the time of each stage: its runs, their sum, and a run (mean, shortest to longest)."""
    lines = []
    for part, runs in runs_of(frame).groupby("part", sort=False):
        seconds = pd.to_numeric(runs["seconds"], errors="coerce").dropna()
        if seconds.empty:
            lines.append([str(part), f"0 of {len(runs)}", NONE, NONE, NONE])
            continue
        spread = f"{describe_seconds(seconds.min())} to {describe_seconds(seconds.max())}"
        times = (describe_seconds(seconds.sum()), describe_seconds(seconds.mean()), spread)
        lines.append([str(part), f"{len(seconds)} of {len(runs)}", *times])
    return Table(["stage", "runs with a time", "together", "a run", "shortest to longest"], [lines])


def step_costs(data: ReportData) -> pd.DataFrame:
    """Return the columns varied, group, round, milliseconds and gigabytes: a row for each measurement of a setting."""
    vary, *others = data.study.row_keys
    costs = data.costs
    if costs is None or not {f"grid.{key}" for key in data.study.row_keys} <= set(costs):
        return pd.DataFrame({name: [] for name in _COLUMNS})
    groups = [
        short_labels(data.study, others, [row[f"grid.{key}"] for key in others]) for row in costs.to_dict("records")
    ]
    known = costs.assign(varied=costs[f"grid.{vary}"], group=groups)[_COLUMNS]
    settings = {row.varied for row in data.summary.settings}
    return known[[comparable(varied) in settings for varied in known["varied"]]]


def step_table(data: ReportData) -> Table | None:
    """Return the cost of a step at each setting: medians over the rounds, and their range; None without any."""
    costs = step_costs(data)
    if costs.empty:
        return None
    several = costs["group"].nunique() > 1
    header = [data.study.report.vary, *(["curve"] if several else []), "rounds", *_LABELS.values()]
    lines = []
    for (varied, group), rows in costs.groupby(["varied", "group"], sort=False, dropna=False):
        name = [data.summary.label(comparable(varied)), *([str(group)] if several else [])]
        lines.append([*name, str(len(rows)), _spread(rows[TIME]), _spread(rows[MEMORY])])
    return Table(header, [lines])


def _spread(values: pd.Series) -> str:
    """Return text such as "310 (305 to 322), 1 not measured"."""
    known = values.dropna()
    if known.empty:
        return NONE
    text = number(known.median(), False)
    if len(known) > 1:
        text += f" ({number(known.min(), False)} to {number(known.max(), False)})"
    return text if len(known) == len(values) else f"{text}, {len(values) - len(known)} not measured"


def draw(data: ReportData) -> Figure | None:
    """Draw a panel for each of time and memory that was measured at two or more settings."""
    costs = step_costs(data)
    known = [name for name in _LABELS if costs.dropna(subset=[name])["varied"].nunique() > 1]
    if not known:
        return None
    positions, line = varied_positions(data), "-" if data.summary.order else ""
    size = (COLUMN if len(known) == 1 else PAGE, 2.2)
    figure, panels = plt.subplots(1, len(known), figsize=size, squeeze=False)
    for axes, name in zip(panels[0], known, strict=True):
        _draw_panel(axes, costs.dropna(subset=[name]), name, positions, line)
        axes.set_ylabel(_LABELS[name])
        describe_varied_axis(axes, data, positions)
        axes.set_ylim(0, 1.1 * costs[name].max())  # room for the markers of the highest
    if 1 < costs["group"].nunique() <= MANY_CURVES:
        panels[0][0].legend(loc="best", fontsize=6)
    return figure


def _draw_panel(axes: Axes, costs: pd.DataFrame, name: str, positions: dict[object, float], line: str) -> None:
    for index, (group, rows) in enumerate(costs.groupby("group", sort=False)):
        color, marker = curve_style(index)
        x = np.array([positions[comparable(varied)] for varied in rows["varied"]])
        axes.plot(x, rows[name], ".", color=color, markersize=4, alpha=0.4, rasterized=len(costs) > MANY_POINTS)
        medians = rows.assign(x=x).groupby("x")[name].median()
        axes.plot(medians.index, medians, linestyle=line, marker=marker, color=color, label=str(group), clip_on=False)


def caption(data: ReportData) -> str:
    costs, measured = data.costs, step_costs(data)
    where = [] if costs is None else [*dict.fromkeys(costs["machine"]), *_commits(costs)]
    text = (
        f"Time of a training step, and peak memory of the process, against {data.study.report.vary}: every setting in "
        f"turns on one machine ({', '.join(where)}), single rounds (faint) and medians."
    )
    return text + (" Memory was not measured." if measured[MEMORY].isna().all() else "")


def _commits(costs: pd.DataFrame) -> list[str]:
    """Return the commits of the code that was measured; files made before they were recorded have none."""
    return [commit_text(commit) for commit in dict.fromkeys(costs.get("commit", pd.Series(dtype=str)))]


PLOT = Plot(
    "cost",
    draw,
    caption,
    lambda data: f"Time and memory of a training step against {data.study.report.vary}",
    place="cost",
)
