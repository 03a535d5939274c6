"""Write the report of a study: tables, figures, a README.md for a git forge and an index.html.

A report is a function of the study and of its runs' directories alone: unchanged results make the same bytes. One made
of a results.csv whose settings are no longer those of the study says so at its top.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from analysis import page, published, render, runs, tables
from analysis.changes import comparable
from analysis.evidence import UNLIKE, unlike_machines
from analysis.figures import FIGURES, Plot, cost, write
from analysis.findings import answers, collapse_verdict, findings
from analysis.labels import project_path, value_text
from analysis.report_data import ReportData, add_measured, load_report_data
from analysis.results import commit_text, commits, load_results, marks_of, provenance, score_column
from analysis.settings import settings_table
from runtime import files
from runtime.errors import UserError
from sweeps.checkpoints import PRETRAIN

RESULTS = "results.csv"
CURVES = "training"  # the one figure that results.csv cannot draw: it shows what the runs logged
PICTURES = "pictures"  # a folder of the report, written by analysis.pictures
SOURCE, CAPTION = "Source", "Description"  # text fields of a picture
# How a report begins whose settings are no longer those of its study; analysis/committed.py looks for it.
STALE = "Made with other settings than this checkout's"
CANNOT_WRITE = "write the report elsewhere: --reports FOLDER"
_NAMED = 3  # evaluations that an error names


def write_report(
    study_file: str | Path,
    reports: str | Path = "reports",
    machine: Sequence[str] = (),
    figures: Sequence[Plot] | None = None,
    parquet: bool = False,
    results: str | Path | None = None,
    force: bool = False,
    points: str | Path | None = None,
) -> Path:
    """Write reports/<study name>/ from whatever runs there are, and return that folder.

    `figures`: all by default. `parquet`: write results.parquet too. `results`: a results.csv in place of the runs; it
    draws everything but the training curves, and keeps those that are there. `points`: a CSV file of own or other
    people's points (published.read_points), which stays beside the report. Raises UserError for a study that cannot
    be read and, without `force`, where the present report has scores or curves that the new one would not have. Each
    file is replaced in one step.
    """
    data = load_report_data(study_file, machine, results)
    require_scores(data)
    folder = Path(reports) / data.study.name
    others = None if points is None else published.read_points(Path(points))
    if not force:
        require_no_loss(data.frame, folder)
    kept = {CURVES} if _keeps_curves(data, folder, force) else set()
    files.make_folder(folder, CANNOT_WRITE)
    files.write_text(folder / RESULTS, data.frame.to_csv(index=False))
    if others is not None:
        files.write_text(folder / published.POINTS, others.to_csv(index=False))
    add_measured(data, folder)
    plots = FIGURES if figures is None else figures
    shown = [plot for plot in plots if plot.name in kept or write(plot, data, folder)]
    for name, text in texts_of(data, folder, shown).items():
        files.write_text(folder / name, text)
    if parquet:
        files.write_atomic(folder / "results.parquet", lambda to: of_one_type(data.frame).to_parquet(to, index=False))
    return folder


def require_parquet() -> None:
    """Raise UserError where no installed package writes parquet."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("--parquet needs pyarrow: pip install pyarrow; results.csv holds the same without it")


def of_one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """Turn columns of several types into text (a field may be a number here and a text there): parquet needs one."""
    mixed = {c: v for c, v in frame.items() if v.dropna().map(type).nunique() > 1}
    return frame.assign(**{str(c): v.where(v.isna(), v.astype(str)) for c, v in mixed.items()})


def texts_of(data: ReportData, folder: Path, plots: Sequence[Plot]) -> dict[str, str]:
    """Return the contents of every text file but results.csv, by name; `plots` are drawn in the folder already."""
    summary, rows = data.summary, published.rows_beside(data.frame)
    table, notes = tables.results_table(summary), " ".join(tables.notes(summary))
    known, known_notes = published.published_table(rows), published.notes(data.frame, rows)
    text = _page(data, folder, plots, scores=table, score_notes=notes, published=known, published_notes=known_notes)
    values = tables.score_values(summary, published.values_beside(data.frame, summary.study.scores))
    # Apart, to be set below the table or left out.
    latex = {
        "published-rows.tex": render.to_latex(known, known_notes),
        "published-rows-narrow.tex": render.to_latex(published.narrow_table(rows), known_notes),
    }
    html = page.to_html(data.study.name, text, folder, runs.points_of(data), runs.runs_section(data))
    return files_of(text, html, (table, tables.narrow_table(summary)), notes, values) | latex


def files_of(
    markdown: str, html: str, scores: tuple[render.Table, render.Table], notes: str, values: pd.DataFrame
) -> dict[str, str]:
    """Return the table of scores (whole and narrow) and the page of a report, each in its formats, by file name."""
    table, narrow = scores
    return {
        "table.md": f"{render.to_markdown(table)}\n\n{notes}\n",
        "table.tex": render.to_latex(table, notes),
        "table-narrow.tex": render.to_latex(narrow, notes),
        "table.csv": values.to_csv(index=False),
        "README.md": markdown,
        "index.html": html,
    }


def _page(data: ReportData, folder: Path, plots: Sequence[Plot], **variables: Any) -> str:
    frame, summary, diagnostics = data.frame, data.summary, data.diagnostics
    pictures, outdated_pictures = pictures_of(folder, frame)
    return render.from_template(
        "report.md.j2",
        data=data,
        study=data.study,
        stale=STALE,
        unlike=UNLIKE,
        changes=data.changes,
        code=", ".join(dict.fromkeys(commit_text(c) for line in commits(frame) for c in line.split())),
        answers=answers(summary),
        findings=findings(summary),
        several_seeds=summary.most_seeds > 1,
        plots=plots,
        settings=settings_table(frame, data.study),
        unlike_machines=unlike_machines(data),
        pictures=pictures,
        outdated_pictures=outdated_pictures,
        diagnostics=tables.diagnostics_table(diagnostics),
        collapse=collapse_verdict(diagnostics),
        gaps=_gaps(frame),
        contradictions=list(dict.fromkeys(summary.contradictions + diagnostics.contradictions)),
        cost=cost.stage_table(frame),
        step_cost=cost.step_table(data),
        points=None if data.points is None else published.points_table(data.points, frame),
        provenance=provenance(frame, data.study),
        file=project_path(data.study.file),
        **variables,
    )


