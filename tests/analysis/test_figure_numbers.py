"""What the other figures draw, against the numbers computed plainly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.figures import cost, diagnostics, published, scores, tradeoff, training, write
from analysis.figures.base import STYLE, interval, varied_colors
from analysis.published import column_beside, values_beside
from analysis.report_data import ReportData
from analysis.statistics import Estimate
from tests.analysis.conftest import make_study
from tests.analysis.published_study import measured_as_published

ReportDataOf = Callable[..., ReportData]
ALPHAS = [0.0, 0.5, 1.0]


def some_report_data(report_data_of: ReportDataOf, runs: int = 3) -> ReportData:
    """With a pretraining's columns: rank rises with alpha and seed, 0.25 s a step at alpha 0, 0.5 s at alpha 1."""
    rows = [(None, {"loss.alpha": a, "seed": s}, 60 + a + s, 30 - 8 * a + s) for a in ALPHAS for s in range(runs)]
    rows += [("no pretraining", {"loss.alpha": None, "seed": 0}, 10.0, 5.0)]
    data = report_data_of({"loss.alpha": ALPHAS, "seed": list(range(runs))}, rows)
    frame = data.frame
    alpha = frame["grid.loss.alpha"].astype(float)
    name = "run " + frame["grid.loss.alpha"].astype(str) + " " + frame["grid.seed"].astype(str)
    steps = np.where(frame["control"].isna(), 100, 0)
    frame = frame.assign(
        **{
            "pretrain.run": name,
            "pretrain.result.rank_pooled": 20 + 10 * alpha.fillna(0) + frame["grid.seed"],
            "pretrain.result.steps": steps,
            "pretrain.result.seconds": (0.25 + alpha.fillna(0) / 4) * steps,
        }
    )
    once = frame[frame["eval.name"] == "linear"]
    logged = [
        {"run": n, "control": None, "grid.loss.alpha": a, "grid.seed": s, "step": step, "loss": step * (1 + a) + s}
        for n, a, s, control in once[["pretrain.run", "grid.loss.alpha", "grid.seed", "control"]].to_numpy()
        if control is None or control != control
        for step in range(10, 110, 10)
    ]
    return ReportData(data.study, frame, pd.DataFrame(logged))


def drawn(draw: Callable[[ReportData], Figure | None], data: ReportData) -> Figure:
    with plt.style.context(STYLE):
        figure = draw(data)
        plt.close("all")
    assert figure is not None
    return figure


def test_no_axis_of_a_share_reaches_beyond_all_of_it(report_data_of: ReportDataOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 99 - 2 * s, 1 + 2 * s) for a in (0.0, 1.0) for s in range(2)]
    data = report_data_of({"loss.alpha": [0.0, 1.0], "seed": [0, 1]}, rows)
    for draw in (tradeoff.draw, scores.draw):
        for axes in drawn(draw, data).axes:
            for score, axis in ((axes.get_xlabel(), axes.xaxis), (axes.get_ylabel(), axes.yaxis)):
                if "%" in score:
                    low, high = axis.get_view_interval()  # the intervals of two seeds are wide, and beyond it
                    assert 0 <= low < high <= 100
            for line in axes.lines:
                assert all(0 <= value <= 100 for value in line.get_ydata())


def test_the_pareto_front() -> None:
    points = [(1.0, 5.0), (2.0, 4.0), (2.0, 3.0), (3.0, 4.5), (4.0, 1.0), (4.0, 1.0), (0.0, 5.0)]
    brute = {p for p in points if not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points)}
    assert tradeoff.pareto_front(points) == sorted(brute, reverse=True) == [(4.0, 1.0), (3.0, 4.5), (1.0, 5.0)]


def test_two_panels_one_score_each(report_data_of: ReportDataOf) -> None:
    upper, lower = drawn(scores.draw, some_report_data(report_data_of)).axes
    assert upper.lines[-1].get_ydata() == pytest.approx([61.0, 61.5, 62.0])
    assert lower.lines[-1].get_ydata() == pytest.approx([31.0, 27.0, 23.0])
    assert [label.get_text() for label in lower.get_xticklabels()] == ["0", "0.5", "1"]
    assert lower.get_position().y1 < upper.get_position().y0


def tradeoff_axes(report_data_of: ReportDataOf, top1: dict[tuple[float, int], float]) -> Axes:
    alphas, seeds = (sorted({key[i] for key in top1}) for i in (0, 1))
    rows = [(None, {"loss.alpha": a, "seed": s}, x, 40 - 10 * a + 0.01 * s) for (a, s), x in top1.items()]
    return drawn(tradeoff.draw, report_data_of({"loss.alpha": alphas, "seed": seeds}, rows)).axes[0]


