"""The overview of all reports: reports/README.md and reports/index.html, a function of their results.csv alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis import paper_questions
from analysis.evidence import UNLIKE, seeds, strength, trained, unlike_machines
from analysis.figures import overview, published
from analysis.findings import answers, findings
from analysis.page import SITE, to_html
from analysis.render import Column, Table, from_template
from analysis.report import STALE
from analysis.report_data import ReportData
from analysis.runs import points_of
from runtime import files


def write_site(reports: Sequence[ReportData], left: Mapping[str, str], folder: Path) -> Path:
    """Write the overview of the reports in a folder, and return its page; `left`: why others are not in it, by name."""
    overview.write_overview(reports, folder)
    published.write_published(folder)
    for name, text in texts_of(reports, left, folder).items():
        files.write_text(folder / name, text)
    return folder / SITE


def texts_of(reports: Sequence[ReportData], left: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Return the two pages, by file name; their figures are drawn already."""
    answers = [
        (question.text, text + _mark(data), "" if data is None else data.study.name)
        for question, data, text in paper_questions.answers(reports)
    ]
    markdown = from_template(
        "site.md.j2",
        answers=answers,
        studies=studies_table(reports, folder),
        overview=(overview.NAME, overview.ALT, overview.CAPTION),
        published=(published.NAME, published.ALT, published.CAPTION),
        left=left,
    )
    return {"README.md": markdown, SITE: to_html("Reports", markdown, folder, _points(reports))}


def studies_table(reports: Sequence[ReportData], folder: Path) -> Table:
    """Return a row for each study: what it asks, what it found, and how much that rests on."""
    runs = Counter(run for data in reports for run in _trainings(data))
    columns = [
        Column[ReportData]("study", lambda data: f"[{data.study.name}]({data.study.name}/README.md)"),
        Column[ReportData]("trade-off", lambda data: _thumbnail(data.study.name, folder)),
        Column[ReportData]("question", lambda data: data.study.question),
        Column[ReportData]("answer", _answer),
        Column[ReportData]("n", seeds),
        Column[ReportData]("evidence", strength),
        Column[ReportData]("trainings", lambda data: _count_text(_trainings(data), runs)),
    ]
    return Table.of(columns, reports)


def _trainings(data: ReportData) -> set[str]:
    return set(trained(data.frame)["pretrain.run"])


def _count_text(own: set[str], runs: Counter[str]) -> str:
    """Return how many trainings a study has, and how many of them are another's too."""
    shared = sum(runs[run] > 1 for run in own)
    return f"{len(own)}, {shared} of them shared" if shared else str(len(own))


def _thumbnail(name: str, folder: Path) -> str:
    file = f"{name}/tradeoff.png"
    return f"![{name}]({file})" if (folder / file).is_file() else ""


def _answer(data: ReportData) -> str:
    text = " ".join(answers(data.summary)) or findings(data.summary)[0]
    return text + _mark(data)


def _mark(data: ReportData | None) -> str:
    """Return what weakens an answer: settings of another study, or rows of several kinds of machine."""
    if data is None:
        return ""
    marks = [*([STALE] if data.changes else []), *([UNLIKE] if unlike_machines(data) else [])]
    return "".join(f" *{mark}.*" for mark in marks)


def _points(reports: Sequence[ReportData]) -> dict[str, str]:
    return {
        overview.link(data, row): f"{data.study.name}: {texts[row.mean_link]}"
        for data in reports
        if (texts := points_of(data))
        for row in data.summary.settings
        if row.mean_link in texts
    }
