"""The report of a study: tables, figures, a README.md for a git forge and an index.html that show them.

A function of the study and of its runs' directories alone: unchanged results make the same bytes. Of a results.csv
whose settings are no longer those of the study it says so at its top.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import cost, html, published, render, table
from analysis.figures import FIGURES, Plot, write
from analysis.findings import findings
from analysis.former import CURVES, RESULTS, keeps_curves, require_no_loss
from analysis.labels import project_path
from analysis.material import Material, load_material
from analysis.page import Block, Code, Heading, Items, Paragraph, Picture, to_markdown
from analysis.settings import settings_table
from analysis.shown import pictures_of
from analysis.values import table_values
from runtime import files
from runtime.errors import UserError
from sweeps.study import PRETRAIN

# Where a report cannot be written.
ELSEWHERE = "write the report elsewhere: --reports FOLDER"
# What a report begins with whose settings are no longer those of its study; analysis/committed.py looks for it.
STALE = "Made with other settings than this checkout's"
# The figures that show what the study asks; the others stand where they help to judge the answer.
_ANSWERS = ("tradeoff", "scores")


def write_report(
    study_file: str | Path,
    reports: str | Path = "reports",
    machine: Sequence[str] = (),
    figures: Sequence[Plot] | None = None,
    parquet: bool = False,
    results: str | Path | None = None,
    force: bool = False,
) -> Path:
    """Write reports/<study name>/ from whatever runs there are, and return that folder.

    `figures` are all by default; `parquet`: results.parquet too; `results`: a results.csv in place of the runs, which
    draws all but training curves, and leaves those that are there. Raises UserError for a study that cannot be read,
    and without `force` where the report in place has scores or curves that this one would not have. Each file is
    replaced in one step.
    """
    material = load_material(study_file, machine, results)
    folder = write_material(material, reports, figures, force)
    if parquet:
        files.write_atomic(
            folder / "results.parquet", lambda to: of_one_type(material.frame).to_parquet(to, index=False)
        )
    return folder


def require_parquet() -> None:
    """UserError where there is nothing that can write it."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("--parquet needs pyarrow: pip install pyarrow; results.csv holds the same without it")


def of_one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """A parquet column has one type: those of several (a field that is a number here and a text there) become text."""
    mixed = {c: v for c, v in frame.items() if v.dropna().map(type).nunique() > 1}
    return frame.assign(**{str(c): v.where(v.isna(), v.astype(str)) for c, v in mixed.items()})


def write_material(
    material: Material, reports: str | Path, figures: Sequence[Plot] | None = None, force: bool = False
) -> Path:
    """The report of material that is loaded already."""
    folder = Path(reports) / material.study.name
    if not force:
        require_no_loss(material.frame, folder)
    kept = {CURVES} if keeps_curves(material, folder, force) else set()
    files.make_folder(folder, ELSEWHERE)
    files.write_text(folder / RESULTS, material.frame.to_csv(index=False))
    plots = FIGURES if figures is None else figures
    shown = [plot for plot in plots if plot.name in kept or write(plot, material, folder)]
    for name, text in texts_of(material, folder, shown).items():
        files.write_text(folder / name, text)
    return folder


def texts_of(material: Material, folder: Path, plots: Sequence[Plot]) -> dict[str, str]:
    """The contents of every text file but results.csv, by name; the figures of the plots lie in the folder already.

    published-rows.tex stands apart, to be set below the table or left out.
    """
    summary = material.summary
    results, notes = table.results_table(summary), table.notes(summary)
    rows = published.rows_beside(material.frame)
    pictures = {plot.name: Picture(plot.name, plot.alt(material), plot.caption(material)) for plot in plots}
    page = blocks(material, pictures, pictures_of(folder, material.frame))
    known = published.published_table(rows)
    return {
        "table.md": f"{render.to_markdown(results)}\n\n{notes}\n",
        "table.tex": render.to_latex(results, notes),
        "table.csv": table_values(summary, rows).to_csv(index=False),
        "published-rows.tex": render.to_latex(known, published.notes(material.frame, rows)),
        "README.md": to_markdown(page),
        "index.html": html.to_html(material.study.name, page, folder),
    }


