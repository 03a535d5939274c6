"""The overview of all reports: every study with what it found and how much that rests on; the paper's questions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import committed, paper_questions
from analysis import report as report_module
from analysis.__main__ import main
from analysis.evidence import plateau, strength
from analysis.figures import overview, scores, tradeoff
from analysis.report import write_report
from analysis.report_data import ReportData
from analysis.site import studies_table, write_site
from sweeps.graph import Graph
from sweeps.study import PretrainPart, ReportPart, Study
from tests.analysis.browser import CHROMIUM, Browser
from tests.analysis.conftest import make_study

Scored = dict[object, list[tuple[float, float]]]  # the varied value -> (top-1, mIoU) of each seed


NOT_MEASURED = "**Undecided.** No report has measured it with one version of the code."


def report_of(vary: str, scored: Scored, name: str = "made", baseline: object = None, **columns: object) -> ReportData:
    """A report that varies one key; `columns` are of the pretrainings, by the varied value or for all."""
    study = Study(
        name=name,
        question="?",
        pretrain=PretrainPart(config="p.yaml", grid={vary: list(scored), "seed": [0, 1, 2]}),
        evals=make_study({"loss.alpha": [1.0]}).evals,
        report=ReportPart(vary=vary, baseline=baseline, x="linear.top1", y="segmentation.miou"),
    )
    rows = []
    for value, seeds in scored.items():
        for seed, (top1, miou) in enumerate(seeds):
            own = {k: v[value] if isinstance(v, dict) else v for k, v in columns.items()}
            run = {"control": None, f"grid.{vary}": value, "grid.seed": seed, "pretrain.hash": f"{value}-{seed}"}
            run |= {"study": name, "pretrain.run": f"pretrain/{value}-{seed}", "pretrain.state": "done"}
            for source, score, found in (("linear", "top1", top1), ("segmentation", "miou", miou)):
                rows.append(run | own | {"eval.name": source, "eval.state": "done", f"score.{score}": found})
    return ReportData(study, pd.DataFrame(rows))


def around(top1: float, miou: float, seeds: int = 3) -> list[tuple[float, float]]:
    return [(top1 + 0.1 * seed, miou - 0.1 * seed) for seed in range(seeds)]


def answer_to(text: str, *reports: ReportData) -> str:
    return next(found for question, _, found in paper_questions.answers(reports) if text in question.text)


def test_location_and_feature_are_decided_by_the_seeds() -> None:
    names = {"none": (60, 30), "feature": (61, 31), "location": (62, 33), "both": (63, 35)}
    question = "by location alone"
    as_expected = report_of("loss.local", {name: around(*means) for name, means in names.items()})
    assert answer_to(question, as_expected).startswith(
        "**Yes.** Segmentation mIoU: location over feature +2.0 ± 0.0, both over location +2.0 ± 0.0, both over "
    )
    names["both"] = (50, 20)
    in_part = report_of("loss.local", {name: around(*means) for name, means in names.items()})
    assert answer_to(question, in_part).startswith("**In part, but linear top-1 loses.**")
    names["both"] = (62, 33)
    in_part = report_of("loss.local", {name: around(*means) for name, means in names.items()})
    assert answer_to(question, in_part).startswith("**Yes, in part.**")
    names |= {"both": (50, 20), "location": (55, 25)}
    otherwise = report_of("loss.local", {name: around(*means) for name, means in names.items()})
    assert answer_to(question, otherwise).startswith("**No.**")
    names |= {"both": (40, 35), "location": (50, 33)}
    traded = report_of("loss.local", {name: around(*means) for name, means in names.items()})
    assert answer_to(question, traded).startswith("**Yes, but linear top-1 loses.**")
    single = report_of("loss.local", {name: around(*means, seeds=1) for name, means in names.items()})
    assert answer_to(question, single).startswith("**Undecided (one seed).**")
    scattered = {name: [(60.0, 30.0), (40.0, 10.0), (70.0, 44.0 + len(name))] for name in names}
    scattered["location"] = scattered["location"][::-1]
    undecided = answer_to(question, report_of("loss.local", scattered))
    assert undecided.startswith("**Undecided (no difference of segmentation mIoU is significant).**")
    assert answer_to(question) == NOT_MEASURED


def test_a_difference_to_the_baseline_has_one_verdict() -> None:
    """Dunnett's test decides what Holm's procedure over both scores leaves open; so the study's page says."""
    scores = {
        0: [(97.6, 59.8), (97.4, 60.9), (97.6, 58.7)],
        2: [(98.2, 62.7), (98.4, 61.9), (98.2, 62.2)],
        4: [(99.3, 63.1), (99.2, 63.1), (99.5, 62.8)],
    }
    data = report_of("views.small_count", scores, baseline=0)
    row = next(row for row in data.summary.settings if row.varied == 4)
    assert data.summary.is_decided(row, "segmentation.miou")
    answer = answer_to("small crops", data)
    assert answer.startswith("**Yes, in part.**")
    assert "small count = 2 over small count = 0 +2.5 ± 3.2 (undecided)" in answer
    assert "small count = 4 over small count = 0 +3.2 ± 2.4;" in answer