def test_a_wide_interval_does_not_set_the_axes_and_ends_in_an_arrow(report_data_of: ReportDataOf) -> None:
    values = {(0.0, 0): 60.0, (0.0, 1): 60.2, (0.5, 0): 64.0, (0.5, 1): 64.2, (1.0, 0): 20.0, (1.0, 1): 104.4}
    axes = tradeoff_axes(report_data_of, {key: value - 1 for key, value in values.items()})
    low, high = axes.get_xlim()
    assert 50 < low < 59
    assert 63.5 < high < 72
    arrows = {line.get_marker(): line.get_xdata()[0] for line in axes.lines if line.get_marker() in ("<", ">")}
    assert arrows == {"<": low, ">": high}
    narrow = tradeoff_axes(report_data_of, {(a, s): 60 + 4 * a + s / 10 for a in (0.0, 1.0) for s in range(2)})
    assert not [line for line in narrow.lines if line.get_marker() in ("<", ">")]


def test_the_seeds_stand_behind_the_mean(report_data_of: ReportDataOf) -> None:
    axes = tradeoff_axes(report_data_of, {(a, s): 60 + 4 * a + s / 10 for a in (0.0, 1.0) for s in range(3)})
    seeds = [line for line in axes.lines if line.get_marker() == "."]
    assert [list(line.get_xdata()) for line in seeds] == [[60.0, 60.1, 60.2], [64.0, 64.1, 64.2]]
    means = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert max(line.get_zorder() for line in seeds) < min(line.get_zorder() for line in means)


def test_an_interval_of_a_share_ends_at_all_of_it() -> None:
    assert interval(Estimate(98.0, 5.0, 3), "linear.top1") == (93.0, 100.0)
    assert interval(Estimate(2.0, 5.0, 3), "linear.top1") == (0.0, 7.0)
    assert interval(Estimate(98.0, 5.0, 3), "pretrain.loss") == (93.0, 103.0)
    assert interval(Estimate(98.0, None, 1), "linear.top1") is None


def test_a_front_of_one_point_is_not_drawn(report_data_of: ReportDataOf) -> None:
    def dashed(miou: list[float]) -> int:
        rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, y) for a, y in zip(ALPHAS, miou, strict=True)]
        axes = drawn(tradeoff.draw, report_data_of({"loss.alpha": ALPHAS, "seed": [0]}, rows)).axes[0]
        return sum(line.get_linestyle() == "--" for line in axes.lines)

    assert (dashed([30, 31, 32]), dashed([32, 31, 30])) == (0, 1)


@pytest.mark.parametrize("name", ["alpha", "names"])
def test_every_colour_of_a_value_has_a_contrast_of_three_to_one(report_data_of: ReportDataOf, name: str) -> None:
    values = [i / 10 for i in range(11)] if name == "alpha" else list("abcdefg")
    rows = [(None, {"loss.alpha": value, "seed": 0}, 60.0, 30.0) for value in values]
    data = report_data_of({"loss.alpha": values, "seed": [0]}, rows, baseline=values[0])
    with plt.style.context(STYLE):
        colors = varied_colors(data)
    assert len(set(colors.values())) == len(values)
    for color in colors.values():
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]  # WCAG 2
        assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 3


def test_training_curves_show_every_run_of_the_grid(report_data_of: ReportDataOf) -> None:
    panel = drawn(training.draw, some_report_data(report_data_of)).axes[0]
    assert panel.get_title(loc="left") == "loss"
    assert len(panel.lines) == 2 * 9  # logged and smoothed
    assert list(panel.lines[0].get_ydata()) == [10.0 * i for i in range(1, 11)]  # type: ignore[union-attr]


def test_many_runs_are_a_mean_and_a_range(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of, runs=25)
    panel = drawn(training.draw, data).axes[0]
    assert len(panel.lines) == len(panel.collections) == 3
    assert panel.lines[2].get_ydata() == pytest.approx([20.0 * i + 12 for i in range(1, 11)])  # the mean of 25 seeds
    assert "nine in ten" in training.caption(data)


