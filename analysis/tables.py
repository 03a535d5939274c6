"""The tables of a study. What the columns of the table of scores are: `score_columns`.

A new column is one more `Column` there: its text is shown in Markdown, HTML and LaTeX, its fields stand in table.csv.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.labels import NONE, is_percent, label, number, score_label, symbol, value_text
from analysis.render import Column, Table
from analysis.statistics import Estimate
from analysis.summary import Row, Scores, Summary
from sweeps.keys import as_text

# Of the features of the frozen backbone; in the order of pretrain/diagnostics.py.
DIAGNOSTICS = tuple(
    f"pretrain.{name}_{where}" for where in ("pooled", "local") for name in ("std", "correlation", "rank")
)


def results_table(summary: Summary) -> Table:
    """Return the table of scores: one row for each setting, then the controls, set apart."""
    scores = summary.study.scores
    columns = [*key_columns(summary), *description_columns(summary), _count_column(summary)]
    columns += [column for score in scores for column in score_columns(summary, score)]
    return Table.of(columns, summary.distinct_settings, summary.controls)


def narrow_table(summary: Summary) -> Table:
    """Return the table of scores for one column of a paper: the means, without the differences."""
    means = [_mean_column(summary, score) for score in summary.study.scores]
    keys = [replace(column, name=symbol(column.name)) for column in key_columns(summary)]
    return Table.of([*keys, _count_column(summary), *means], summary.distinct_settings, summary.controls)


def _count_column(summary: Summary) -> Column[Row]:
    return Column("n", lambda row: count_text(row, summary.study.scores))


def _mean_column(summary: Summary, score: str) -> Column[Row]:
    return Column(
        score_label(score),
        lambda row: mean_text(summary, row, score),
        lambda row: _mean_fields(summary, row, score),
    )


def key_columns(summary: Summary) -> list[Column[Row]]:
    """Return the columns of what the study varies; a control has its name in the first of them."""
    return [_key_column(summary, index, key) for index, key in enumerate(summary.row_keys)]


def _key_column(summary: Summary, index: int, key: str) -> Column[Row]:
    def text(row: Row) -> str:
        if row.control is not None and index == 0:
            return f"*{row.control} (control)*"
        return "" if row.values[index] is None else label(summary.study, key, row.values[index])

    return Column(key, text, lambda row: {key: row.values[index]})


def description_columns(summary: Summary) -> list[Column[Row]]:
    """Return the columns that a study of checkpoints gives its rows; none for other studies."""
    return [_description_column(summary, name) for name in summary.study.columns]


def _description_column(summary: Summary, name: str) -> Column[Row]:
    def value(row: Row) -> Any:
        return summary.study.descriptions.get(str(summary.checkpoint(row)), {}).get(name)

    def text(row: Row) -> str:
        return "" if (shown := as_text(value(row))) is None else value_text(shown)

    return Column(name, text, lambda row: {name: value(row)})


def score_columns(summary: Summary, score: str) -> list[Column[Row]]:
    """Return the columns of one score: the mean over seeds and, in a study with a baseline, the difference to it."""
    report = summary.study.report
    mean = _mean_column(summary, score)
    difference = Column[Row](
        f"Δ to {summary.baseline_label}",
        lambda row: difference_text(summary, row, score),
        lambda row: _difference_fields(summary, row, score),
    )
    return [mean, *([] if report.baseline is None else [difference]), *_published_columns(summary, score)]


def _published_columns(summary: Summary, score: str) -> list[Column[Row]]:
    """Return the columns of the published figures of a score and the differences to them; none without a figure."""
    if not has_published(summary, score):
        return []

    def figure(row: Row) -> float | None:
        return row.scores[score].published

    def difference(row: Row) -> float | None:
        here, there = row.scores[score].estimate, figure(row)
        return None if here is None or there is None else here.mean - there

    def text(value: float | None, signed: bool = False) -> str:
        return "" if value is None else number(value, is_percent(score), signed)

    return [
        Column("published", lambda row: text(figure(row)), lambda row: {"published": figure(row)}),
        Column(
            "Δ to published",
            lambda row: text(difference(row), signed=True),
            lambda row: {"published_difference": difference(row)},
        ),
    ]


def has_published(summary: Summary, score: str) -> bool:
    """Return whether any row has a published figure of the score."""
    return any(row.scores[score].published is not None for row in summary.rows)


def mean_text(summary: Summary, row: Row, score: str) -> str:
    """Return text such as "63.2 ± 1.4", bold where the row is the best."""
    text = score_text(row.scores[score], is_percent(score))
    return f"**{text}**" if is_best(summary, row, score) else text


def _mean_fields(summary: Summary, row: Row, score: str) -> dict[str, Any]:
    scores = row.scores[score]
    fields = {"n": len(scores.by_seed), **_interval_fields("", scores.estimate)}
    return {**fields, "best": is_best(summary, row, score), "gaps": gaps_text(scores) or None}


def difference_text(summary: Summary, row: Row, score: str) -> str:
    """Return text such as "+1.8 ± 0.5†", or "baseline" for the baseline itself; †: it is decided among all rows."""
    base = summary.baseline(row)
    if row is base:
        return "baseline"
    difference = summary.difference(row, base, score)
    if difference is None:
        return NONE
    return estimate_text(difference, is_percent(score), signed=True) + "†" * summary.is_decided(row, score)


def _difference_fields(summary: Summary, row: Row, score: str) -> dict[str, Any]:
    base = summary.baseline(row)
    difference = None if row is base else summary.difference(row, base, score)
    decided = None if difference is None else summary.is_decided(row, score)
    fields = {"difference_n": difference.n if difference else None, "difference_decided": decided}
    return {**_interval_fields("difference_", difference), **fields}


def _interval_fields(prefix: str, estimate: Estimate | None) -> dict[str, Any]:
    mean, half = (estimate.mean, estimate.half) if estimate else (None, None)
    return {f"{prefix}mean": mean, f"{prefix}half95": half}


def is_best(summary: Summary, row: Row, score: str) -> bool:
    """Return whether the intervals support that this row is the best of its curve; only for scores in percent."""
    rows = [other for other in summary.settings if other.group == row.group]
    return row.control is None and is_percent(score) and summary.best(rows, score) is row


def count_text(row: Row, scores: Sequence[str]) -> str:
    """Return the number of seeds, "2 of 3" where some lack a score."""
    scored = min(len(row.scores[score].by_seed) for score in scores)
    expected = max(row.scores[score].expected for score in scores)
    return str(expected) if scored == expected else f"{scored} of {expected}"


def score_text(scores: Scores, percent: bool) -> str:
    """Return text such as "63.2 ± 1.4", or "– (1 running)" for a gap, never a zero."""
    estimate, gaps = scores.estimate, gaps_text(scores)
    text = NONE if estimate is None else estimate_text(estimate, percent)
    return f"{text} ({gaps})" if gaps else text


def gaps_text(scores: Scores) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(scores.gaps.items()))


def estimate_text(estimate: Estimate, percent: bool, signed: bool = False) -> str:
    text = number(estimate.mean, percent, signed)
    return text if estimate.half is None else f"{text} ± {number(estimate.half, percent)}"


def score_values(summary: Summary, published: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
    """Return the table of scores as numbers, for other programs: a row for each setting and score.

    Published rows (published.values_beside) stand last.

    half95 is half the width of the 95 % interval; `best`, whether the intervals support it.
    """
    differences = ["difference_mean", "difference_half95", "difference_n", "difference_decided"]
    values = ["n", "mean", "half95", *differences, "best", "gaps"]
    if any(has_published(summary, score) for score in summary.study.scores):
        values += ["published", "published_difference"]
    names = ["source", "name", *summary.row_keys, "score", *values]
    keys, scores = key_columns(summary), summary.study.scores
    ours = [_values(row, score, [*keys, *score_columns(summary, score)]) for row in summary.rows for score in scores]
    return pd.DataFrame([*ours, *published], columns=names)


def _values(row: Row, score: str, columns: Sequence[Column[Row]]) -> dict[str, Any]:
    fields: dict[str, Any] = {"source": "this study", "name": row.control, "score": score}
    for column in columns:
        fields |= column.fields(row)
    return fields


def notes(summary: Summary, against: str | None = None) -> list[str]:
    """Return sentences on what the figures of the table of scores mean; `against`: what Δ is, in place of its row."""
    report = summary.study.report
    if summary.most_seeds > 1:
        texts = ["n: number of seeds; ±: half of the 95 % interval of the mean (t over seeds)."]
    else:
        texts = ["n: number of seeds. One seed gives no interval: another seed may give other figures."]
    if report.baseline is not None:
        row = against or f"the row {summary.baseline_label}"
        texts.append(f"Δ: difference to {row}, paired by seed.")
        if summary.most_seeds > 1:
            texts.append(
                "†: decided among all rows compared with it: Dunnett's test rejects equality at 5 %, and the row's own "
                "interval excludes 0."
            )
    if len(summary.distinct_settings) < len(summary.settings):
        texts.append("Settings that differ only in options without an effect on the loss are one training and one row.")
    if any(has_published(summary, score) for score in summary.study.scores):
        texts.append("published: the figure of the same weights and protocol; Δ to published: ours less it.")
    if any(is_best(summary, row, score) for row in summary.settings for score in summary.study.scores):
        over = "over the baseline as †, else " if report.baseline is not None else ""
        texts.append(
            f"Bold: the best row, if its lead over every other is decided, {over}by Holm's procedure over all "
            "differences of rows."
        )
    if summary.split:
        texts.append(
            "**The runs are of several code versions or protocols** (column version: commits; + for uncommitted "
            "changes). Each version has its own rows: no mean and no difference mixes two of them."
        )
    return texts


def diagnostics_table(summary: Summary) -> Table | None:
    """Return the diagnostics of each setting and control, which show a collapse; None where no run wrote any."""
    known = [name for name in DIAGNOSTICS if any(row.scores[name].by_seed for row in summary.rows)]
    columns = [*key_columns(summary), *map(_diagnostic_column, known)]
    return Table.of(columns, summary.rows) if known else None


def _diagnostic_column(name: str) -> Column[Row]:
    return Column(name.partition(".")[2].replace("_", " "), lambda row: score_text(row.scores[name], percent=False))
