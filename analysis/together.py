"""Several studies in one table: a block a study, the same score columns, each difference to its own baseline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import html, published, render
from analysis.labels import project_path, score_label
from analysis.page import Block, Code, Heading, Items, Paragraph, to_markdown
from analysis.questions import name_of
from analysis.render import Table
from analysis.report import ELSEWHERE, RESULTS, require_no_loss
from analysis.report_data import ReportData, load_report_data
from analysis.results import commits, provenance
from analysis.tables import cells_of, count_cell, table_values
from analysis.tables import notes as table_notes
from runtime import files
from runtime.errors import UserError
from sweeps.study import is_name

AGAINST = "Δ to its baseline"


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
        raise UserError(f"--together {name!r} is the name of one of the studies, whose own report lies there")
    if len(set(names)) < len(names):
        raise UserError(f"the studies {names} share a name; rows are grouped by it, so each must be there once")
    folder, frame = Path(reports) / name, pd.concat([m.frame for m in studies_data])
    if not force:
        require_no_loss(frame, folder)
    files.make_folder(folder, ELSEWHERE)
    page = blocks(studies_data, name)
    table, notes = together_table(studies_data), " ".join(remarks(studies_data))
    values = [table_values(m.summary, published.published()[:0]).assign(study=m.study.name) for m in studies_data]
    for file, text in {
        RESULTS: frame.to_csv(index=False),
        "table.csv": pd.concat(values).to_csv(index=False),
        "table.md": f"{render.to_markdown(table)}\n\n{notes}\n",
        "table.tex": render.to_latex(table, notes),
        "README.md": to_markdown(page),
        "index.html": html.to_html(name, page, folder),
    }.items():
        files.write_text(folder / file, text)
    return folder


def together_table(studies_data: Sequence[ReportData]) -> Table:
    """Columns study, setting, n, and for each score of any study its mean and its difference to the study's baseline.

    A score that a study does not have is an empty cell; one that its runs do not have yet is a gap with its state.
    """
    scores = list(dict.fromkeys(score for data in studies_data for score in data.study.scores))
    header = ["study", "setting", "n"]
    for score in scores:
        header += [score_label(score), AGAINST]
    return Table(header, [_block(data, scores) for data in studies_data])


def _block(data: ReportData, scores: Sequence[str]) -> list[list[str]]:
    summary = data.summary
    own = [score for score in scores if score in data.study.scores]
    lines: list[list[str]] = []
    for row in summary.rows:
        cells = dict(zip(own, cells_of(summary, row, own), strict=True))
        name = name_of(summary, row) if row.control is None else f"*{name_of(summary, row)} (control)*"
        line = [data.study.name if not lines else "", name, count_cell(row, own)]
        lines.append(line + [cell for score in scores for cell in cells.get(score, ["", ""])])
    return lines


def remarks(studies_data: Sequence[ReportData]) -> list[str]:
    """What the figures mean, and what keeps rows of two studies from being compared."""
    longest = max(studies_data, key=lambda m: (m.summary.split, _seeds(m)))
    found = [table_notes(longest.summary).split(" Δ:")[0].rstrip(".") + "."]
    found.append(f"{AGAINST}: within its study, by the study's own baseline row.")
    for what, column in (("protocol", "score.protocol"), ("data", "eval.data.name")):
        found += _differing(studies_data, what, column)
    if len({frozenset(commits(data.frame)) for data in studies_data}) > 1:
        found.append("**The studies were made by different code** (see below): compare within a study first.")
    return found


def _seeds(data: ReportData) -> int:
    return max((len(s.by_seed) for row in data.summary.rows for s in row.scores.values()), default=0)


def _differing(studies_data: Sequence[ReportData], what: str, column: str) -> list[str]:
    """One sentence an evaluation that the studies measured by several values of `column`."""
    found: dict[str, dict[str, str]] = {}
    for data in studies_data:
        frame = data.frame
        for name in data.study.evals if column in frame else ():
            values = frame.loc[frame["eval.name"] == name, column].dropna().unique()
            if len(values):
                found.setdefault(name, {})[data.study.name] = ", ".join(map(str, values))
    return [
        f"**{name} is not one measurement: its {what} differs** "
        f"({'; '.join(f'{study}: {value}' for study, value in by_study.items())})."
        for name, by_study in found.items()
        if len(set(by_study.values())) > 1
    ]


def blocks(studies_data: Sequence[ReportData], name: str) -> list[Block]:
    page: list[Block] = [Heading(name, 1), Paragraph("Several studies in one table. What each of them asks:")]
    page.append(Items([f"**{m.study.name}**: {m.study.question}" for m in studies_data]))
    page += [Heading("Scores"), together_table(studies_data), Items(remarks(studies_data))]
    page.append(Heading("Where it comes from"))
    page += [Items([f"{m.study.name}: {line}" for m in studies_data for line in _origin(m)]), Paragraph("Made by")]
    files_of = " ".join(project_path(m.study.file) for m in studies_data)
    page += [Code(f"python -m analysis {files_of} --together {name}")]
    return [*page, Paragraph("As [LaTeX](table.tex), as [numbers](table.csv), and [every run](results.csv).")]


def _origin(data: ReportData) -> list[str]:
    texts = provenance(data.frame, data.study)
    return [f"{name}: {texts[name]}" for name in ("study", "code", "machine")]