def test_smoothing_is_a_weighted_mean_that_keeps_a_constant() -> None:
    steps, values = np.arange(0, 1000, 50.0), np.random.default_rng(0).normal(size=20)
    found = training.smoothed(steps, values)
    for i in (0, 7, 19):
        weights = [np.exp(-0.5 * ((s - steps[i]) / (0.05 * 950)) ** 2) for s in steps]
        assert found[i] == pytest.approx(np.average(values, weights=weights))
    assert training.smoothed(steps, np.full(20, 3.0)) == pytest.approx(np.full(20, 3.0))
    assert training.smoothed(steps[:2], values[:2]) is not None


def test_diagnostics_pair_each_run_with_its_own_score(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)
    pairs = diagnostics.pairs_of(data, "pretrain.rank_pooled", "segmentation.miou")
    assert len(pairs) == 9
    assert list(pairs["y"]) == pytest.approx(list(30 - 8 * pairs["varied"] + (pairs["x"] - 20 - 10 * pairs["varied"])))
    ranks = [np.argsort(np.argsort(v)) for v in (range(6), [0, 2, 1, 3, 5, 4])]
    rho = np.corrcoef(*ranks)[0, 1]
    six = pd.DataFrame({"x": range(6), "y": [0, 2, 1, 3, 5, 4]})
    assert diagnostics.correlation(six) == f"ρ = +{rho:.2f} (n = 6)"
    assert diagnostics.correlation(six[:4]) == ""  # too few to say anything


def measured(data: ReportData, memory: bool = True) -> ReportData:
    """What analysis.cost_bench wrote: 250 ms a step at alpha 0, 500 at 1, a little more in each round."""
    rows = [
        {
            "grid.loss.alpha": a,
            "round": n,
            "milliseconds": 250 * (1 + a) + n,
            "gigabytes": 2.0 - a if memory else None,
            "machine": "M",
        }
        for n in range(3)
        for a in ALPHAS
    ]
    return ReportData(data.study, data.frame, data.history, costs=pd.DataFrame(rows).assign(machine="M"))


def test_cost_is_what_was_measured_and_else_not_shown(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)
    assert cost.draw(data) is None
    assert cost.step_table(data) is None
    time, memory = drawn(cost.draw, measured(data)).axes
    assert time.get_ylabel() == "ms a step"
    assert list(time.lines[1].get_ydata()) == [251.0, 376.0, 501.0]  # medians of the rounds
    assert list(memory.lines[1].get_ydata()) == [2.0, 1.5, 1.0]
    assert "on one machine (M)" in cost.caption(measured(data))
    table = cost.step_table(measured(data))
    assert table is not None
    assert table.blocks[0][0] == ["0", "3", "251 (250 to 252)", "2.00 (2.00 to 2.00)"]


def test_memory_that_was_not_measured_is_a_gap_and_no_zero(report_data_of: ReportDataOf) -> None:
    data = measured(some_report_data(report_data_of), memory=False)
    assert [axes.get_ylabel() for axes in drawn(cost.draw, data).axes] == ["ms a step"]
    assert "Memory was not measured" in cost.caption(data)


def test_names_are_not_joined_in_the_cost(report_data_of: ReportDataOf) -> None:
    names: list[object] = ["none", "location"]
    rows = [(None, {"loss.alpha": name, "seed": 0}, 60.0, 30.0) for name in names]
    data = report_data_of({"loss.alpha": names, "seed": [0]}, rows, baseline="none")
    costs = pd.DataFrame({"grid.loss.alpha": names, "round": 0, "milliseconds": [1.0, 2.0], "gigabytes": 1.0})
    panel = drawn(cost.draw, ReportData(data.study, data.frame, costs=costs.assign(machine="M"))).axes[0]
    assert {line.get_linestyle() for line in panel.lines} == {"None"}