def test_rows_of_two_curves_are_not_compared() -> None:
    """One row of each curve without the other would say what alpha does, not the grid."""
    data = report_of("views.flip_grid", {True: around(70, 30), False: around(65, 25)})
    data.study.pretrain.grid["loss.alpha"] = [1.0, 0.5]
    frame = data.frame.assign(**{"grid.loss.alpha": data.frame["grid.views.flip_grid"].map({True: 0.5, False: 1.0})})
    assert answer_to("mirrored", ReportData(data.study, frame)) == NOT_MEASURED


def test_the_strongest_report_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = report_of("loss.local", {n: around(60, 30, 1) for n in ("none", "feature", "location", "both")}, "few")
    more = report_of("loss.local", {n: around(60, 30, 2) for n in ("none", "feature", "location", "both")}, "more")
    assert answered_by(more, few) == {"more"}
    monkeypatch.setattr(ReportData, "changes", property(lambda data: ["seed"] if data.study.name == "more" else []))
    assert answered_by(more, few) == {"few"}  # the other one's study is another by now
    write_site([more], {}, tmp_path)
    page, mark = (tmp_path / "README.md").read_text(), "*Made with other settings than this checkout's.*"
    answers, studies = page.split("## Studies")
    assert (answers.count(mark), studies.count(mark)) == (1, 1)
    versions = more.frame["grid.seed"].map({0: "a" * 40, 1: "b" * 40})
    mixed = ReportData(more.study, more.frame.assign(**{"eval.provenance.commits": versions}))
    assert answered_by(mixed) == set()


def answered_by(*reports: ReportData) -> set[str]:
    return {data.study.name for _, data, _ in paper_questions.answers(reports) if data}


def test_a_trade_needs_both_scores() -> None:
    question = "does segmentation gain"
    traded = {1.0: around(70, 30), 0.5: [(65.0, 40.0), (65.1, 39.8), (65.3, 39.9)]}
    assert answer_to(question, report_of("loss.alpha", traded, baseline=1.0)).startswith("**Yes.**")
    of_another_criterion = report_of("loss.alpha", traded, baseline=1.0, **{"pretrain.loss.name": "own"})
    assert answer_to(question, of_another_criterion) == NOT_MEASURED
    both_up = {1.0: around(70, 30), 0.5: [(75.0, 40.0), (75.1, 39.8), (75.3, 39.9)]}
    assert answer_to(question, report_of("loss.alpha", both_up, baseline=1.0)).startswith("**No.**")
    unsure = {1.0: around(70, 30), 0.5: [(65.0, 40.0), (75.1, 39.8), (70.3, 39.9)]}
    assert answer_to(question, report_of("loss.alpha", unsure, baseline=1.0)).startswith("**Undecided.**")


@pytest.mark.parametrize(("rank", "seeds", "verdict"), [(1.5, 3, "Yes"), (18.0, 3, "No"), (1.5, 1, "Undecided")])
def test_a_collapse_is_a_loss_of_rank(rank: float, seeds: int, verdict: str) -> None:
    rows = {name: around(60, 30, seeds) for name in ("none", "feature", "location", "both")}
    ranks = {"none": 20.0, "feature": rank, "location": 20.0, "both": 20.0}
    answer = answer_to("collapse", report_of("loss.local", rows, **{"pretrain.result.rank_pooled": ranks}))
    assert answer.startswith(f"**{verdict}")
    assert f"rank pooled {rank:.3g}" in answer
    assert ("no seed has a standard deviation below 0.05" in answer) == (verdict == "No")
    everywhere = answer_to(
        "collapse", report_of("loss.local", rows, **{"pretrain.result.rank_pooled": ranks | {"none": 1.2}})
    )
    assert everywhere.startswith("**Undecided")


