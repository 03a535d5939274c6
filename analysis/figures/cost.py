"""What a training step costs at each setting: milliseconds, each run a dot, medians joined."""

from __future__ import annotations

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from analysis.figures.base import MANY_POINTS, MARKERS, Plot
from analysis.figures.scores import positions_of
from analysis.labels import symbol, value_text
from analysis.material import Material


def draw(material: Material) -> Figure | None:
    times = milliseconds_a_step(material)
    if times["varied"].nunique() < 2:
        return None
    positions = positions_of(list(dict.fromkeys(r.varied for _, rows in material.summary.groups() for r in rows)))
    figure, axes = plt.subplots(figsize=(3.4, 2.2))
    for index, (group, rows) in enumerate(times.groupby("group", sort=False)):
        color, marker = f"C{index % 7}", MARKERS[index % 7]
        x = rows["varied"].map(positions)
        axes.plot(
            x, rows["milliseconds"], ".", color=color, markersize=3, alpha=0.6, rasterized=len(times) > MANY_POINTS
        )
        medians = rows.assign(x=x).groupby("x")["milliseconds"].median()
        axes.plot(medians.index, medians, marker=marker, color=color, label=str(group))
    axes.set(xlabel=symbol(material.study.report.vary), ylabel="ms a step")
    axes.set_xticks(list(positions.values()), [value_text(value) for value in positions])
    axes.set_ylim(bottom=0)
    if times["group"].nunique() > 1:
        axes.legend(loc="best", fontsize=6)
    return figure


def milliseconds_a_step(material: Material) -> pd.DataFrame:
    """Columns varied, group, milliseconds; a row each finished pretraining of the grid that trained at all.

    The run's own seconds over its steps: data, diagnostics and saving included.
    """
    keys = [f"grid.{key}" for key in material.study.row_keys]
    frame, wanted = material.frame, ["pretrain.result.seconds", "pretrain.result.steps"]
    if not set(wanted) <= set(frame.columns):
        return pd.DataFrame({"varied": [], "group": [], "milliseconds": []})
    runs = frame[frame["control"].isna()].drop_duplicates("pretrain.run").dropna(subset=wanted)
    runs = runs[runs["pretrain.result.steps"] > 0]
    names = [", ".join(f"{symbol(k)} = {value_text(r[k])}" for k in keys[1:]) for r in runs.to_dict("records")]
    cost = 1000 * runs["pretrain.result.seconds"] / runs["pretrain.result.steps"]
    return pd.DataFrame({"varied": runs[keys[0]], "group": names, "milliseconds": cost})


def caption(material: Material) -> str:
    return (
        f"Milliseconds a training step against {material.study.report.vary}: each run's time over its steps (dots) and "
        "their medians. Runs that shared a machine with other work are slower than they need be."
    )


def alt(material: Material) -> str:
    return f"Time of a training step against {material.study.report.vary}"


PLOT = Plot("cost", draw, caption, alt)
