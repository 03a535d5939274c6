"""Does a diagnostic of the frozen features predict a score? One point a run, and Spearman's correlation over them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis.figures.base import (
    GREY,
    MANY_POINTS,
    OVER_MEAN,
    PAGE,
    Plot,
    Rgba,
    add_links,
    add_varied_legend,
    describe_axis,
    varied_colors,
)
from analysis.labels import run_link
from analysis.report_data import ReportData
from analysis.results import score_column
from analysis.summary import comparable

FEWEST = 6  # runs; over fewer a correlation says nothing, and there is no figure
SHOWN = ("pretrain.rank_pooled", "pretrain.rank_local", "pretrain.std_local")


def draw(data: ReportData) -> Figure | None:
    scores = list(dict.fromkeys([data.study.report.x, data.study.report.y]))
    pairs = {(score, name): pairs_of(data, name, score) for score in scores for name in SHOWN}
    names = [name for name in SHOWN if any(len(pairs[score, name]) >= FEWEST for score in scores)]
    if not names:
        return None
    size = (PAGE / 3 * len(names) + 0.2, 0.3 + 1.75 * len(scores))
    figure, grid = plt.subplots(len(scores), len(names), figsize=size, squeeze=False, sharex="col", sharey="row")
    colors = varied_colors(data)
    for line, score in zip(grid, scores, strict=True):
        for axes, name in zip(line, names, strict=True):
            _draw_panel(axes, pairs[score, name], colors)
        describe_axis(line[0].yaxis, score)
    for axes, name in zip(grid[-1], names, strict=True):
        axes.set_xlabel(name.partition(".")[2].replace("_", " "))
    add_varied_legend(figure, data, columns=4 if len(names) < 3 else 8, marker="o")
    return figure


def pairs_of(data: ReportData, diagnostic: str, score: str) -> pd.DataFrame:
    """Return the columns x (the diagnostic), y (the score), varied and run: a row for each run with both."""
    frame = data.frame[data.frame["control"].isna()]
    keys = [column for column in frame.columns if column.startswith("grid.")]
    x = score_column(frame, diagnostic)[[*keys, "run", "value"]].rename(columns={"value": "x"})
    y = score_column(frame, score)[[*keys, "value"]].rename(columns={"value": "y"})
    both = x.merge(y, on=keys).dropna(subset=["x", "y"])
    return both.assign(varied=both[f"grid.{data.study.report.vary}"])


def _draw_panel(axes: Axes, pairs: pd.DataFrame, colors: dict[object, Rgba]) -> None:
    many = len(pairs) > MANY_POINTS
    for varied, rows in pairs.groupby("varied", sort=False, dropna=False):
        axes.plot(rows["x"], rows["y"], "o", color=colors[comparable(varied)], markersize=3.5, rasterized=many)
    links = [run_link(run) for run in pairs["run"]]
    add_links(axes, zip(pairs["x"], pairs["y"], strict=True), links, OVER_MEAN)
    if text := correlation(pairs):
        axes.set_title(text, loc="right", color=GREY)


def correlation(pairs: pd.DataFrame) -> str:
    """Return text such as "ρ = +0.83 (n = 15)"; empty for too few runs, or where x or y does not vary."""
    if len(pairs) < FEWEST or pairs["x"].nunique() < 2 or pairs["y"].nunique() < 2:
        return ""
    rho = float(stats.spearmanr(pairs["x"], pairs["y"]).statistic)
    return f"ρ = {rho:+.2f} (n = {len(pairs)})".replace("-", "−") if np.isfinite(rho) else ""


def caption(data: ReportData) -> str:
    return (
        "Diagnostics of the frozen features against the scores, one point for each pretraining of the grid; ρ: "
        "Spearman's rank correlation over them. Runs of one setting are not independent evidence for it."
    )


PLOT = Plot(
    "diagnostics",
    draw,
    caption,
    lambda data: "Effective rank and standard deviation of the features against the scores",
    place="collapse",
)
