"""Each cell of the tables against the numbers it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis import render
from analysis.labels import number
from analysis.render import Table
from analysis.summary import Summary
from analysis.tables import notes, results_table

SummaryOf = Callable[..., Summary]
ALPHAS = [0.0, 0.5, 1.0]


def cells(table: Table) -> list[list[str]]:
    header, _, *lines = render.to_markdown(table).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (header, *lines)]


def test_means_intervals_and_paired_differences(summary_of: SummaryOf) -> None:
    random = np.random.default_rng(0)
    top1 = {(alpha, seed): 60 + 5 * alpha + 3 * seed + random.normal() for alpha in ALPHAS for seed in range(3)}
    rows = [(None, {"loss.alpha": a, "seed": s}, top1[a, s], 20.0 + s) for a in ALPHAS for s in range(3)]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 10.0 + s, 5.0) for s in range(3)]
    summary = summary_of({"loss.alpha": ALPHAS, "seed": [0, 1, 2]}, rows)
    header, *lines = cells(results_table(summary))
    names = ["linear top-1 (%)", "Δ to α = 1", "segmentation mIoU (%)", "Δ to α = 1"]
    assert header == ["loss.alpha", "n", *names]
    for line, alpha in zip(lines, ALPHAS, strict=False):
        values = np.array([top1[alpha, seed] for seed in range(3)])
        half = stats.sem(values) * stats.t.ppf(0.975, 2)
        assert line[:3] == [f"{alpha:g}", "3", f"{values.mean():.1f} ± {half:.1f}"]
        gaps = values - np.array([top1[1.0, seed] for seed in range(3)])
        half = stats.sem(gaps) * stats.t.ppf(0.975, 2)
        sign = "−" if gaps.mean() < 0 else "+"
        expected = "baseline" if alpha == 1.0 else f"{sign}{abs(gaps.mean()):.1f} ± {half:.1f}"
        assert line[3].removesuffix("†") == expected
    assert lines[3] == [""] * 6
    assert lines[4][:3] == ["*no pretraining (control)*", "3", "11.0 ± 2.5"]
    assert lines[4][4:] == ["5.0 ± 0.0", "−16.0 ± 2.5†"]
    assert "95 % interval" in notes(summary)[0]


def test_one_seed_has_no_interval_and_the_notes_say_so(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, 20.0) for a in ALPHAS]
    summary = summary_of({"loss.alpha": ALPHAS, "seed": [0]}, rows)
    _, first, *_ = cells(results_table(summary))
    assert first == ["0", "1", "60.0", "−1.0", "20.0", "+0.0"]
    assert "±" not in "".join(notes(summary))
    assert "One seed" in notes(summary)[0]


def test_a_gap_is_seen_and_never_zero(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60.0 + s, 20.0) for a in ALPHAS for s in (0, 1)]
    rows[0] = (None, {"loss.alpha": 0.0, "seed": 0}, math.nan, 20.0)
    rows[4] = (None, {"loss.alpha": 1.0, "seed": 0}, 60.0, math.nan)
    rows[5] = (None, {"loss.alpha": 1.0, "seed": 1}, 61.0, math.nan)
    _, *lines = cells(results_table(summary_of({"loss.alpha": ALPHAS, "seed": [0, 1]}, rows)))
    assert lines[0][1:4] == ["1 of 2", "61.0 (1 failed)", "+0.0"]
    assert lines[2][1:] == ["0 of 2", "60.5 ± 6.4", "baseline", "– (2 failed)", "baseline"]
    assert lines[1][5] == "–"


def test_another_grid_key_makes_curves_with_their_own_baselines(summary_of: SummaryOf) -> None:
    grid = {"loss.alpha": [0.5, 1.0], "loss.local": ["both", "location"], "seed": [0]}
    rows = [
        (None, {"loss.alpha": a, "loss.local": local, "seed": 0}, 50 + 10 * a + offset, 20.0)
        for a in (0.5, 1.0)
        for local, offset in (("both", 0.0), ("location", 3.0))
    ]
    rows += [("no pretraining", {"loss.alpha": None, "loss.local": "both", "seed": 0}, 9.0, 9.0)]
    summary = summary_of(grid, rows)
    _, *lines = cells(results_table(summary))
    assert [line[:2] for line in lines[:4]] == [["0.5", "both"], ["1", "both"], ["0.5", "location"], ["1", "location"]]
    assert [line[4] for line in lines[:4]] == ["−5.0", "baseline", "−5.0", "baseline"]
    (both, rows_of_both), (location, _) = summary.groups()
    assert [row.varied for row in rows_of_both] == [0.5, 1.0]
    assert [len(summary.controls_of(group)) for group in (both, location)] == [1, 0]


def test_settings_of_the_same_trainings_are_one_row(summary_of: SummaryOf) -> None:
    grid = {"loss.alpha": [0.5, 1.0], "loss.num_matches": ["[4, 4]", "[20, 4]"], "seed": [0]}
    rows = [
        (None, {"loss.alpha": a, "loss.num_matches": matches, "seed": 0}, 50 + 10 * a, 20.0)
        for a in (0.5, 1.0)
        for matches in grid["loss.num_matches"]
    ]
    summary = summary_of(grid, rows)
    for row, run in zip(summary.rows, ("a", "same", "b", "same"), strict=True):
        row.runs = {0: run}
    _, *lines = cells(results_table(summary))
    assert [line[:2] for line in lines] == [["0.5", "[4, 4]"], ["1", "[4, 4]"], ["0.5", "[20, 4]"]]
    assert any("one training and one row" in text for text in notes(summary))
    assert [[row.varied for row in rows] for _, rows in summary.groups()] == [
        [0.5, 1.0]
    ] * 2  # each curve keeps its end


def test_a_study_without_a_baseline_has_no_differences(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, 20.0) for a in ALPHAS]
    summary = summary_of({"loss.alpha": ALPHAS, "seed": [0]}, rows, baseline=None)
    assert "Δ" not in "".join([*results_table(summary).header, *notes(summary)])


def test_text_cannot_break_a_table() -> None:
    table = render.to_markdown(Table(["a", "b"], [[["x|y", "1"]]]))
    assert table.splitlines()[-1].replace("\\|", "") == "| xy | 1 |"


@pytest.mark.parametrize(
    ("value", "percent", "signed", "text"),
    [
        (63.25, True, False, "63.2"),
        (-0.04, True, True, "+0.0"),
        (-1.26, True, True, "−1.3"),
        (123.4, False, False, "123"),
        (0.012345, False, False, "0.0123"),
        (5.0, False, False, "5.00"),
    ],
)
def test_numbers(value: float, percent: bool, signed: bool, text: str) -> None:
    assert number(value, percent, signed) == text
