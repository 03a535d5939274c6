"""Does a diagnostic of the frozen features predict a score? Each run is a point; Spearman's correlation over them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from analysis.figures.base import GREY, MANY_POINTS, PAGE, Plot, describe_axis
from analysis.figures.training import Rgba, varied_colors
from analysis.labels import symbol, value_text
from analysis.report_data import ReportData
from analysis.results import score_column
from analysis.tables import DIAGNOSTICS

# Fewer runs than these have a correlation that says nothing.
FEWEST = 5
_WANTED = ("pretrain.rank_pooled", "pretrain.rank_local", "pretrain.std_local")


def draw(data: ReportData) -> Figure | None:
    names = [name for name in _WANTED if name in DIAGNOSTICS]
    scores = list(dict.fromkeys([data.study.report.x, data.study.report.y]))
    pairs = {(score, name): pairs_of(data, name, score) for score in scores for name in names}
    names = [name for name in names if any(len(pairs[score, name]) > 1 for score in scores)]
    if not names or not any(len(pairs[score, name]) > 1 for score in scores for name in names):
        return None
    size = (PAGE / 3 * len(names) + 0.2, 0.3 + 1.75 * len(scores))
    figure, grid = plt.subplots(len(scores), len(names), figsize=size, squeeze=False, sharex="col", sharey="row")
    colors = varied_colors(data)
    for i, score in enumerate(scores):
        for j, name in enumerate(names):
            _draw_panel(grid[i, j], pairs[score, name], colors)
        describe_axis(grid[i, 0].yaxis, score)
    for j, name in enumerate(names):
        grid[-1, j].set_xlabel(name.partition(".")[2].replace("_", " "))
    vary = symbol(data.study.report.vary)
    handles = [
        plt.Line2D([], [], marker="o", linestyle="", color=c, label=f"{vary} = {value_text(v)}")
        for v, c in colors.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 4 if len(names) < 3 else 8))
    return figure


def pairs_of(data: ReportData, diagnostic: str, score: str) -> pd.DataFrame:
    """Columns x (the diagnostic), y (the score) and varied, a row each run of the grid that has both."""
    frame = data.frame[data.frame["control"].isna()]
    keys = [column for column in frame.columns if column.startswith("grid.")]
    columns = [score_column(frame, name)[[*keys, "value"]] for name in (diagnostic, score)]
    x, y = (column.rename(columns={"value": axis}) for column, axis in zip(columns, "xy", strict=True))
    found = x.merge(y, on=keys).dropna(subset=["x", "y"])
    return found.assign(varied=found[f"grid.{data.study.report.vary}"])


def _draw_panel(axes: Axes, pairs: pd.DataFrame, colors: dict[object, Rgba]) -> None:
    many = len(pairs) > MANY_POINTS
    for varied, rows in pairs.groupby("varied", sort=False):
        axes.plot(rows["x"], rows["y"], "o", color=colors[varied], markersize=3.5, rasterized=many)
    if text := correlation(pairs):
        axes.set_title(text, loc="right", color=GREY)


def correlation(pairs: pd.DataFrame) -> str:
    """ "ρ = +0.83 (n = 15)"; empty for too few runs, or where one of the two does not vary."""
    if len(pairs) < FEWEST or pairs["x"].nunique() < 2 or pairs["y"].nunique() < 2:
        return ""
    rho = float(stats.spearmanr(pairs["x"], pairs["y"]).statistic)
    return f"ρ = {rho:+.2f} (n = {len(pairs)})".replace("-", "−") if np.isfinite(rho) else ""


def caption(data: ReportData) -> str:
    return (
        "Diagnostics of the frozen features against the scores, one point a pretraining of the grid; ρ: Spearman's "
        "rank correlation over them. Runs of one setting are no independent evidence for it."
    )


def alt(data: ReportData) -> str:
    return "Effective rank and standard deviation of the features against the scores"


PLOT = Plot("diagnostics", draw, caption, alt)
