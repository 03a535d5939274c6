"""The summary as Markdown: rows by the varied field, means with intervals, differences to the baseline, gaps."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.labels import is_percent, number, score_label, symbol, value_text
from analysis.statistics import Estimate
from analysis.summary import Row, Scores, Summary

NONE = "–"
# Of the features of the frozen backbone; in the order of pretrain/diagnostics.py.
DIAGNOSTICS = tuple(
    f"pretrain.{what}_{where}" for where in ("pooled", "local") for what in ("std", "correlation", "rank")
)


def results_table(summary: Summary) -> str:
    """One row a setting, then the controls, set apart by an empty row."""
    scores = summary.study.scores
    baseline = summary.study.report.baseline
    against = f"Δ to {symbol(summary.study.report.vary)} = {value_text(baseline)}"
    header = [*summary.study.row_keys, "n"]
    for score in scores:
        header += [score_label(score), *([against] if baseline is not None else [])]
    lines = [_settings_line(summary, row, scores) for row in summary.settings]
    if summary.controls:
        lines.append([""] * len(header))
        lines += [_control_line(summary, row, scores) for row in summary.controls]
    return markdown(header, lines)


def _settings_line(summary: Summary, row: Row, scores: Sequence[str]) -> list[str]:
    base = summary.baseline(row)
    cells = [*map(value_text, row.values), _count(row, scores)]
    for score in scores:
        cells.append(score_cell(row.scores[score], is_percent(score)))
        if summary.study.report.baseline is not None:
            found = "baseline" if row is base else difference_text(summary.difference(row, base, score), score)
            cells.append(found)
    return cells


def _control_line(summary: Summary, row: Row, scores: Sequence[str]) -> list[str]:
    values = [value_text(value) for value in row.values[1:] if value is not None]
    name = f"*{row.control} (control)*"
    cells = [name, *(values or [""] * len(row.values[1:])), _count(row, scores)]
    base = next((r for group, rows in summary.groups() for r in rows[:1] if row in summary.controls_of(group)), None)
    base = None if base is None else summary.baseline(base)
    for score in scores:
        cells.append(score_cell(row.scores[score], is_percent(score)))
        if summary.study.report.baseline is not None:
            # With several curves there are several baselines, and none of them is the control's own.
            one = len(dict.fromkeys(r.group for r in summary.settings)) == 1
            cells.append(difference_text(summary.difference(row, base, score), score) if one else NONE)
    return cells


def _count(row: Row, scores: Sequence[str]) -> str:
    """Seeds that have every score, "2 of 3" where some have not."""
    found = min(len(row.scores[score].by_seed) for score in scores)
    expected = max(row.scores[score].expected for score in scores)
    return str(expected) if found == expected else f"{found} of {expected}"


def score_cell(scores: Scores, percent: bool) -> str:
    """ "63.2 ± 1.4", or "– (1 running)" for a gap, never a zero."""
    found = scores.estimate
    gaps = ", ".join(f"{count} {state}" for state, count in sorted(scores.gaps.items()))
    text = NONE if found is None else estimate_text(found, percent)
    return f"{text} ({gaps})" if gaps else text


def estimate_text(found: Estimate, percent: bool, signed: bool = False) -> str:
    text = number(found.mean, percent, signed)
    return text if found.half is None else f"{text} ± {number(found.half, percent)}"


def difference_text(found: Estimate | None, score: str) -> str:
    return NONE if found is None else estimate_text(found, is_percent(score), signed=True)


def diagnostics_table(summary: Summary) -> str:
    """Has a representation collapsed? One row a setting and a control; empty where no run wrote a diagnostic."""
    known = [name for name in DIAGNOSTICS if any(row.scores[name].by_seed for row in summary.rows)]
    if not known:
        return ""
    header = [*summary.study.row_keys, *(name.partition(".")[2].replace("_", " ") for name in known)]
    lines = []
    for row in summary.rows:
        blank = ["" if value is None else value_text(value) for value in row.values]
        name = blank if row.control is None else [f"*{row.control} (control)*", *blank[1:]]
        lines.append([*name, *(score_cell(row.scores[score], False) for score in known)])
    return markdown(header, lines)


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
    return text


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose source lines up too."""
    cells = [[_escape(cell) for cell in line] for line in [header, *lines]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    first, *rest = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([first, rule, *rest])


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