def test_published_points_lie_on_the_figure_only_where_they_compare(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)

    def labels(data: ReportData) -> list[str]:
        return [text.get_text() for text in drawn(tradeoff.draw, data).axes[0].texts]

    same = measured_as_published(data)
    assert "VICRegL, α = 0.75 (published)" in labels(same)
    others: list[dict[str, dict[str, str]]] = [
        {"segmentation": {"score.protocol": "finetuned linear"}},
        {"segmentation": {"score.protocol": "frozen fcn"}},
        {"segmentation": {"eval.taps": "all"}},
        {"segmentation": {"eval.data.segmentation_train": "train"}},
        {"linear": {"score.protocol": "linear 1percent"}},
        {"linear": {"eval.data.name": "scenes"}},
    ]
    for other in [data, *(measured_as_published(data, **changes) for changes in others)]:
        assert not any("published" in label for label in labels(other))


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({}, ["linear_top1", "voc_frozen_miou"]),
        (
            {"linear": {"eval.data.name": "scenes", "score.protocol": "linear cached, bfloat16"}},
            ["linear_top1", "voc_frozen_miou"],
        ),
        ({"segmentation": {"eval.data.name": "scenes"}}, ["linear_top1", "voc_frozen_miou"]),
        ({"segmentation": {"eval.data.name": "cityscapes"}}, ["linear_top1", "cityscapes_frozen_miou"]),
        ({"segmentation": {"score.protocol": "finetuned linear"}}, ["linear_top1", None]),
        ({"linear": {"score.protocol": "linear 1percent"}}, [None, "voc_frozen_miou"]),
        ({"linear": {"score.protocol": "finetuned"}}, [None, "voc_frozen_miou"]),
    ],
)
def test_published_figures_stand_beside_the_same_kind_of_evaluation(report_data_of, changes, columns) -> None:
    data = measured_as_published(some_report_data(report_data_of), **changes)
    scores = ["linear.top1", "segmentation.miou"]
    assert [column_beside(data.frame, score) for score in scores] == columns
    assert [column_beside(data.frame, score) for score in ("linear.top5", "segmentation.aacc", "knn.top1")] == [
        None
    ] * 3
    beside = {row["score"] for row in values_beside(data.frame, scores)}
    assert beside == {score for score, column in zip(scores, columns, strict=True) if column}


def test_the_published_figure_is_of_the_overview(tmp_path: Path) -> None:
    published.write_published(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["published.pdf", "published.png", "published.svg"]
    assert ">VICRegL, α = 0.9</text>" in (tmp_path / "published.svg").read_text(encoding="utf-8")


def test_a_figure_without_material_leaves_no_old_file(report_data_of: ReportDataOf, tmp_path: Path) -> None:
    data = some_report_data(report_data_of)
    assert write(cost.PLOT, measured(data), tmp_path)
    assert not write(cost.PLOT, data, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_diagnostics_from_six_runs_on(report_data_of: ReportDataOf) -> None:
    assert diagnostics.draw(some_report_data(report_data_of, runs=1)) is None
    assert drawn(diagnostics.draw, some_report_data(report_data_of, runs=2)).axes


def test_a_value_of_null_is_drawn_too(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of, runs=2)
    grid: dict[str, list[object]] = {"loss.alpha": [None, 0.5, 1.0], "seed": [0, 1]}
    frame, history = (f.replace({"grid.loss.alpha": {0.0: np.nan}}) for f in (data.frame, data.history))
    costs = measured(data).costs.replace({"grid.loss.alpha": {0.0: np.nan}})
    null = ReportData(make_study(grid), frame, history, costs)
    assert sum(len(line.get_xdata()) for line in drawn(diagnostics.draw, null).axes[0].lines) == 6
    assert len(drawn(training.draw, null).axes[0].lines) == 2 * 6
    assert len(cost.step_costs(null)) == len(cost.step_costs(measured(data)))
    table = cost.step_table(null)
    assert table is not None
    assert next(line[0] for line in table.blocks[0]) == null.summary.label(None)
    assert drawn(cost.draw, null).axes


JOINED = [[0.5, 0.1, 1.0], ["20 steps", "3 steps", "100 steps"], ["[20, 4]", "[4, 4]", "[64, 4]"]]


@pytest.mark.parametrize(
    ("values", "joined"), [*((values, True) for values in JOINED), (["none", "location", "both"], False)]
)
def test_a_line_joins_numbers_by_size_and_no_names(report_data_of: ReportDataOf, values: list, joined: bool) -> None:
    rows = [(None, {"loss.alpha": value, "seed": 0}, 60.0 + n, 30.0 + n) for n, value in enumerate(values)]
    data = report_data_of({"loss.alpha": values, "seed": [0]}, rows, baseline=values[0])
    x = [1, 0, 2] if joined else [0, 1, 2]
    steps = [line for line in drawn(tradeoff.draw, data).axes[0].lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in steps] == [[61, 60], [60, 62]] * joined
    lower = drawn(scores.draw, data).axes[1]
    assert (lower.lines[0].get_linestyle() == "-") == joined
    expected = [str(values[int(n)]).removesuffix(".0") for n in x]
    assert [label.get_text() for label in lower.get_xticklabels()] == expected
    assert ("joined" in tradeoff.caption(data)) == joined
