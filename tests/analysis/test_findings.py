"""The sentences follow the data: each of these is made so that its truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from scipy import stats

from analysis.findings import ONE_SEED, answers, collapse_verdict, course, findings
from analysis.report_data import ReportData
from analysis.summary import Scores, Summary
from analysis.tables import results_table

SummaryOf = Callable[..., Summary]
ALPHAS = [0.0, 0.5, 1.0]
NOISE = {0: -0.2, 1: 0.0, 2: 0.2}


def sentences(summary_of: SummaryOf, top1: list[float], miou: list[float], control: float, seeds: int = 3) -> list[str]:
    """Scores at ALPHAS, the same noise for every alpha of a seed but for a hundredth of it."""
    rows = [
        (None, {"loss.alpha": a, "seed": s}, x + NOISE[s] * (1 + i / 100), y + NOISE[s] * (1 + i / 100))
        for i, (a, x, y) in enumerate(zip(ALPHAS, top1, miou, strict=True))
        for s in range(seeds)
    ]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, control + NOISE[s], control) for s in range(seeds)]
    return findings(summary_of({"loss.alpha": ALPHAS, "seed": list(range(seeds))}, rows))


def test_the_papers_trade_off(summary_of: SummaryOf) -> None:
    control_x, control_y, top1, miou, trade = sentences(summary_of, [50, 58, 60], [40, 36, 30], 10.0)
    assert "linear top-1: pretraining beats 'no pretraining' at every scored loss.alpha" in control_x
    assert "by +40.0 to +50.0, and every 95 % interval of the difference excludes 0" in control_x
    assert "segmentation mIoU: pretraining beats" in control_y
    assert "falls from 1 to 0 (−10.0 ± 0.0)" in top1
    assert "rises from 1 to 0 (+10.0 ± 0.0)" in miou
    assert "segmentation mIoU gains and linear top-1 loses at 0, 0.5" in trade
    assert not any(ONE_SEED in line.lower() for line in (control_x, control_y, top1, miou, trade))


def test_a_maximum_in_the_middle_is_two_legs(summary_of: SummaryOf) -> None:
    *_, top1, miou, trade = sentences(summary_of, [50, 62, 60], [20, 36, 30], 10.0)
    assert "rises from 1 to 0.5 (+2.0 ± 0.0), then falls from 0.5 to 0 (−12.0 ± 0.0)" in top1
    assert "rises from 1 to 0.5 (+6.0 ± 0.0), then falls from 0.5 to 0 (−16.0 ± 0.0)" in miou
    assert "no setting gains segmentation mIoU at the cost of linear top-1" in trade
    assert "both scores gain at 0.5; both scores lose at 0" in trade


def test_one_seed_says_that_it_supports_nothing(summary_of: SummaryOf) -> None:
    lines = sentences(summary_of, [50, 58, 60], [40, 36, 30], 10.0, seeds=1)
    assert len(lines) == 5
    assert all(ONE_SEED in line.lower() for line in lines)
    assert not any("interval" in line for line in lines)


def test_what_the_interval_cannot_tell_is_undecided(summary_of: SummaryOf) -> None:
    noise = {(0.5, 0): 2.0, (0.5, 1): -2.0}
    rows = [
        (None, {"loss.alpha": a, "seed": s}, 60.5 - a + noise.get((a, s), 0.0), 30 + 5 * (1 - a))
        for a in (0.5, 1.0)
        for s in (0, 1)
    ]
    *_, top1, miou, trade = findings(summary_of({"loss.alpha": [0.5, 1.0], "seed": [0, 1]}, rows))
    assert "undecided: the interval includes 0" in top1
    assert "undecided" not in miou
    assert "segmentation mIoU gains, and linear top-1 is undecided, at 0.5" in trade


def test_pretraining_that_does_not_beat_the_control_comes_first_and_loud(summary_of: SummaryOf) -> None:
    lines = sentences(summary_of, [50, 58, 60], [40, 36, 30], 55.0)
    assert lines[0].startswith("**linear top-1: pretraining does not beat 'no pretraining' at loss.alpha = 0**")
    assert lines[1].startswith("**segmentation mIoU: pretraining does not beat 'no pretraining' at")
    assert "Look for the mistake" in lines[0]


def test_a_trained_control_says_nothing_about_pretraining(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60 + a + NOISE[s], 30.0) for a in (0.5, 1.0) for s in range(3)]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 61 + 1.5 * NOISE[s], 32.0) for s in range(3)]
    summary = summary_of({"loss.alpha": [0.5, 1.0], "seed": [0, 1, 2]}, rows)
    summary.study.pretrain.controls["no pretraining"] = {"loss.select": "top"}
    top1, miou, *_ = findings(summary)
    assert top1 == (
        "linear top-1: every scored loss.alpha differs from the control 'no pretraining' by −0.5 to +0.0, "
        "undecided at 1: the interval includes 0."
    )
    assert "segmentation mIoU: every scored loss.alpha differs from the control 'no pretraining' by −2.0" in miou
    assert not any("beat" in line or "mistake" in line for line in findings(summary))


def test_true_and_false_have_no_order_to_fall_in(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60.0 + a, 30.0) for a in (True, False)]
    assert not any("falls," in line for line in findings(summary_of({"loss.alpha": [True, False], "seed": [0]}, rows)))


def test_no_runs_no_finding(summary_of: SummaryOf) -> None:
    nan = float("nan")
    rows = [(None, {"loss.alpha": a, "seed": 0}, nan, nan) for a in ALPHAS]
    assert findings(summary_of({"loss.alpha": ALPHAS, "seed": [0]}, rows)) == ["No finding: no run has a score yet."]


@pytest.mark.parametrize("missing", range(3))
def test_a_partial_study_speaks_of_what_there_is(summary_of: SummaryOf, missing: int) -> None:
    nan = float("nan")
    rows = [(None, {"loss.alpha": a, "seed": 0}, nan if i == missing else 60 + a, 20 + a) for i, a in enumerate(ALPHAS)]
    lines = findings(summary_of({"loss.alpha": ALPHAS, "seed": [0]}, rows))
    assert any(line.startswith("segmentation mIoU, as loss.alpha falls, falls from 1 to 0") for line in lines)
    assert not any("nan" in line for line in lines)


def test_a_difference_that_one_of_many_shows_by_chance_is_undecided(summary_of: SummaryOf) -> None:
    """The own interval of the widest difference, 2.5 ± 2.0, excludes 0, and it was chosen because it is the widest."""
    ends = {0.0: 58.0, 0.5: 60.0, 0.75: 59.0, 1.0: 60.5}
    shift = {0.0: 0.3, 0.5: 0.5, 0.75: 0.1, 1.0: -0.5}
    rows = [
        (None, {"loss.alpha": a, "seed": s}, x + shift[a] * (s - 1), x + shift[a] * (s - 1))
        for a, x in ends.items()
        for s in range(3)
    ]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 57.0 + 0.1 * (s - 1), 0.0) for s in range(3)]
    control, _, top1, _, trade = findings(summary_of({"loss.alpha": list(ends), "seed": [0, 1, 2]}, rows))
    assert "every 95 % interval of the difference excludes 0" in control  # each has to: no allowance is needed
    assert (
        "falls from 1 to 0 (−2.5 ± 2.0, undecided: not significant among 6 differences between any two values)" in top1
    )
    assert "no setting is shown to gain segmentation mIoU" in trade
    assert "both scores lose at 0, 0.75; both scores undecided at 0.5" in trade  # close together


def test_a_setting_that_does_not_beat_the_control_takes_the_others_allowance_away(summary_of: SummaryOf) -> None:
    rows = [
        (None, {"loss.alpha": a, "seed": s}, x + d * (s - 1), 60.0)
        for a, x, d in ((0.0, 59.0, 0.7), (1.0, 59.0, 3.0))
        for s in range(3)
    ]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 57.0, 50.0) for s in range(3)]
    top1, miou, *_ = findings(summary_of({"loss.alpha": [0.0, 1.0], "seed": [0, 1, 2]}, rows))
    assert "but undecided at loss.alpha = 0, 1: not significant among 2 comparisons" in top1
    assert "every 95 % interval of the difference excludes 0" in miou


def answer_of(summary_of: SummaryOf, top1: list[float], miou: list[float], seeds: int = 3) -> str:
    """The same noise for every alpha, but for its sign at 0.5 in the first score."""
    rows = [
        (None, {"loss.alpha": a, "seed": s}, x + NOISE[s] * (-9 if a == 0.5 else 1), y + NOISE[s])
        for a, x, y in zip(ALPHAS, top1, miou, strict=True)
        for s in range(seeds)
    ]
    (answer,) = answers(summary_of({"loss.alpha": ALPHAS, "seed": list(range(seeds))}, rows))
    return answer


def test_the_answer_names_the_highest_gain_and_what_is_undecided(summary_of: SummaryOf) -> None:
    half = 2.0 * stats.t.ppf(0.975, 2) / 3**0.5
    assert answer_of(summary_of, [50, 61, 60], [31, 36, 30]) == (
        "Of 2 values, α = 0.5 gains the most segmentation mIoU over α = 1: +6.0 ± 0.0 points (3 seeds); linear top-1 "
        f"there: +1.0 ± {half:.1f} points (3 seeds, undecided: about 31 seeds more would settle it with 80 % power, "
        "if difference and scatter stay as they are)."
    )
    assert "α = 0 loses the least segmentation mIoU against α = 1: −1.0 ± 0.0 points" in (
        answer_of(summary_of, [50, 61, 60], [29, 26, 30])
    )
    equal = answer_of(summary_of, [50, 61, 60], [36, 36, 30])
    assert "+6.0 ± 0.0 points (3 seeds); its lead over 0.5 is undecided; linear top-1 there" in equal
    one = answer_of(summary_of, [50, 61, 60], [31, 36, 30], seeds=1)
    assert one.endswith("+3.0 points. One seed cannot support it.")


def test_a_control_may_be_the_baseline(summary_of: SummaryOf) -> None:
    rows = [
        (None, {"loss.alpha": a, "seed": s}, 60 + a + NOISE[s], 40 - a + NOISE[s]) for a in ALPHAS for s in range(3)
    ]
    control = "no pretraining"  # a trained one would be as good
    rows += [(control, {"loss.alpha": None, "seed": s}, 50.0 + NOISE[s], 30.0 + NOISE[s]) for s in range(3)]
    summary = summary_of({"loss.alpha": ALPHAS, "seed": [0, 1, 2]}, rows, baseline=control)
    (answer,) = answers(summary)
    assert answer.startswith(
        "Of 3 values, α = 0 gains the most segmentation mIoU over no pretraining: +10.0 ± 0.0 points (3 seeds); linear"
    )
    assert "does not beat" not in answer
    *_, trade = findings(summary)
    assert trade.startswith("Against no pretraining: no setting gains segmentation mIoU at the cost of linear top-1")
    assert any("pretraining beats 'no pretraining' at every scored" in line for line in findings(summary))
    table = results_table(summary)
    assert table.header[3] == "Δ to no pretraining"
    assert [line[3] for block in table.blocks for line in block] == [
        "+10.0 ± 0.0†",
        "+10.5 ± 0.0†",
        "+11.0 ± 0.0†",
        "baseline",
    ]


def test_a_control_named_as_the_baselines_value_is_not_it(report_data_of: Callable[..., ReportData]) -> None:
    grid: dict[str, list[object]] = {"loss.alpha": ["none", "both"], "seed": [0]}
    rows = [("none", {"loss.alpha": None, "seed": 0}, 20.0, 20.0)]
    rows += [(None, {"loss.alpha": value, "seed": 0}, 60.0, 30.0) for value in grid["loss.alpha"]]
    summary = report_data_of(grid, rows, baseline="none").summary
    (control,) = summary.controls
    assert summary.baseline(control) is summary.baseline(summary.settings[1]) is summary.settings[0]


def test_a_lead_is_open_where_the_course_is(summary_of: SummaryOf) -> None:
    """Alone, the difference of 0.5 to 0 would be significant; among three it is not."""
    miou = {0.0: [33.0, 34.2, 33.4], 0.5: [35.0, 35.1, 35.2], 1.0: [30.0, 36.6, 31.2]}
    rows = [(None, {"loss.alpha": a, "seed": s}, 60.0, y) for a, ys in miou.items() for s, y in enumerate(ys)]
    summary = summary_of({"loss.alpha": ALPHAS, "seed": [0, 1, 2]}, rows)
    zero, half, _ = summary.settings
    lead = summary.difference(half, zero, "segmentation.miou")
    assert lead is not None
    assert lead.sign > 0
    assert "from 0.5 to 0 (−1.6 ± 1.5, undecided" in course(summary, summary.settings, "segmentation.miou")
    assert "its lead over 0 is undecided" in answers(summary)[0]
    assert summary.best(summary.settings, "segmentation.miou") is None


def test_a_lead_on_one_seed_is_open(summary_of: SummaryOf) -> None:
    rows = [
        (None, {"loss.alpha": a, "seed": s}, 60.0, 30 + 9 * (a == 0.5) + NOISE[s]) for a in ALPHAS for s in range(3)
    ]
    rows = [(*row[:3], math.nan if row[1]["loss.alpha"] == 0.0 and row[1]["seed"] else row[3]) for row in rows]
    assert "its lead over 0 is undecided" in answers(summary_of({"loss.alpha": ALPHAS, "seed": [0, 1, 2]}, rows))[0]


def test_equal_scores_neither_gain_nor_lose(summary_of: SummaryOf) -> None:
    assert answer_of(summary_of, [50, 61, 60], [30, 30, 30]).startswith(
        "Of 2 values, α = 0 neither gains nor loses segmentation mIoU against α = 1: +0.0 ± 0.0 points"
    )


def test_a_gain_over_a_baseline_that_learnt_nothing_says_so(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60 - a, 40 - 10 * a + NOISE[s]) for a in ALPHAS for s in range(3)]
    rows += [("no pretraining", {"loss.alpha": None, "seed": s}, 10.0, 31.0) for s in range(3)]
    (answer,) = answers(summary_of({"loss.alpha": ALPHAS, "seed": [0, 1, 2]}, rows))
    assert answer.endswith("). But segmentation mIoU of α = 1 does not beat 'no pretraining'.")


def test_the_highest_is_of_those_that_have_scores(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": 0}, 60 + a, 30 - a if a else math.nan) for a in ALPHAS]
    (answer,) = answers(summary_of({"loss.alpha": ALPHAS, "seed": [0]}, rows, baseline=None))
    assert answer.startswith("Of 2 to 3 values of loss.alpha, the highest segmentation mIoU at α = 0.5")


def test_the_answer_without_a_baseline_names_the_highest(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60 + a + NOISE[s], 30 - a) for a in ALPHAS for s in range(3)]
    grid: dict[str, list[object]] = {"loss.alpha": list(ALPHAS), "seed": [0, 1, 2]}
    assert answers(summary_of(grid, rows, baseline=None)) == [
        "Of 3 values of loss.alpha, the highest segmentation mIoU at α = 0 (30.0 ± 0.0), the highest linear top-1 at "
        "α = 1 (61.0 ± 0.5)."
    ]
    assert answers(summary_of(grid, [(*row[:2], math.nan, math.nan) for row in rows], baseline=None)) == []


def test_a_collapse_is_said_in_words(summary_of: SummaryOf) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60.0, 30.0) for a in ALPHAS for s in range(2)]
    summary = summary_of({"loss.alpha": list(ALPHAS), "seed": [0, 1]}, rows)
    for row in summary.settings:
        row.scores = {
            "pretrain.rank_pooled": Scores({0: 40.0, 1: 40.0}),
            "pretrain.std_local": Scores({0: 0.8, 1: 0.8}),
        }
    assert collapse_verdict(summary).startswith("No setting has collapsed: no seed has")
    summary.settings[1].scores["pretrain.rank_pooled"].by_seed[1] = 1.2
    summary.settings[1].scores["pretrain.correlation_local"] = Scores({0: 0.95})
    assert collapse_verdict(summary) == (
        "**Collapsed, in one seed or more: α = 0.5 (rank pooled 1.20, correlation local 0.950).**"
    )
    for row in summary.settings:
        row.scores = {"pretrain.rank_pooled": Scores()}
    assert collapse_verdict(summary) == ""