def _gaps(frame: pd.DataFrame) -> list[str]:
    """Name every run without a result, with its state."""
    lines: dict[str, str] = {}
    for part in (PRETRAIN, "eval"):
        if f"{part}.state" not in frame:
            continue
        missing = frame[frame[f"{part}.state"].notna() & (frame[f"{part}.state"] != "done")]
        lines |= {run: f"{run}: {state}" for run, state in missing[[f"{part}.run", f"{part}.state"]].to_numpy()}
    return list(lines.values())


@dataclass(frozen=True)
class Picture:
    """A PNG that `python -m analysis.pictures --study` wrote into the folder of the report."""

    path: str  # from the report
    alt: str
    caption: str


def pictures_of(folder: Path, frame: pd.DataFrame) -> tuple[list[Picture], list[str]]:
    """Return the pictures of the very results of the frame, and the paths of those of other runs or earlier results.

    Each PNG says in its text fields which runs it shows, with which results (SOURCE), and what it shows (CAPTION).
    """
    files_there, marks = sorted((folder / PICTURES).glob("*.png")), set()
    if files_there:
        marks = set(map(_settled, marks_of(frame)))
    current, outdated = [], []
    for file in files_there:
        with Image.open(file) as image:
            texts = dict(getattr(image, "text", {}))
        runs, caption = set(texts.get(SOURCE, "").split()), texts.get(CAPTION, "")
        if runs and set(map(_settled, runs)) <= marks:
            current.append(Picture(f"{PICTURES}/{file.name}", caption.partition(".")[0], caption))
        else:
            outdated.append(f"`{PICTURES}/{file.name}`")
    return current, outdated


def _settled(run: str) -> str:
    """Turn hash:state:mark into hash:mark or hash:not: a run that was running and now is interrupted shows one gap."""
    name, state, mark = (*run.split(":"), "", "")[:3]
    return f"{name}:{mark if state == 'done' else 'not'}"


def require_scores(data: ReportData) -> None:
    """Raise UserError where runs are done and none of any evaluation wrote a score that the study names."""
    report = data.study.report
    named = {"report.x": [report.x], "report.y": [report.y], "report.scores": report.scores}
    for key, scores in named.items():
        for score in scores:
            source, _, name = score.partition(".")
            rows, start = score_column(data.frame, score), "pretrain.result." if source == PRETRAIN else "score."
            done = rows[rows["state"] == "done"].dropna(axis="columns", how="all")
            if done.empty or f"{start}{name}" in data.frame:
                continue
            known = [str(column).removeprefix(start) for column in done if str(column).startswith(start)]
            near = get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(f'{source}.{other}' for other in near)}? " if near else ""
            raise UserError(
                f"{key} = {score!r}: none of the {len(done)} runs of {source} that are done wrote it; {hint}"
                f"they have: {', '.join(known)}"
            )


def require_no_loss(frame: pd.DataFrame, folder: Path) -> None:
    """Raise UserError, with their names, where the report in `folder` has scores that `frame` does not have."""
    present = _present_results(folder)
    new = _score_counts(frame)
    lost = [", ".join(row) for row, count in _score_counts(present).items() if new.get(row, 0) < count]
    if lost:
        more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        named = "; ".join(lost[:_NAMED])
        raise _refusal(folder, f"the scores of {len(lost)} of its {len(present)} evaluations ({named}{more})")


def _keeps_curves(data: ReportData, folder: Path, force: bool) -> bool:
    """Return whether the training curves in `folder` stay: they cannot be drawn again, and are of the same runs.

    Raises UserError where they are of other runs; False with `force`.
    """
    if not data.from_csv or not (folder / f"{CURVES}.svg").is_file():
        return False
    column, present = "pretrain.hash", _present_results(folder)
    same = column in data.frame and column in present and set(data.frame[column]) == set(present[column])
    if not same and not force:
        raise _refusal(folder, "the training curves of other runs")
    return same


def _refusal(folder: Path, lost: str) -> UserError:
    return UserError(
        f"{folder} was not replaced: it has {lost}, which would be lost. "
        "Expected runs that are done (python -m sweeps status STUDY; machine.runs=FOLDER if they are elsewhere). "
        "--reports FOLDER writes the report elsewhere; --force replaces the present one"
    )


def _present_results(folder: Path) -> pd.DataFrame:
    file = folder / RESULTS
    return load_results(file) if file.is_file() else pd.DataFrame()


def _score_counts(frame: pd.DataFrame) -> dict[tuple[str, ...], int]:
    """Return how many scores each evaluation of each setting has."""
    named = [c for c in frame.columns if c in ("study", "control", "eval.name") or str(c).startswith("grid.")]
    counts = frame[[c for c in frame.columns if str(c).startswith(("score.", "pretrain.result."))]].notna().sum(axis=1)
    names = [str(column).removeprefix("grid.") for column in named]
    rows = ([comparable(value) for value in row] for row in frame[named].to_numpy(object))
    texts = [tuple(f"{n} {value_text(v)}" for n, v in zip(names, row, strict=True) if v is not None) for row in rows]
    return {text: int(count) for text, count in zip(texts, counts, strict=True) if count}
