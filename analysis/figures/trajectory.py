"""The trade-off over training: each setting's path in the plot of the two scores, and each score against steps.

Drawn for studies whose evaluations take kept checkpoints (`evals.<name>.at`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import chain

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures.base import GREY, PAGE, Plot, Rgba, add_varied_legend, describe_axis, varied_colors
from analysis.labels import short_labels
from analysis.report_data import ReportData
from analysis.summary import Row, Summary, summarize
from runtime.config import Duration
from sweeps.checkpoints import PRETRAIN

END = f"{PRETRAIN}.end"  # as a score: the length of a training
_LINES = ("-", "--", ":", "-.")  # of the curves of a study with several
_SIZES = (1.5, 4.0)  # points, of the first and the last dot of a line


@dataclass(frozen=True)
class Trajectory:
    """The scores of one setting over training."""

    row: Row
    seeds: dict[Hashable, np.ndarray]  # (moments, 3) of each seed: time, x, y, in the order of time

    @property
    def mean(self) -> np.ndarray:
        """The mean over the seeds that have the most moments: others would shift it where they end."""
        most = max(map(len, self.seeds.values()))
        return np.mean([points for points in self.seeds.values() if len(points) == most], axis=0)


def moments(data: ReportData) -> list[str]:
    """Return the moments of which both scores of the report have an evaluation, in order."""
    names = set(data.frame["eval.name"].dropna())
    x, y = (score.partition(".")[0] for score in (data.study.report.x, data.study.report.y))
    found = [name.removeprefix(f"{x} at ") for name in names if re.fullmatch(rf"{re.escape(x)} at \d+ \w+", name)]
    both = [moment for moment in found if f"{y} at {moment}" in names]
    return sorted(both, key=lambda moment: int(moment.split()[0]))


def _at(score: str, moment: str) -> str:
    """linear.top1, "100 steps" -> "linear at 100 steps.top1", the name of that score in the table of results."""
    source, _, name = score.partition(".")
    return f"{source} at {moment}.{name}"


def trajectories(data: ReportData) -> tuple[list[Trajectory], list[Trajectory]]:
    """Return those of the settings, and the controls without training, as one point each."""
    report, times = data.study.report, moments(data)
    ends = data.frame["pretrain.train.duration"].map(lambda text: Duration.parse(text).amount, na_action="ignore")
    frame = data.frame.assign(**{f"{PRETRAIN}.result.end": ends})
    pairs = [(_at(report.x, moment), _at(report.y, moment)) for moment in times] + [(report.x, report.y)]
    summary = summarize(frame, data.study, [*dict.fromkeys(chain(*pairs)), END])
    lengths = [float(moment.split()[0]) for moment in times]
    settings = [made for _, rows in summary.groups() for row in rows if (made := _trajectory(row, pairs, lengths))]
    controls = [made for row in summary.controls if (made := _trajectory(row, pairs, lengths)) is not None]
    return settings, [made for made in controls if not made.mean[-1, 0]]


def _trajectory(row: Row, pairs: list[tuple[str, str]], lengths: list[float]) -> Trajectory | None:
    seeds: dict[Hashable, np.ndarray] = {}
    for seed, end in row.scores[END].by_seed.items():
        values = [[_value(row, score, seed) for score in pair] for pair in pairs]
        points = np.column_stack([[*lengths, end], values])
        points = points[~np.isnan(points).any(axis=1)]
        if len(points):
            seeds[seed] = points
    return Trajectory(row, seeds) if seeds else None


def _value(row: Row, score: str, seed: Hashable) -> float:
    return row.scores[score].by_seed.get(seed, np.nan) if score in row.scores else np.nan


def draw(data: ReportData) -> Figure | None:
    if not moments(data):
        return None
    settings, controls = trajectories(data)
    figure, panels = plt.subplot_mosaic([["plane", "x"], ["plane", "y"]], figsize=(PAGE, 3.2), width_ratios=[3, 2])
    _label(panels, data)
    colors, styles = varied_colors(data), _styles(data.summary)
    for trajectory in settings:
        color, line = colors[trajectory.row.varied], styles[trajectory.row.group]
        for panel, columns in (("plane", (1, 2)), ("x", (0, 1)), ("y", (0, 2))):
            _draw_line(panels[panel], trajectory, columns, color, line, arrow=panel == "plane")
    for control in controls:
        for panel, columns in (("plane", (1, 2)), ("x", (0, 1)), ("y", (0, 2))):
            panels[panel].plot(*control.mean[-1, columns], "x", color=GREY, zorder=3)
    add_varied_legend(figure, data, columns=8)
    if len(styles) > 1:
        for group, style in styles.items():
            name = short_labels(data.study, data.summary.row_keys[1:], group)
            panels["plane"].plot([], [], color="0.1", linestyle=style, label=name)
        panels["plane"].legend(loc="best")
    return figure


def _label(panels: dict[str, Axes], data: ReportData) -> None:
    report, unit = data.study.report, moments(data)[0].split()[1]
    describe_axis(panels["plane"].xaxis, report.x)
    describe_axis(panels["plane"].yaxis, report.y)
    describe_axis(panels["x"].yaxis, report.x)
    describe_axis(panels["y"].yaxis, report.y)
    for panel in "xy":
        panels[panel].yaxis.label.set_fontsize(7)
    panels["x"].sharex(panels["y"])
    panels["x"].tick_params(labelbottom=False)
    panels["y"].set_xlabel(unit)


def _styles(summary: Summary) -> dict[tuple[Hashable, ...], str]:
    return {group: _LINES[index % len(_LINES)] for index, (group, _) in enumerate(summary.groups())}


def _draw_line(
    axes: Axes, trajectory: Trajectory, columns: tuple[int, int], color: Rgba, line: str, arrow: bool
) -> None:
    """Draw each seed thin and their mean thick, with dots that grow over time; the longest part may have an arrow."""
    if len(trajectory.seeds) > 1:
        for points in trajectory.seeds.values():
            axes.plot(*points[:, columns].T, color=color, linewidth=0.4, alpha=0.4, linestyle=line, zorder=1)
    mean = trajectory.mean[:, columns]
    axes.plot(*mean.T, color=color, linewidth=1.0, linestyle=line, zorder=2)
    x, y = mean.T
    axes.scatter(x, y, s=np.linspace(*_SIZES, len(mean)) ** 2, color=color, linewidths=0, zorder=3)
    if arrow and len(mean) > 1:
        style = {"arrowstyle": "-|>", "color": color, "mutation_scale": 11, "shrinkA": 0, "shrinkB": 0, "linewidth": 0}
        longest = int(np.linalg.norm(np.diff(mean, axis=0), axis=1).argmax())
        start, end = mean[longest], mean[longest + 1]
        axes.annotate("", xy=tuple((start + end) / 2), xytext=tuple(start), arrowprops=style, zorder=4)


def caption(data: ReportData) -> str:
    settings, controls = trajectories(data)
    times = moments(data)
    text = (
        f"The trade-off over training: each line is one {data.study.report.vary}, from the checkpoint after {times[0]} "
        "to the end of training, along its arrow; dots are checkpoints, larger ones later. Right: both scores over "
        "training"
    )
    if any(len(trajectory.seeds) > 1 for trajectory in settings):
        text += "; thin lines are single seeds, thick ones their mean"
    names = list(dict.fromkeys(str(control.row.control) for control in controls))
    return f"{text}; cross: {', '.join(names)}." if names else f"{text}."


def alt(data: ReportData) -> str:
    report, unit = data.study.report, moments(data)[0].split()[1]
    return f"{report.y} against {report.x} over training, and both against {unit}"


PLOT = Plot("trajectory", draw, caption, alt, place="findings", order=1)
