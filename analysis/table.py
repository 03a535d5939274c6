"""The summary as a table: rows by the varied field, means with intervals, differences to the baseline, gaps.

A table is its cells as texts in the markup of markup.py; render.py writes it as Markdown, HTML and LaTeX.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.labels import is_percent, number, score_label, symbol, value_text
from analysis.statistics import Estimate
from analysis.summary import Row, Scores, Summary

NONE = "–"
# Of the features of the frozen backbone; in the order of pretrain/diagnostics.py.
DIAGNOSTICS = tuple(
    f"pretrain.{what}_{where}" for where in ("pooled", "local") for what in ("std", "correlation", "rank")
)


@dataclass(frozen=True)
class Table:
    """A header, and blocks of lines that are set apart from each other; every line is as long as the header."""

    header: list[str]
    blocks: list[list[list[str]]]

    @property
    def is_text(self) -> list[bool]:
        """For each column, whether it reads from the left: the first one, and words alone."""
        columns = zip(*(line for block in self.blocks for line in block), strict=True)
        words = [any(cells) and all(cell.lstrip("*")[:1].isalpha() for cell in cells if cell) for cells in columns]
        return [True, *words[1:]] if words else [True] * len(self.header)


def results_table(summary: Summary) -> Table:
    """One row a setting, then the controls, set apart."""
    scores = summary.study.scores
    baseline = summary.study.report.baseline
    against = f"Δ to {symbol(summary.study.report.vary)} = {value_text(baseline)}"
    header = [*summary.row_keys, "n"]
    for score in scores:
        header += [score_label(score), *([against] if baseline is not None else [])]
    settings = [_settings_line(summary, row, scores) for row in summary.settings]
    controls = [_control_line(summary, row, scores) for row in summary.controls]
    return Table(header, [block for block in (settings, controls) if block])


def _settings_line(summary: Summary, row: Row, scores: Sequence[str]) -> list[str]:
    return [*map(value_text, row.values), count_cell(row, scores), *_flat(summary, row, scores)]


def _flat(summary: Summary, row: Row, scores: Sequence[str]) -> list[str]:
    width = 1 if summary.study.report.baseline is None else 2
    return [cell for cells in cells_of(summary, row, scores) for cell in cells[:width]]


def cells_of(summary: Summary, row: Row, scores: Sequence[str]) -> list[list[str]]:
    """For each score the row's mean, bold where it is the best, and its difference to the baseline ("" without one)."""
    base = summary.baseline(row) if row.control is None else control_baseline(summary, row)
    found = []
    for score in scores:
        cell = score_cell(row.scores[score], is_percent(score))
        best = row.control is None and is_best(summary, row, score)
        text = "baseline" if row is base else difference_text(summary.difference(row, base, score), score)
        found.append([f"**{cell}**" if best else cell, "" if summary.study.report.baseline is None else text])
    return found


def is_best(summary: Summary, row: Row, score: str) -> bool:
    """Whether the intervals support calling this row the best of its curve; of scores in percent, where more is."""
    rows = [other for other in summary.settings if other.group == row.group]
    return is_percent(score) and summary.best(rows, score) is row


def _control_line(summary: Summary, row: Row, scores: Sequence[str]) -> list[str]:
    values = ["" if value is None else value_text(value) for value in row.values[1:]]
    return [f"*{row.control} (control)*", *values, count_cell(row, scores), *_flat(summary, row, scores)]


def control_baseline(summary: Summary, row: Row) -> Row | None:
    """What a control is compared with: with several curves there are several baselines, and none is its own."""
    if len({r.group for r in summary.settings}) != 1:
        return None
    rows = summary.settings
    return summary.baseline(rows[0]) if row in summary.controls_of(rows[0].group) else None


def count_cell(row: Row, scores: Sequence[str]) -> str:
    """Seeds that have every score, "2 of 3" where some have not."""
    found = min(len(row.scores[score].by_seed) for score in scores)
    expected = max(row.scores[score].expected for score in scores)
    return str(expected) if found == expected else f"{found} of {expected}"


def score_cell(scores: Scores, percent: bool) -> str:
    """ "63.2 ± 1.4", or "– (1 running)" for a gap, never a zero."""
    found = scores.estimate
    gaps = gaps_text(scores)
    text = NONE if found is None else estimate_text(found, percent)
    return f"{text} ({gaps})" if gaps else text


def gaps_text(scores: Scores) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(scores.gaps.items()))


def estimate_text(found: Estimate, percent: bool, signed: bool = False) -> str:
    text = number(found.mean, percent, signed)
    return text if found.half is None else f"{text} ± {number(found.half, percent)}"


def difference_text(found: Estimate | None, score: str) -> str:
    return NONE if found is None else estimate_text(found, is_percent(score), signed=True)


def diagnostics_table(summary: Summary) -> Table | None:
    """Has a representation collapsed? One row a setting and a control; None where no run wrote a diagnostic."""
    known = [name for name in DIAGNOSTICS if any(row.scores[name].by_seed for row in summary.rows)]
    if not known:
        return None
    header = [*summary.row_keys, *(name.partition(".")[2].replace("_", " ") for name in known)]
    lines = []
    for row in summary.rows:
        blank = ["" if value is None else value_text(value) for value in row.values]
        name = blank if row.control is None else [f"*{row.control} (control)*", *blank[1:]]
        lines.append([*name, *(score_cell(row.scores[score], False) for score in known)])
    return Table(header, [lines])


def notes(summary: Summary) -> str:
    """What the figures of the table mean."""
    report = summary.study.report
    most = max((len(s.by_seed) for row in summary.rows for s in row.scores.values()), default=0)
    if most < 2:
        text = "n: seeds. One seed has no interval: the figures show what came out, not what would come out again."
    else:
        text = "n: seeds; ±: half of the 95 % interval of the mean (t over seeds), each for one comparison alone."
    if report.baseline is not None:
        paired = "" if most < 2 else ", seed by seed"
        text += f" Δ: difference to the row {report.vary} = {value_text(report.baseline)}{paired}."
    if any(is_best(summary, row, score) for row in summary.settings for score in summary.study.scores):
        text += " Bold: the best, where the interval of its difference to every other row excludes 0."
    if summary.split:
        text += (
            " **The runs are of several code versions or protocols** (column version: commits, + with uncommitted "
            "changes): each has rows of its own, no mean runs across two, and differences stay within one."
        )
    return text
