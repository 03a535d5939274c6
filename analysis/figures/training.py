"""Training curves of all pretrainings: loss terms, online probe, effective rank; logged values thin, smoothed thick."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import PAGE, Plot, Rgba, add_varied_legend, varied_colors
from analysis.labels import run_link
from analysis.report_data import ReportData
from analysis.summary import comparable

# Column of metrics.jsonl -> title of its panel; the two halves of the criterion stand one above the other.
PANELS = (
    {
        "loss": "loss",
        "rank_pooled": "effective rank, pooled",
        "global_invariance": "global invariance",
        "global_variance": "global variance",
        "global_covariance": "global covariance",
    },
    {
        "probe_top1": "online probe, top-1 (%)",
        "rank_local": "effective rank, local",
        "local_invariance": "local invariance",
        "local_variance": "local variance",
        "local_covariance": "local covariance",
    },
)
MANY = 24  # runs; above this, lines cover each other, and each setting is drawn as a mean with a range
SMOOTHING = 0.05  # standard deviation of the Gaussian window, as a share of the run's steps


def draw(data: ReportData) -> Figure | None:
    history = _grid_history(data)
    known = {name for panels in PANELS for name in panels if name in history and _is_trained(history[name])}
    if not known:
        return None
    figure, grid = plt.subplots(len(PANELS), len(PANELS[0]), figsize=(PAGE, 3.3), squeeze=False, sharex=True)
    colors, column = varied_colors(data), f"grid.{data.study.report.vary}"
    draw_panel = _draw_bands if history["run"].nunique() > MANY else _draw_runs
    for line, panels in zip(grid, PANELS, strict=True):
        for axes, (name, title) in zip(line, panels.items(), strict=True):
            if name in known:
                draw_panel(axes, history, name, column, colors)
                axes.set_title(title, loc="left", fontsize=6.5)
            else:
                axes.remove()
    _label_steps(grid)
    add_varied_legend(figure, data, columns=8)
    return figure


def _grid_history(data: ReportData) -> pd.DataFrame:
    history = data.history
    return history[history["control"].isna()] if len(history) else history


def _is_trained(values: pd.Series) -> bool:
    """Return whether a term is ever not 0; the terms of a half without weight would be empty panels."""
    return bool((values.abs() > 0).any())


def _draw_runs(axes: Axes, history: pd.DataFrame, name: str, column: str, colors: dict[object, Rgba]) -> None:
    for run, rows in history.groupby("run", sort=False):
        known = rows[["step", name]].dropna()
        if known.empty or not _is_trained(known[name]):
            continue
        color = colors[comparable(rows[column].iloc[0])]
        steps, values = known["step"].to_numpy(float), known[name].to_numpy(float)
        axes.plot(steps, values, color=color, linewidth=0.35, alpha=0.5)
        link = run_link(str(run).rpartition("-")[2])
        axes.plot(steps, smoothed(steps, values), color=color, linewidth=0.9, url=link)


def _draw_bands(axes: Axes, history: pd.DataFrame, name: str, column: str, colors: dict[object, Rgba]) -> None:
    """Draw for each setting the mean over its runs and the range of nine in ten of them, step by step."""
    for value, rows in history.groupby(column, sort=False, dropna=False):
        by_step = rows[["step", name]].dropna().groupby("step")[name]
        if by_step.ngroups == 0 or not _is_trained(rows[name].dropna()):
            continue
        low, mean, high = by_step.quantile(0.05), by_step.mean(), by_step.quantile(0.95)
        color = colors[comparable(value)]
        axes.fill_between(mean.index, low, high, color=color, alpha=0.2, linewidth=0)
        axes.plot(mean.index, mean, color=color, linewidth=0.9)


def _label_steps(grid: np.ndarray) -> None:
    """Label the lowest panel that each column has; the axis is shared, but the lowest one may be removed."""
    for column in grid.T:
        shown = [axes for axes in column if axes.figure is not None]
        if shown:
            shown[-1].set_xlabel("step")
            shown[-1].tick_params(labelbottom=True)


def smoothed(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a Gaussian-weighted mean around each step.

    Near the ends the weights of the existing steps alone are normalised: nothing is extrapolated.
    """
    width = SMOOTHING * (steps[-1] - steps[0])
    if len(steps) < 3 or width == 0:
        return values
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


def caption(data: ReportData) -> str:
    grid = data.frame[data.frame["control"].isna()]
    # A results.csv has no curves; those that were drawn from the runs stay, and need their caption.
    runs = grid["pretrain.run"] if data.from_csv else _grid_history(data).get("run", pd.Series(dtype=str))
    if runs.nunique() > MANY:
        return "Training, step by step: the mean over the runs of a setting, and the range of nine in ten of them."
    text = "Training of every run of the grid: logged values thin, smoothed (Gaussian, σ = 5 % of the run) thick"
    unfinished = bool((grid["pretrain.state"] != "done").any())
    return f"{text}; runs that are not done are drawn up to their last logged step." if unfinished else f"{text}."


PLOT = Plot(
    "training",
    draw,
    caption,
    lambda data: "Training curves: loss and its terms, online probe, effective rank against the step",
    place="training",
)
