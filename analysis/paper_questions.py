"""The questions with which the suite began, each answered from the strongest report that varies what it asks about.

A new question is one more entry of QUESTIONS.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.evidence import verdict
from analysis.figures.cost import MEMORY, TIME, step_costs
from analysis.findings import COLLAPSE, collapse_signs, tradeoff
from analysis.labels import is_percent, number, score_name
from analysis.report_data import ReportData
from analysis.statistics import estimate
from analysis.summary import Row
from analysis.tables import DIAGNOSTICS, estimate_text, score_text
from runtime.config import Duration

# Controls of a report that varies loss.local.
ALONE = "feature, no global criterion"
WITHOUT_TERMS = f"{ALONE}, variance or covariance"
TRIVIAL = 0.01  # of the loss of collapsed features with the variance term: less is none

# The answer of a report; empty where the report does not have what it takes.
Answer = Callable[[ReportData], str]


@dataclass(frozen=True)
class Question:
    text: str
    vary: str  # the key that a report has to vary
    answer: Answer


def answers(reports: Sequence[ReportData]) -> list[tuple[Question, ReportData | None, str]]:
    """Return each question with the report that answers it, and the answer."""
    return [(question, *_answer(question, reports)) for question in QUESTIONS]


def _answer(question: Question, reports: Sequence[ReportData]) -> tuple[ReportData | None, str]:
    # The questions are VICRegL's, and rows of several versions of the code are not to be compared.
    usable = [data for data in reports if not (data.summary.own_criterion or data.summary.split)]
    asked = [data for data in usable if data.study.report.vary == question.vary]
    for data in sorted(asked, key=_strength, reverse=True):
        if text := question.answer(data):
            return data, text
    return None, "**Undecided.** No report has measured it with one version of the code."


def _strength(data: ReportData) -> tuple[bool, int, float]:
    """Order reports by whether their study is still the same, then by seeds, then by the length of their trainings."""
    lengths = data.frame.get("pretrain.train.duration")
    known = [] if lengths is None else [Duration.parse(text).amount for text in lengths.dropna()]
    return not data.changes, data.summary.most_seeds, max(known, default=0.0)


def _rows(data: ReportData, *names: object) -> list[Row] | None:
    """Return the rows of these values of the varied key, or controls: of the first curve that has all, with scores."""
    for group, rows in data.summary.groups():
        scored = [r for r in [*rows, *data.summary.controls_of(group)] if r.scores[data.study.report.y].by_seed]
        named = [[r for r in scored if name in (r.control, str(r.varied)) or name == r.varied] for name in names]
        if all(named):
            return [first for first, *_ in named]
    return None


def _expect(*names: tuple[object, object]) -> Answer:
    """Return an answer that compares rows, each with one that is expected to be lower in segmentation."""

    def answer(data: ReportData) -> str:
        if (rows := _rows(data, *itertools.chain(*names))) is None:
            return ""
        scores = dict.fromkeys([data.study.report.y, data.study.report.x])
        return verdict(data, [(s, a, b) for s in scores for a, b in zip(rows[::2], rows[1::2], strict=True)])

    return answer


def _trade(data: ReportData) -> str:
    """Say at which settings segmentation gains and classification loses against the baseline, both decided."""
    summary, report = data.summary, data.study.report
    rows = [row for row in summary.settings if summary.difference(row, summary.baseline(row), report.y) is not None]
    settings = [row for row in rows if row is not summary.baseline(row)]
    if not settings:
        return ""
    decided = [row for row in settings if all(summary.is_decided(row, score) for score in (report.x, report.y))]
    trades = [row for row in decided if _gap(data, row, report.y) > 0 > _gap(data, row, report.x)]
    word = "Yes" if trades else "No" if len(decided) == len(settings) else "Undecided"
    return f"**{word}.** {' '.join(tradeoff(summary, rows) for _, rows in summary.groups())}"


def _gap(data: ReportData, row: Row, score: str) -> float:
    found = data.summary.difference(row, data.summary.baseline(row), score)
    return 0.0 if found is None else found.mean


def _collapse(data: ReportData) -> str:
    """Compare the features with and without the attraction of close features: rank, deviation, correlation."""
    if (compared := _rows(data, "feature", "none")) is None:
        return ""
    a, b = _diagnosed(data, *compared)
    known = [name for name in DIAGNOSTICS if a.scores[name].by_seed and b.scores[name].by_seed]
    if not known:
        return ""
    if any(len(row.scores[name].by_seed) < 2 for row in (a, b) for name in known):
        word = "Undecided (one seed)"
    elif already := collapse_signs(b):
        word = f"Undecided (without a local criterion they have too: {', '.join(already)})"
    else:
        word = f"Yes ({', '.join(signs)})" if (signs := collapse_signs(a)) else f"No: no seed has {COLLAPSE}"
    values = "; ".join(f"{_short(name)} {_score(a, name)} against {_score(b, name)}" for name in known)
    return f"**{word}.** With features attracted alone, against no local criterion: {values}."


def _short(diagnostic: str) -> str:
    return score_name(diagnostic).removeprefix("pretrain ").replace("_", " ")


def _trivial_solution(data: ReportData) -> str:
    """Compare the losses at the end of feature attraction alone, with and without variance and covariance.

    Without them the loss is the distance of the matched, projected features alone. With them, features that coincide
    cost the variance term's coefficient, and a loss below it bounds their deviation: it is 1 - loss / coefficient or
    more, in the mean over dimensions.
    """
    rows = _rows(data, ALONE, WITHOUT_TERMS)
    with_terms, without = (_of_control(data, name, "pretrain.result.loss") for name in (ALONE, WITHOUT_TERMS))
    coefficients = _of_control(data, ALONE, "pretrain.loss.variance_coefficient")
    if rows is None or with_terms.empty or without.empty or coefficients.empty:
        return ""
    collapsed = float(coefficients.min())
    trivial, kept = without.max() < TRIVIAL * collapsed, with_terms.max() < collapsed / 2
    if any(len(row.scores[data.study.report.y].by_seed) < 2 for row in rows):
        word = "Undecided (one seed)"
    elif not trivial:
        word = "Undecided (the solution without them is not trivial)"
    else:
        word = "Yes, in the loss" if kept else "No"
    meaning = ": matched features coincide after projection, and nothing is left to learn from" if trivial else ""
    return (
        f"**{word}.** Without them the loss ends at {without.max():.1g} or less{meaning}. With them it ends at "
        f"{with_terms.max():.2g} or less, where features that coincide cost {collapsed:.2g}. "
        f"Scores and features of the backbone, with them less without: {', '.join(_gains(data, *rows))}."
    )


def _gains(data: ReportData, a: Row, b: Row) -> list[str]:
    """Return a less b in the scores of the report, and in the diagnostics of pooled features."""
    report, (first, second) = data.study.report, _diagnosed(data, a, b)
    found = {score: data.summary.difference(a, b, score) for score in dict.fromkeys([report.x, report.y])}
    found |= {name: data.diagnostics.difference(first, second, name) for name in DIAGNOSTICS if name.endswith("pooled")}
    return [
        f"{_short(name)} {estimate_text(gap, is_percent(name), signed=True)}{'' if gap.sign else ' (undecided)'}"
        for name, gap in found.items()
        if gap is not None
    ]


def _diagnosed(data: ReportData, *rows: Row) -> list[Row]:
    """Return the rows of the diagnostics that are those of the scores."""
    known = {(row.control, row.values): row for row in data.diagnostics.rows}
    return [known[row.control, row.values] for row in rows]


def _of_control(data: ReportData, name: str, column: str) -> pd.Series:
    """Return the known values of a column in the runs of a control."""
    frame = data.frame[data.frame["control"] == name]
    return frame.get(column, pd.Series(dtype=float)).dropna()


def _score(row: Row, name: str) -> str:
    return score_text(row.scores[name], percent=False)


def _cost(data: ReportData) -> str:
    """Compare a step without the local criterion (alpha = 1) with one that has both, where cost_bench measured them.

    The settings of a round follow one another, so the ratio is taken within each round.
    """
    costs = step_costs(data)
    alphas = costs["varied"].astype(str).astype(float)
    plain, local = costs[alphas == 1], costs[(alphas > 0) & (alphas < 1)]
    times = [rows[TIME].dropna() for rows in (local, plain)]
    if any(known.empty for known in times):
        return ""
    by_round = [rows.groupby("round")[TIME].median() for rows in (local, plain)]
    ratio = estimate((by_round[0] / by_round[1]).dropna().tolist())
    if ratio is None or ratio.half is None:
        lead = "Undecided (one round)"
    else:
        text = f"{estimate_text(ratio, False)} times the time of a step"
        lead = text if abs(ratio.mean - 1) > ratio.half else f"Undecided ({text})"
    memory = [rows[MEMORY].dropna().median() for rows in (local, plain)]
    texts = [f"{number(t.median(), False)} ms ({number(t.min(), False)} to {number(t.max(), False)})" for t in times]
    beside = "" if None in memory or memory[1] != memory[1] else f"; memory {memory[0]:.2f} against {memory[1]:.2f} GB"
    return f"**{lead}.** With both criteria {texts[0]}, with the global one alone {texts[1]}{beside}."


QUESTIONS = (
    Question("As alpha falls from 1, does segmentation gain what classification loses?", "loss.alpha", _trade),
    Question(
        "Does attracting by location alone help more than by feature alone, and both most?",
        "loss.local",
        _expect(("location", "feature"), ("both", "location"), ("both", "feature")),
    ),
    Question("Do the features collapse when close features are attracted?", "loss.local", _collapse),
    Question(
        "Where close features alone are attracted, do variance and covariance prevent a trivial solution?",
        "loss.local",
        _trivial_solution,
    ),
    Question("What does the local criterion cost?", "loss.alpha", _cost),
    Question("Does a local criterion at several scales help?", "model.local_stages", _expect(("[-2, -1]", "[-1]"))),
    Question(
        "Are all pairs nearer than a threshold better than the nearest 20?",
        "loss.location_threshold",
        _expect((2.0, "nearest 20"), (8.0, "nearest 20")),
    ),
    Question(
        "Is a location grid that is mirrored with its crop better than the published default, which is not?",
        "views.flip_grid",
        _expect((True, False)),
    ),
    Question("Do small crops beside the two large ones help?", "views.small_count", _expect((2, 0), (4, 0))),
)