def blocks(material: Material, pictures: dict[str, Picture], photos: Sequence[Block] = ()) -> list[Block]:
    """The report, from the question to where it comes from; `photos` are of shown.pictures_of."""
    study, frame = material.study, material.frame
    rows = published.rows_beside(frame)
    answers = [pictures[name] for name in _ANSWERS if name in pictures]
    page: list[Block] = [Heading(study.name, 1), *_staleness(material), Paragraph(study.question)]
    page += [Heading("What came out"), Items(findings(material.summary)), *_allowance(material), *answers]
    page += [Heading("Scores"), table.results_table(material.summary), Paragraph(table.notes(material.summary))]
    page += _settings(material)
    page += [Heading("What was published"), published.published_table(rows), Paragraph(published.notes(frame, rows))]
    page += _shown(pictures, "published")
    page += photos
    page += _training(material, pictures) + _trouble(material)
    return page + _cost(material, pictures) + _origin(material, bool(photos))


def _staleness(material: Material) -> list[Block]:
    if not material.changes:
        return []
    text = f"{'; '.join(material.changes)}. The commands at the end of this page would make a different report."
    return [Paragraph(f"**{STALE}** ({_commits(material)} → now): {text}")]


def _commits(material: Material) -> str:
    """The code that made the runs: commit 0463b78b4457."""
    return ", ".join(dict.fromkeys(cost.commit_text(c) for line in cost.commits(material.frame) for c in line.split()))


def _allowance(material: Material) -> list[Block]:
    if not any(len(scores.by_seed) > 1 for row in material.summary.rows for scores in row.scores.values()):
        return []
    words = (
        "What is not undecided holds among all the differences that its sentence was chosen from: Holm's procedure "
        "over their t-tests, wrong in at most 5 % of studies for each sentence."
    )
    return [Paragraph(words)]


def _settings(material: Material) -> list[Block]:
    found = settings_table(material.frame, material.study)
    return [] if found is None else [Heading("Settings"), found]


def _shown(pictures: dict[str, Picture], *names: str) -> list[Block]:
    return [pictures[name] for name in names if name in pictures]


def _cost(material: Material, pictures: dict[str, Picture]) -> list[Block]:
    page: list[Block] = [Heading("Cost"), cost.table_of(material.frame), *_shown(pictures, "cost")]
    steps = cost.step_table(material)
    return page if steps is None else [*page, Paragraph("A training step, median (range over runs):"), steps]


def _training(material: Material, pictures: dict[str, Picture]) -> list[Block]:
    page: list[Block] = []
    diagnostics = table.diagnostics_table(material.diagnostics)
    if diagnostics is not None:
        words = (
            "Of the frozen backbone's features, pooled and of every position of the map (local). std: relative to the "
            "features' scale, 0 is collapse to a point. correlation: root mean square between dimensions, 1 is one "
            "dimension repeated. rank: effective rank (RankMe)."
        )
        page += [Heading("Has a representation collapsed?"), diagnostics, Paragraph(words)]
    page += _shown(pictures, "diagnostics")
    return page + ([Heading("Training"), pictures["training"]] if "training" in pictures else [])


def _trouble(material: Material) -> list[Block]:
    """Every run without a result, with its state; every score that two results contradict."""
    page: list[Block] = []
    if missing := _gaps(material.frame):
        page += [Heading("Gaps"), Paragraph("Runs without a result:"), Items(missing)]
    if found := list(dict.fromkeys(material.summary.contradictions + material.diagnostics.contradictions)):
        page += [Heading("Contradictions"), Paragraph("Two results for one setting and seed:"), Items(found)]
    return page


def _gaps(frame: pd.DataFrame) -> list[str]:
    lines: dict[str, str] = {}
    for part in (PRETRAIN, "eval"):
        if f"{part}.state" not in frame:
            continue
        missing = frame[frame[f"{part}.state"].notna() & (frame[f"{part}.state"] != "done")]
        lines |= {run: f"{run}: {state}" for run, state in missing[[f"{part}.run", f"{part}.state"]].to_numpy()}
    return list(lines.values())


def _origin(material: Material, pictures: bool) -> list[Block]:
    file = project_path(material.study.file)
    pictured = [f"python -m analysis.pictures --study {file}"] if pictures else []
    return [
        Heading("Where it comes from"),
        Items(cost.provenance(material.frame, material.study, file)),
        Paragraph(_made_by(material)),
        Code("\n".join([f"python -m sweeps run {file}", *pictured, f"python -m analysis {file}"])),
        Paragraph(
            "[results.csv](results.csv) has one row for each pretraining and evaluation, with every field of both "
            "configs. For a paper: [tradeoff.pdf](tradeoff.pdf) and the other figures as PDF and SVG; the table above "
            "as [LaTeX](table.tex) and as [numbers](table.csv)."
        ),
    ]


def _made_by(material: Material) -> str:
    if not material.changes:
        return "Made by"
    return (
        f"Made at {_commits(material)} by these commands, which now make a different report (see the top of this page)"
    )
