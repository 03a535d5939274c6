"""The report of a study: tables, figures, a README.md for a git forge and an index.html that show them.

A function of the study and of its runs' directories alone: unchanged results make the same bytes. Of a results.csv
whose settings are no longer those of the study it says so at its top.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from PIL import Image

from analysis import html, published, render, tables
from analysis.changes import plain
from analysis.figures import FIGURES, Plot, cost, write
from analysis.findings import findings
from analysis.labels import project_path, value_text
from analysis.page import Block, Code, Heading, Items, Paragraph, Photo, Picture, to_markdown
from analysis.report_data import ReportData, load_report_data
from analysis.results import commit_text, commits, load_results, provenance
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
    data = load_report_data(study_file, machine, results)
    folder = write_report_data(data, reports, figures, force)
    if parquet:
        files.write_atomic(folder / "results.parquet", lambda to: of_one_type(data.frame).to_parquet(to, index=False))
    return folder


def require_parquet() -> None:
    """UserError where there is nothing that can write it."""
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError("--parquet needs pyarrow: pip install pyarrow; results.csv holds the same without it")


def of_one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """A parquet column has one type: those of several (a field that is a number here and a text there) become text."""
    mixed = {c: v for c, v in frame.items() if v.dropna().map(type).nunique() > 1}
    return frame.assign(**{str(c): v.where(v.isna(), v.astype(str)) for c, v in mixed.items()})


def write_report_data(
    data: ReportData, reports: str | Path, figures: Sequence[Plot] | None = None, force: bool = False
) -> Path:
    """The report of data that is loaded already."""
    folder = Path(reports) / data.study.name
    if not force:
        require_no_loss(data.frame, folder)
    kept = {CURVES} if keeps_curves(data, folder, force) else set()
    files.make_folder(folder, ELSEWHERE)
    files.write_text(folder / RESULTS, data.frame.to_csv(index=False))
    plots = FIGURES if figures is None else figures
    shown = [plot for plot in plots if plot.name in kept or write(plot, data, folder)]
    for name, text in texts_of(data, folder, shown).items():
        files.write_text(folder / name, text)
    return folder


def texts_of(data: ReportData, folder: Path, plots: Sequence[Plot]) -> dict[str, str]:
    """The contents of every text file but results.csv, by name; the figures of the plots lie in the folder already.

    published-rows.tex stands apart, to be set below the table or left out.
    """
    summary = data.summary
    results, notes = tables.results_table(summary), tables.notes(summary)
    rows = published.rows_beside(data.frame)
    pictures = {plot.name: Picture(plot.name, plot.alt(data), plot.caption(data)) for plot in plots}
    page = blocks(data, pictures, pictures_of(folder, data.frame))
    known = published.published_table(rows)
    return {
        "table.md": f"{render.to_markdown(results)}\n\n{notes}\n",
        "table.tex": render.to_latex(results, notes),
        "table.csv": tables.table_values(summary, rows).to_csv(index=False),
        "published-rows.tex": render.to_latex(known, published.notes(data.frame, rows)),
        "README.md": to_markdown(page),
        "index.html": html.to_html(data.study.name, page, folder),
    }


def blocks(data: ReportData, pictures: dict[str, Picture], photos: Sequence[Block] = ()) -> list[Block]:
    """The report, from the question to where it comes from; `photos` are of shown.pictures_of."""
    study, frame = data.study, data.frame
    rows = published.rows_beside(frame)
    answers = [pictures[name] for name in _ANSWERS if name in pictures]
    page: list[Block] = [Heading(study.name, 1), *_staleness(data), Paragraph(study.question)]
    page += [Heading("What came out"), Items(findings(data.summary)), *_allowance(data), *answers]
    page += [Heading("Scores"), tables.results_table(data.summary), Paragraph(tables.notes(data.summary))]
    page += _settings(data)
    page += [Heading("What was published"), published.published_table(rows), Paragraph(published.notes(frame, rows))]
    page += _shown(pictures, "published")
    page += photos
    page += _training(data, pictures) + _trouble(data)
    return page + _cost(data, pictures) + _origin(data, bool(photos))


def _staleness(data: ReportData) -> list[Block]:
    if not data.changes:
        return []
    text = f"{'; '.join(data.changes)}. The commands at the end of this page would make a different report."
    return [Paragraph(f"**{STALE}** ({_commits(data)} → now): {text}")]


def _commits(data: ReportData) -> str:
    """The code that made the runs: commit 0463b78b4457."""
    return ", ".join(dict.fromkeys(commit_text(c) for line in commits(data.frame) for c in line.split()))


def _allowance(data: ReportData) -> list[Block]:
    if not any(len(scores.by_seed) > 1 for row in data.summary.rows for scores in row.scores.values()):
        return []
    words = (
        "What is not undecided holds among all the differences that its sentence was chosen from: Holm's procedure "
        "over their t-tests, wrong in at most 5 % of studies for each sentence."
    )
    return [Paragraph(words)]


def _settings(data: ReportData) -> list[Block]:
    found = tables.settings_table(data.frame, data.study)
    return [] if found is None else [Heading("Settings"), found]


def _shown(pictures: dict[str, Picture], *names: str) -> list[Block]:
    return [pictures[name] for name in names if name in pictures]


def _cost(data: ReportData, pictures: dict[str, Picture]) -> list[Block]:
    page: list[Block] = [Heading("Cost"), cost.stage_table(data.frame), *_shown(pictures, "cost")]
    steps = cost.step_table(data)
    return page if steps is None else [*page, Paragraph("A training step, median (range over runs):"), steps]


def _training(data: ReportData, pictures: dict[str, Picture]) -> list[Block]:
    page: list[Block] = []
    diagnostics = tables.diagnostics_table(data.diagnostics)
    if diagnostics is not None:
        words = (
            "Of the frozen backbone's features, pooled and of every position of the map (local). std: relative to the "
            "features' scale, 0 is collapse to a point. correlation: root mean square between dimensions, 1 is one "
            "dimension repeated. rank: effective rank (RankMe)."
        )
        page += [Heading("Has a representation collapsed?"), diagnostics, Paragraph(words)]
    page += _shown(pictures, "diagnostics")
    return page + ([Heading("Training"), pictures["training"]] if "training" in pictures else [])


def _trouble(data: ReportData) -> list[Block]:
    """Every run without a result, with its state; every score that two results contradict."""
    page: list[Block] = []
    if missing := _gaps(data.frame):
        page += [Heading("Gaps"), Paragraph("Runs without a result:"), Items(missing)]
    if found := list(dict.fromkeys(data.summary.contradictions + data.diagnostics.contradictions)):
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


def _origin(data: ReportData, pictures: bool) -> list[Block]:
    file = project_path(data.study.file)
    pictured = [f"python -m analysis.pictures --study {file}"] if pictures else []
    return [
        Heading("Where it comes from"),
        Items([f"{name}: {text}" for name, text in provenance(data.frame, data.study).items()]),
        Paragraph(_made_by(data)),
        Code("\n".join([f"python -m sweeps run {file}", *pictured, f"python -m analysis {file}"])),
        Paragraph(
            "[results.csv](results.csv) has one row for each pretraining and evaluation, with every field of both "
            "configs. For a paper: [tradeoff.pdf](tradeoff.pdf) and the other figures as PDF and SVG; the table above "
            "as [LaTeX](table.tex) and as [numbers](table.csv)."
        ),
    ]


def _made_by(data: ReportData) -> str:
    if not data.changes:
        return "Made by"
    return f"Made at {_commits(data)} by these commands, which now make a different report (see the top of this page)"


RESULTS = "results.csv"
CURVES = "training"  # the one figure that is drawn from what the runs logged, which results.csv has not
_NAMED = 3  # runs of an error, by name


def require_no_loss(frame: pd.DataFrame, folder: Path) -> None:
    """Raise UserError where the report in `folder` has scores that `frame` has not; it says which."""
    former = _former(folder)
    new = _scores(frame)
    lost = [row for row, count in _scores(former).items() if new.get(row, 0) < count]
    if lost:
        named = "; ".join(", ".join(row) for row in lost[:_NAMED])
        more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise _refusal(folder, f"the scores of {len(lost)} of its {len(former)} evaluations ({named}{more})")


def keeps_curves(data: ReportData, folder: Path, force: bool) -> bool:
    """Whether the training curves in `folder` stay: they cannot be drawn again, and they are of the same runs.

    UserError where they are of other runs, and would be lost; False with `force`.
    """
    if not data.of_a_table or not (folder / f"{CURVES}.svg").is_file():
        return False
    same = _same_pretrainings(data.frame, _former(folder))
    if not same and not force:
        raise _refusal(folder, "the training curves of other runs")
    return same


def _refusal(folder: Path, lost: str) -> UserError:
    return UserError(
        f"{folder} is left as it is: it has {lost}, which would be lost. "
        "Expected runs that are done (python -m sweeps status STUDY; machine.runs=FOLDER where they lie elsewhere). "
        "--reports FOLDER writes beside it; --force replaces it"
    )


def _former(folder: Path) -> pd.DataFrame:
    file = folder / RESULTS
    return load_results(file) if file.is_file() else pd.DataFrame()


def _scores(frame: pd.DataFrame) -> dict[tuple[str, ...], int]:
    """How many scores each evaluation of each setting has."""
    named = [c for c in frame.columns if c in ("study", "control", "eval.name") or str(c).startswith("grid.")]
    counts = frame[[c for c in frame.columns if str(c).startswith(("score.", "pretrain.result."))]].notna().sum(axis=1)
    names = [str(column).removeprefix("grid.") for column in named]
    rows = ([plain(value) for value in row] for row in frame[named].to_numpy(object))
    texts = [tuple(f"{n} {value_text(v)}" for n, v in zip(names, row, strict=True) if v is not None) for row in rows]
    return {text: int(count) for text, count in zip(texts, counts, strict=True) if count}


def _same_pretrainings(frame: pd.DataFrame, former: pd.DataFrame) -> bool:
    column = "pretrain.hash"
    return column in frame and column in former and set(frame[column]) == set(former[column])


FOLDER = "pictures"
SOURCE, CAPTION = "Source", "Description"


def pictures_of(folder: Path, frame: pd.DataFrame) -> list[Block]:
    """Of the report in `folder`; those of other runs, or of runs that have gone on since, are named and not shown."""
    states = {
        f"{run}:{state}"
        for side in ("pretrain", "eval")
        if f"{side}.hash" in frame
        for run, state in frame[[f"{side}.hash", f"{side}.state"]].dropna().to_numpy()
    }
    shown: list[Block] = []
    former = []
    for file in sorted((folder / FOLDER).glob("*.png")):
        with Image.open(file) as image:
            texts = dict(getattr(image, "text", {}))
        runs = set(texts.get(SOURCE, "").split())
        if runs and {_settled(run) for run in runs} <= {_settled(run) for run in states}:
            caption = texts.get(CAPTION, "")
            shown.append(Photo(f"{FOLDER}/{file.name}", caption.partition(".")[0], caption))
        else:
            former.append(f"`{FOLDER}/{file.name}`")
    if former:
        again = "`python -m analysis.pictures --study` makes them again"
        shown.append(Paragraph(f"Of other runs, or of an earlier state of these: {', '.join(former)}; {again}."))
    return [Heading("What the networks see"), *shown] if shown else []


def _settled(run: str) -> str:
    """hash:done, or hash:not: a run that was running and is interrupted now shows the same gap."""
    name, _, state = run.partition(":")
    return f"{name}:{'done' if state == 'done' else 'not'}"
