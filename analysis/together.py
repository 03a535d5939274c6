"""Several studies in one table: a block for each study, the same score columns, differences to its own baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis import page, render, tables
from analysis.labels import project_path, score_label
from analysis.questions import row_name
from analysis.render import Column, Table
from analysis.report import CANNOT_WRITE, RESULTS, files_of, require_no_loss
from analysis.report_data import ReportData, load_report_data
from analysis.results import commits, provenance
from analysis.summary import Row, Summary
from analysis.tables import count_text, difference_text, mean_text, score_values
from runtime import files
from runtime.errors import UserError
from sweeps.study import is_name

AGAINST = "Δ to its baseline"


@dataclass(frozen=True)
class Entry:
    """A row of one of the studies."""

    data: ReportData
    row: Row
    is_first: bool  # of its study


def write_together(
    studies: Sequence[str | Path],
    name: str,
    reports: str | Path = "reports",
    machine: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write reports/<name>/ with one table of all the studies, and return that folder. UserError as write_report."""
    if not is_name(name):
        raise UserError(f"--together {name!r}: expected letters, digits, '.', '_' and '-' (it names the folder)")
    studies_data = [load_report_data(study, machine) for study in studies]
    names = [data.study.name for data in studies_data]
    if name in names:
        raise UserError(f"--together {name!r} is the name of one of the studies, and its own report has that folder")
    if len(set(names)) < len(names):
        raise UserError(f"the studies {names} share a name; rows are grouped by it, so each must be there once")
    folder, frame = Path(reports) / name, pd.concat([data.frame for data in studies_data])
    if not force:
        require_no_loss(frame, folder)
    files.make_folder(folder, CANNOT_WRITE)
    table, sentences = together_table(studies_data), remarks(studies_data)
    text = render.from_template(
        "together.md.j2",
        name=name,
        studies=[data.study for data in studies_data],
        scores=table,
        remarks=sentences,
        provenance=[f"{data.study.name}: {line}" for data in studies_data for line in _origin(data)],
        files=" ".join(project_path(str(s)) if Path(s).is_absolute() else str(s) for s in studies),
    )
    values = pd.concat(score_values(data.summary).assign(study=data.study.name) for data in studies_data)
    both = table, together_table(studies_data, narrow=True)
    texts = files_of(text, page.to_html(name, text, folder), both, " ".join(sentences), values)
    for file, content in (texts | {RESULTS: frame.to_csv(index=False)}).items():
        files.write_text(folder / file, content)
    return folder


def together_table(studies_data: Sequence[ReportData], narrow: bool = False) -> Table:
    """Return the columns study, setting, n, and for each score its mean and its difference to the study's baseline.

    `narrow` leaves the differences out.

    A cell is empty where the study does not have that score; where runs do not have it yet, it says their state.
    """
    columns = [
        Column[Entry]("study", lambda entry: entry.data.study.name if entry.is_first else ""),
        Column[Entry]("setting", _setting_text),
        Column[Entry]("n", lambda entry: count_text(entry.row, entry.data.study.scores)),
    ]
    for score in dict.fromkeys(score for data in studies_data for score in data.study.scores):
        columns.append(_score_column(score_label(score), score, mean_text))
        columns += [] if narrow else [_score_column(AGAINST, score, difference_text)]
    blocks = [[Entry(data, row, i == 0) for i, row in enumerate(data.summary.rows)] for data in studies_data]
    return Table.of(columns, *blocks)


def _setting_text(entry: Entry) -> str:
    name = row_name(entry.data.summary, entry.row)
    return name if entry.row.control is None else f"*{name} (control)*"


def _score_column(name: str, score: str, text: Callable[[Summary, Row, str], str]) -> Column[Entry]:
    """Return a column of a score; a study without a baseline has no differences."""

    def cell(entry: Entry) -> str:
        study = entry.data.study
        known = score in study.scores and (name != AGAINST or study.report.baseline is not None)
        return text(entry.data.summary, entry.row, score) if known else ""

    return Column(name, cell)


def remarks(studies_data: Sequence[ReportData]) -> list[str]:
    """Return what the figures mean, and what keeps rows of two studies from being compared."""
    # The first note, on intervals, is that of the study with the most seeds: it holds for the others too.
    by_seeds = sorted(studies_data, key=lambda data: -data.summary.most_seeds)
    notes = [tables.notes(data.summary, "the baseline row of its own study") for data in by_seeds]
    sentences = [notes[0][0], *dict.fromkeys(sentence for own in notes for sentence in own[1:])]
    for what, column in (("protocol", "score.protocol"), ("data", "eval.data.name")):
        sentences += _differing(studies_data, what, column)
    if len({frozenset(commits(data.frame)) for data in studies_data}) > 1:
        sentences.append("**The studies were made by different code** (see below): compare within a study first.")
    return sentences


def _differing(studies_data: Sequence[ReportData], what: str, column: str) -> list[str]:
    """Return a sentence for each evaluation that has different values of `column` in different studies."""
    values_of: dict[str, dict[str, str]] = {}
    for data in studies_data:
        frame = data.frame
        for name in data.study.evals if column in frame else ():
            values = frame.loc[frame["eval.name"] == name, column].dropna().unique()
            if len(values):
                values_of.setdefault(name, {})[data.study.name] = ", ".join(map(str, values))
    return [
        f"**{name} is not one measurement: its {what} differs** "
        f"({'; '.join(f'{study}: {value}' for study, value in by_study.items())})."
        for name, by_study in values_of.items()
        if len(set(by_study.values())) > 1
    ]


def _origin(data: ReportData) -> list[str]:
    texts = provenance(data.frame, data.study)
    return [f"{name}: {texts[name]}" for name in ("study", "code", "machine")]
