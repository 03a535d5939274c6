"""Training curves of all pretrainings: loss terms, online probe, effective rank; logged thin, smoothed thick."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.base import PAGE, Plot
from analysis.labels import symbol, value_text
from analysis.report_data import ReportData

# Column of metrics.jsonl -> its panel's title; the halves of the criterion stand one below the other.
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
Rgba = tuple[float, float, float, float]
MANY = 60  # runs; more lines than these cannot be told apart
SMOOTHING = 0.05  # standard deviation of the Gaussian window, as a share of the run's steps


def draw(data: ReportData) -> Figure | None:
    history = _of_the_grid(data)
    known = {name for panels in PANELS for name in panels if name in history and _has_shape(history[name])}
    if not known:
        return None
    size = (len(PANELS), len(PANELS[0]))
    figure, grid = plt.subplots(*size, figsize=(PAGE, 3.3), squeeze=False, sharex=True)
    colors = varied_colors(data)
    for line, panels in zip(grid, PANELS, strict=True):
        for axes, (name, title) in zip(line, panels.items(), strict=True):
            if name in known:
                _draw_panel(axes, history, name, data.study.report.vary, colors)
                axes.set_title(title, loc="left", fontsize=6.5)
            else:
                axes.remove()
    _label_steps(grid)
    vary = symbol(data.study.report.vary)
    handles = [Line2D([], [], color=c, label=f"{vary} = {value_text(v)}") for v, c in colors.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 8))
    return figure


def _label_steps(grid: np.ndarray) -> None:
    """The step under the lowest panel that each column has."""
    for column in grid.T:
        shown = [axes for axes in column if axes.figure is not None]
        if shown:
            shown[-1].set_xlabel("step")
            shown[-1].tick_params(labelbottom=True)


def _of_the_grid(data: ReportData) -> pd.DataFrame:
    history = data.history
    return history[history["control"].isna()] if len(history) else history


def _has_shape(values: pd.Series) -> bool:
    """A term that is 0 throughout (of a half that is not trained) would be an empty panel."""
    return bool((values.abs() > 0).any())


def varied_colors(data: ReportData) -> dict[object, Rgba]:
    """Light to dark in the order of the varied field: an order that is seen in grey too."""
    values = list(dict.fromkeys(row.varied for _, rows in data.summary.groups() for row in rows))
    shades = np.linspace(0.88, 0.0, len(values)) if len(values) > 1 else [0.3]
    return {value: colormaps["viridis"](shade) for value, shade in zip(values, shades, strict=True)}


def _draw_panel(axes: Axes, history: pd.DataFrame, name: str, vary: str, colors: dict[object, Rgba]) -> None:
    if history["run"].nunique() > MANY:
        _draw_bands(axes, history, name, vary, colors)
        return
    for _, rows in history.groupby("run", sort=False):
        known = rows[["step", name]].dropna()
        if known.empty or not _has_shape(known[name]):
            continue
        color = colors[rows[f"grid.{vary}"].iloc[0]]
        steps, values = known["step"].to_numpy(float), known[name].to_numpy(float)
        axes.plot(steps, values, color=color, linewidth=0.35, alpha=0.5)
        axes.plot(steps, smoothed(steps, values), color=color, linewidth=0.9)


def _draw_bands(axes: Axes, history: pd.DataFrame, name: str, vary: str, colors: dict[object, Rgba]) -> None:
    """For each setting the mean over its runs and the range of nine in ten of them, step by step."""
    for value, rows in history.groupby(f"grid.{vary}", sort=False):
        by_step = rows[["step", name]].dropna().groupby("step")[name]
        if by_step.ngroups == 0 or not _has_shape(rows[name].dropna()):
            continue
        low, mean, high = by_step.quantile(0.05), by_step.mean(), by_step.quantile(0.95)
        axes.fill_between(mean.index, low, high, color=colors[value], alpha=0.2, linewidth=0)
        axes.plot(mean.index, mean, color=colors[value], linewidth=0.9)


def smoothed(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A Gaussian-weighted mean around each step; at the ends over what there is, so that it invents nothing."""
    width = SMOOTHING * (steps[-1] - steps[0])
    if len(steps) < 3 or width == 0:
        return values
    weights = np.exp(-0.5 * ((steps[:, None] - steps[None, :]) / width) ** 2)
    return weights @ values / weights.sum(axis=1)


def caption(data: ReportData) -> str:
    grid = data.frame[data.frame["control"].isna()]
    unfinished = grid["pretrain.state"] != "done"
    runs = grid["pretrain.run"] if data.of_a_table else _of_the_grid(data).get("run", pd.Series(dtype=str))
    if runs.nunique() > MANY:
        return "Training, step by step: the mean over the runs of a setting, and the range of nine in ten of them."
    text = "Training of every run of the grid: logged values thin, smoothed (Gaussian, σ = 5 % of the run) thick"
    return f"{text}; runs that are not done are drawn as far as they got." if unfinished.any() else f"{text}."


def alt(data: ReportData) -> str:
    return "Training curves: loss and its terms, online probe, effective rank against the step"


PLOT = Plot("training", draw, caption, alt)
