"""The tables of a study: its scores with intervals, differences to the baseline and gaps; diagnostics; settings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pandas as pd

from analysis.labels import NONE, is_percent, number, score_label, symbol, value_text
from analysis.published import SOURCES
from analysis.render import Table
from analysis.statistics import Estimate
from analysis.summary import Row, Scores, Summary
from sweeps.study import PRETRAIN, Study

# Of the features of the frozen backbone; in the order of pretrain/diagnostics.py.
DIAGNOSTICS = tuple(
    f"pretrain.{what}_{where}" for where in ("pooled", "local") for what in ("std", "correlation", "rank")
)


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


PROTOCOL = "score.protocol"
# A row of the table -> the column of the results that it is in, by the stage's own name for it.
ROWS = {
    "data": ("data.name",),
    "network": ("model.backbone.name",),
    "protocol": (PROTOCOL,),
    "optimiser": ("optimizer.name", "momentum"),
    "learning rate": ("optimizer.base_lr", "optimizer.lr", "learning_rates"),
    "weight decay": ("optimizer.weight_decay", "weight_decay"),
    "length": ("train.duration", "epochs", "iterations"),
    "batch (images)": ("train.batch_size", "batch_size"),
    "crop or image (pixels)": ("views.large_size", "crop_size", "image_size"),
    "neighbours": ("neighbours",),
}
TEXTS = {
    "epochs": "{} epochs",
    "iterations": "{} iterations",
    "optimizer.base_lr": "{} (base)",  # times the batch over 256
    "momentum": "sgd, momentum {}",  # of a stage that has no other optimiser
}
FEW = 3  # values; more are those of the table of scores


def settings_table(frame: pd.DataFrame, study: Study) -> Table | None:
    """Of the runs of the grid, as the frame has them; None where it has no config (of runs that nobody planned)."""
    grid = frame[frame["control"].isna()]
    parts = {PRETRAIN: grid} | {name: grid[grid["eval.name"] == name] for name in study.evals}
    lines = [[title, *(_cell(rows, part, ROWS[title]) for part, rows in parts.items())] for title in ROWS]
    lines = [line for line in lines if any(cell != NONE for cell in line[1:])]
    return Table(["setting", *parts], [lines]) if lines else None


def _cell(rows: pd.DataFrame, part: str, names: tuple[str, ...]) -> str:
    side = "pretrain" if part == PRETRAIN else "eval"
    for name in names:
        column = f"{side}.{name}" if name != PROTOCOL else name if side == "eval" else ""
        values = [value_text(value) for value in dict.fromkeys(rows[column].dropna())] if column in rows else []
        if values:
            return TEXTS.get(name, "{}").format("varied" if len(values) > FEW else ", ".join(values))
    return NONE


HERE = "this study"


def table_values(summary: Summary, published: pd.DataFrame) -> pd.DataFrame:
    """Columns: source, control or method, the row keys, score, n, mean, half95 (half of the interval), the same of
    the difference to the baseline, best (whether the intervals support it) and gaps. Published rows stand last.
    """
    rows = [_ours(summary, row, score) for row in summary.rows for score in summary.study.scores]
    rows += [
        _published(summary, record, score)
        for record in published.to_dict("records")
        for score, column in SOURCES.items()
        if score in summary.study.scores and pd.notna(record[column])
    ]
    return pd.DataFrame(rows)


def _ours(summary: Summary, row: Row, score: str) -> dict[str, object]:
    cell = row.scores[score]
    base = summary.baseline(row) if row.control is None else control_baseline(summary, row)
    against = None if row is base else summary.difference(row, base, score)
    start = {"source": HERE, "name": row.control, **dict(zip(summary.row_keys, row.values, strict=True))}
    start |= {"score": score, "n": len(cell.by_seed)} | _numbers("", cell.estimate)
    start |= _numbers("difference_", against) | {"difference_n": None if against is None else against.n}
    return start | {"best": row.control is None and is_best(summary, row, score), "gaps": gaps_text(cell) or None}


def _numbers(name: str, found: Estimate | None) -> dict[str, object]:
    return {f"{name}mean": found.mean if found else None, f"{name}half95": found.half if found else None}


def _published(summary: Summary, record: dict[Hashable, Any], score: str) -> dict[str, object]:
    name = f"{record['method']}, {record['backbone']}, {record['pretrain_data']}"
    alpha = {"loss.alpha": record["alpha"]} if "loss.alpha" in summary.row_keys else {}
    return {"source": record["source"], "name": name, **alpha, "score": score, "mean": record[SOURCES[score]]}