@pytest.mark.parametrize(
    ("loss", "with_terms", "seeds", "verdict"),
    [
        (0.0, 7.0, 3, "Yes, in the loss"),
        (3.0, 7.0, 3, "Undecided"),
        (1e-5, 24.75, 3, "No"),
        (1e-5, 7.0, 1, "Undecided"),
    ],
)
def test_a_trivial_solution_is_a_loss_of_zero(loss: float, with_terms: float, seeds: int, verdict: str) -> None:
    rows = {name: around(60, 30, seeds) for name in ("none", "with", "without")}
    losses = {"none": 9.0, "with": with_terms, "without": loss}
    coefficients = {"none": 25.0, "with": 25.0, "without": 0.0}
    own = {"pretrain.result.loss": losses, "pretrain.loss.variance_coefficient": coefficients}
    data = report_of("loss.local", rows, **own)
    controls = {"with": paper_questions.ALONE, "without": paper_questions.WITHOUT_TERMS}
    data.frame["control"] = data.frame["grid.loss.local"].map(controls)
    answer = answer_to("trivial solution", ReportData(data.study, data.frame))
    assert answer.startswith(f"**{verdict}")
    assert f"With them it ends at {with_terms:.2g} or less, where features that coincide cost 25." in answer
    assert (
        f"features of the backbone, with them less without: linear top-1 +0.0{' ± 0.0' if seeds > 1 else ''}" in answer
    )


def test_cost_is_compared_within_rounds() -> None:
    def cost(local: list[float], plain: list[float]) -> str:
        data = report_of("loss.alpha", {1.0: around(70, 30), 0.5: around(60, 40)})
        rounds = [*range(len(plain)), *range(len(local))]
        alphas = [1.0] * len(plain) + [0.5] * len(local)
        measured = {"grid.loss.alpha": alphas, "round": rounds, "milliseconds": plain + local, "gigabytes": 2.0}
        data.costs = pd.DataFrame(measured)
        return answer_to("cost", data)

    half = stats.t.ppf(0.975, 2) * np.std([1.5, 1.6, 1.55], ddof=1) / 3**0.5
    assert cost([300, 640, 155], [200, 400, 100]).startswith(f"**1.55 ± {half:.3f} times the time of a step.**")
    assert cost([300, 205, 310], [200, 210, 190]).startswith("**Undecided (1.37 ± ")
    assert cost([300], [200]).startswith("**Undecided (one round).**")
    assert answer_to("cost", report_of("loss.alpha", {1.0: around(70, 30), 0.5: around(60, 40)})) == (NOT_MEASURED)


def test_a_plateau_is_measured_by_kept_checkpoints() -> None:
    def with_checkpoint(gains: dict[float, float], moment: str = "70 steps") -> ReportData:
        scored: Scored = {alpha: around(70, 30) for alpha in gains}
        data = report_of("loss.alpha", scored, **{"pretrain.train.duration": "100 steps"})
        linear = data.frame[data.frame["eval.name"] == "linear"]
        early = linear["score.top1"] - linear["grid.loss.alpha"].map(gains)
        kept = linear.assign(**{"eval.name": f"linear at {moment}", "score.top1": early})
        others = linear.assign(**{"pretrain.hash": "imported", "pretrain.train.duration": None})  # has no training
        return ReportData(data.study, pd.concat([data.frame, kept, others]))

    at_plateau = "3 seeds, 100 steps; at a plateau (last quarter, at most: linear top-1 +0.5)"
    assert strength(with_checkpoint({1.0: 0.5, 0.5: 0.2})) == at_plateau
    computed = with_checkpoint({1.0: 0.5, 0.5: 0.2})
    computed.frame["pretrain.stage"] = "pretrain"
    computed.frame["pretrain.result.precision"] = computed.frame["grid.loss.alpha"].map(
        {1.0: "float32", 0.5: "bfloat16"}
    )
    assert strength(computed).startswith("3 seeds, 100 steps, float32 and bfloat16; at a plateau")
    moved = "no plateau yet (last quarter, at most: linear top-1 −4.0)"
    assert plateau(with_checkpoint({1.0: 3.9, 0.5: -4.0})) == moved  # in both ways, as one mean would hide
    # These moments say nothing of the last quarter.
    assert plateau(with_checkpoint({1.0: 0.5, 0.5: 0.2}, "90 steps")) == "plateau not measured"
    assert plateau(with_checkpoint({1.0: 0.5, 0.5: 0.2}, "10 steps")) == "plateau not measured"


def test_studies_that_measure_something_else_have_their_own_panel() -> None:
    same = [
        report_of("loss.alpha", {1.0: around(70, 30)}, name, **{"eval.data.name": "scenes", "eval.data.size": size})
        for name, size in (("a", 32), ("b", 32.0))  # as CSV has the same number
    ]
    other = report_of("loss.alpha", {1.0: around(70, 30)}, "c", **{"eval.data.name": "voc"})
    figure = overview.draw([*same, other])
    assert [len(axes.get_legend().get_texts()) for axes in figure.axes] == [2, 1]


