"""compare and best: answers with known truths, and what they say when the seeds cannot tell."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from analysis.__main__ import main
from analysis.questions import best, compare, find_row
from analysis.report_data import ReportData
from analysis.statistics import seeds_to_settle
from runtime import PROJECT
from runtime.errors import UserError
from sweeps.graph import Graph

ReportDataOf = Callable[..., ReportData]
# Differences of 0.5 to 1.0 scatter widely in top-1 and little in mIoU.
WIDE = {0: -3.0, 1: 1.0, 2: -1.0}


def some_report_data(report_data_of: ReportDataOf) -> ReportData:
    rows = [(None, {"loss.alpha": 1.0, "seed": s}, 70.0 + s, 20.0 + s) for s in range(3)]
    rows += [(None, {"loss.alpha": 0.5, "seed": s}, 70.0 + s + WIDE[s], 25.0 + s + WIDE[s] / 100) for s in range(3)]
    rows += [(None, {"loss.alpha": 0.0, "seed": s}, 60.0 + s, 30.0 if s else float("nan")) for s in range(3)]
    rows += [("no pretraining", {"loss.alpha": None, "seed": 0}, 10.0, 5.0)]
    return report_data_of({"loss.alpha": [0.0, 0.5, 1.0], "seed": [0, 1, 2]}, rows)


def test_compare_pairs_seeds_and_tells_what_would_settle_it(report_data_of: ReportDataOf) -> None:
    head, top1, miou, last = compare(some_report_data(report_data_of), "0.5", "loss.alpha=1.0")
    assert last == "  each taken alone; the report corrects for all that it compares"
    assert head == "loss.alpha = 0.5 against loss.alpha = 1"
    half = stats.sem(list(WIDE.values())) * stats.t.ppf(0.975, 2)
    assert f"difference −1.0 ± {half:.1f} (3 seeds, paired): undecided" in top1
    more = re.search(r"about (\d+) seeds more", top1)
    assert more is not None
    assert "would settle it with 80 % power" in top1
    # The definition itself: seeds drawn as those are, so many and one fewer.
    scatter, needed = np.std(list(WIDE.values()), ddof=1), 3 + int(more[1])
    random = np.random.default_rng(0)
    settled = []
    for n in (needed - 2, needed):
        draws = random.normal(1.0, scatter, (20_000, n))
        settled.append(np.mean(stats.ttest_1samp(draws, 0, axis=1, alternative="greater").pvalue <= 0.025))
    assert settled[0] < 0.8 <= settled[1] + 0.01
    assert "difference +5.0 ± 0.0 (3 seeds, paired): higher, the 95 % interval excludes 0" in miou


@pytest.mark.parametrize("text", ["loss.num_matches=[64, 4]", "loss.num_matches = [64, 4], loss.alpha = 1"])
def test_a_value_that_is_a_list(report_data_of: ReportDataOf, text: str) -> None:
    """Spelled as the error about a wrong row spells the rows."""
    lists = ["[20, 4]", "[64, 4]"]  # the text that a row has for a list
    rows = [(None, {"loss.alpha": 1.0, "loss.num_matches": value, "seed": 0}, 70.0, 20.0) for value in lists]
    summary = report_data_of({"loss.alpha": [1.0], "loss.num_matches": lists, "seed": [0]}, rows).summary
    assert find_row(summary, text).values == (1.0, "[64, 4]")
    with pytest.raises(UserError, match=r"'loss.num_matches=\[64, 4': its value cannot be read"):
        find_row(summary, "loss.num_matches=[64, 4")


def test_compare_with_a_control_of_one_seed(report_data_of: ReportDataOf) -> None:
    _, top1, *_ = compare(some_report_data(report_data_of), "no pretraining", "1.0")
    assert "difference −60.0 (one seed): one seed cannot support it" in top1


def test_seeds_that_settle() -> None:
    assert seeds_to_settle([1.0, 1.0001]) == 2
    assert seeds_to_settle([1.0, -1.0]) is None
    assert seeds_to_settle([1.0]) is None
    assert seeds_to_settle([1e-6, 1.0, -1.0]) is None  # more than anyone would train


def test_best_obeys_its_limit_and_tells_what_it_rests_on(report_data_of: ReportDataOf) -> None:
    data = some_report_data(report_data_of)
    head, first, second, third, support = best(data, "miou", {})
    assert head == "By segmentation mIoU"
    assert first.startswith("  1. loss.alpha = 0: segmentation mIoU 30.0 ± 0.0 (n 2)")
    assert second.startswith("  2. loss.alpha = 0.5:")
    assert third.startswith("  3. loss.alpha = 1:")
    assert "seeds do not tell" in support or "excludes 0" in support
    head, first, second, _ = best(data, "segmentation.miou", {"top1": 69.5})
    assert head == "By segmentation mIoU, with linear top-1 of 69.5 or more"
    assert "loss.alpha = 0.5" in first
    assert "loss.alpha = 1" in second
    assert best(data, "miou", {"top1": 99.0})[1:] == ["  no setting that was scored reaches it"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.7", "no row"), ("loss.alfa=1", "did you mean loss.alpha"), ("no pretrainin", "no row")],
)
def test_a_row_that_is_not_there(report_data_of: ReportDataOf, text: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        find_row(some_report_data(report_data_of).summary, text)


def test_a_score_that_is_not_there(report_data_of: ReportDataOf) -> None:
    with pytest.raises(UserError, match=r"allowed: linear.top1, segmentation.miou"):
        best(some_report_data(report_data_of), "iou", {})
    for text in ("no", "false"):  # to YAML, and a zero to Python
        with pytest.raises(UserError, match="no row of the study fits"):
            find_row(some_report_data(report_data_of).summary, text)
    with pytest.raises(UserError, match="the same row"):
        compare(some_report_data(report_data_of), "1", "1.0")


def test_the_command_line(fill: Callable[..., Graph], capsys: pytest.CaptureFixture[str]) -> None:
    fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a + s)
    main(["compare", "study.yaml", "1.0", "0.5", "machine.runs=runs"])
    assert "linear top-1: 70.5 ± 6.4 against 60.5 ± 6.4; difference +10.0 ± 0.0" in capsys.readouterr().out
    main(["best", "study.yaml", "--by", "top5", "--min-top1", "55"])
    out = capsys.readouterr().out
    assert "1. loss.alpha = 0.5: linear top-5 90.5" in out
    assert "loss.alpha = 0:" not in out
    with pytest.raises(UserError, match="expected a number"):
        main(["best", "study.yaml", "--by", "top5", "--min-top1", "high"])
    with pytest.raises(UserError, match=r"cannot take 'pretraining': .* a name of several words in quotes"):
        main(["compare", "study.yaml", "1.0", "no", "pretraining", "--results", "results.csv"])


def test_answers_from_a_report_whose_runs_are_gone(capsys: pytest.CaptureFixture[str]) -> None:
    """As the README has it; the figures are those of the committed table."""
    study, results = str(PROJECT / "sweeps/studies/scenes.yaml"), str(PROJECT / "reports/scenes/results.csv")
    main(["compare", study, "0.75", "1", "--results", results])
    shown = capsys.readouterr().out
    main(["best", study, "--by", "miou", "--min-top1", "70", "--results", results])
    shown += capsys.readouterr().out
    lines = (PROJECT / "reports/scenes/table.md").read_text().splitlines()
    _, _, top1, gap, miou, _ = (
        cell.strip(" *") for cell in next(s for s in lines if s.startswith("| 0.75")).strip("|").split("|")
    )
    assert f"linear top-1: {top1} against" in shown
    assert f"difference {gap} (" in shown
    assert re.search(rf"\d\. loss.alpha = 0.75: segmentation mIoU {re.escape(miou)}", shown)