def test_shared_trainings_are_counted(tmp_path: Path) -> None:
    stage, length = {"pretrain.stage": "pretrain"}, "pretrain.train.duration"
    first = report_of("loss.alpha", {1.0: around(70, 30), 0.5: around(60, 40)}, "first", **stage, **{length: "9 steps"})
    second = report_of(
        "loss.alpha", {1.0: around(70, 30), 0.2: around(60, 40)}, "second", **stage, **{length: "9 steps"}
    )
    steps = {0.75: "9 steps", 0.0: "0 steps"}  # nobody trains for no step
    third = report_of("loss.alpha", {0.75: around(70, 30), 0.0: around(9, 9)}, "third", **stage, **{length: steps})
    (lines,) = studies_table([first, second, third], tmp_path).blocks
    assert [line[-1] for line in lines] == ["6, 3 of them shared", "6, 3 of them shared", "3"]


def test_a_study_without_pictures_or_scores_is_listed(tmp_path: Path) -> None:
    data = report_of("loss.alpha", {1.0: [(float("nan"), float("nan"))], 0.5: [(float("nan"), float("nan"))]})
    ((line,),) = studies_table([data], tmp_path).blocks
    assert line[0] == "[made](made/README.md)"
    assert line[1] == ""
    assert "No finding: no run has a score yet." in line[3]
    assert line[4] == "0"


@pytest.fixture
def reports(fill: Callable[..., Graph], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one report with its overview, and one whose study is gone."""
    monkeypatch.setattr(report_module, "FIGURES", (tradeoff.PLOT, scores.PLOT))
    monkeypatch.setattr(committed, "STUDIES", folder)
    fill(lambda a, s: 10.0 if a is None else 50 + 20 * a + s, lambda a, s: 20.0 if a is None else 95 - 10 * a)
    (folder / "study.yaml").rename(folder / "fake.yaml")
    write_report("fake.yaml")
    gone = folder / "reports" / "gone"
    gone.mkdir()
    (gone / "results.csv").write_text((folder / "reports" / "fake" / "results.csv").read_text())
    main(["--site"])
    return folder / "reports"


def test_the_overview_is_a_function_of_the_reports(reports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (reports / "README.md").read_text(encoding="utf-8")
    assert "| [fake](fake/README.md) | ![fake](fake/tradeoff.png) |" in page
    assert "- gone: study gone.yaml does not exist" in page
    html = (reports / "index.html").read_text(encoding="utf-8")
    assert '<a href="fake/index.html">fake</a>' in html
    for target in re.findall(r'(?:href|src)="([^"#:]+)', html):
        assert (reports / target).is_file(), target
    before = {file: file.read_bytes() for file in reports.glob("*.*")}
    main(["--site"])
    assert before == {file: file.read_bytes() for file in reports.glob("*.*")}
    (reports / "gone" / "results.csv").unlink()
    main(["--refresh"])  # the overview no longer names the other, and the report has a link to it
    assert main(["--check"]) == 0
    assert '<a href="../index.html">All reports</a>' in (reports / "fake" / "index.html").read_text(encoding="utf-8")
    (reports / "README.md").write_text(page.replace("Reports", "Rapports"), encoding="utf-8")
    assert main(["--check"]) == 1
    assert "WRONG overview: README.md is not what the reports make" in capsys.readouterr().out


@pytest.mark.slow
def test_a_point_of_the_overview_leads_into_its_report(reports: Path) -> None:
    if not CHROMIUM.exists():
        pytest.skip(f"no browser at {CHROMIUM}: make install-report")
    with Browser(reports / "index.html") as page:
        page.hover("document.querySelector('a.point')")
        tip = page.run("document.getElementById('tip').textContent")
        assert tip == "fake: α = 0, mean of n = 2: linear top-1 50.5 ± 6.4, linear top-5 95.0 ± 0.0"
        page.click("document.querySelector('a.point')")
        page.wait("document.querySelector('h1')?.textContent === 'fake' && document.querySelector('tr.chosen')")
        assert page.run("[...document.querySelector('tr.chosen').cells].slice(0, 2).map(c => c.textContent)") == [
            "0",
            "0",
        ]
        page.open(reports / "index.html")
        page.resize(390, 844, phone=True)
        assert page.run("document.documentElement.scrollWidth") == 390
