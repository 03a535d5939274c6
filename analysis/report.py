"""The report of a study: results.csv, table.md, tradeoff.png and .pdf, and a README.md that shows them.

A function of the study and of its runs' directories alone: unchanged results make the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from analysis import cost, table
from analysis.figures import write_tradeoff
from analysis.findings import findings
from analysis.labels import project_path
from analysis.results import load_results
from analysis.summary import Summary, summarize
from runtime import files
from sweeps.study import load_study


def write_report(study_file: str | Path, reports: str | Path = "reports", machine: Sequence[str] = ()) -> Path:
    """Write reports/<study name>/ from whatever runs there are, and return that folder.

    Raises UserError for a study that cannot be read. Each file is replaced in one step.
    """
    study = load_study(study_file)
    frame = load_results(study, machine)
    folder = Path(reports) / study.name
    folder.mkdir(parents=True, exist_ok=True)
    summary = summarize(frame, study, list(dict.fromkeys([*study.scores, study.report.x, study.report.y])))
    results = table.results_table(summary)
    files.write_text(folder / "results.csv", frame.to_csv(index=False))
    files.write_text(folder / "table.md", f"{results}\n\n{table.notes(summary)}\n")
    write_tradeoff(summary, folder)
    diagnostics = table.diagnostics_table(summarize(frame, study, table.DIAGNOSTICS))
    files.write_text(folder / "README.md", page(summary, frame, results, diagnostics))
    return folder


def page(summary: Summary, frame: pd.DataFrame, results: str, diagnostics: str) -> str:
    """The report's README.md."""
    study = summary.study
    file = project_path(study.file)
    found = "\n".join(f"- {line}" for line in findings(summary))
    parts = [
        f"# {study.name}",
        study.question,
        "## What came out\n\n" + found,
        f"![{study.report.y} against {study.report.x}](tradeoff.png)",
        caption(summary),
        "## Scores\n\n" + f"{results}\n\n{table.notes(summary)}",
        _diagnostics_section(diagnostics),
        _gaps_section(frame),
        "## Cost\n\n" + cost.table_of(frame),
        "## Where it comes from\n\n" + cost.provenance(frame, study, file),
        f"Made by\n\n    python -m sweeps run {file}\n    python -m analysis {file}\n\n"
        "[results.csv](results.csv) has one row for each pretraining and evaluation, with every field of both configs; "
        "the figure is [tradeoff.pdf](tradeoff.pdf) for print.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def caption(summary: Summary) -> str:
    """What the figure shows, as under a figure of a paper."""
    report = summary.study.report
    text = f"Each point is one {report.vary}, joined in its order"
    if report.baseline is not None:
        text += "; the hollow one is the baseline"
    if any(len(row.scores[report.x].by_seed) > 1 for row in summary.rows):
        text += "; bars are 95 % intervals over seeds"
    return f"{text}."


def _diagnostics_section(diagnostics: str) -> str:
    if not diagnostics:
        return ""
    words = (
        "Of the frozen backbone's features, pooled and of every position of the map (local). std: relative to the "
        "features' scale, 0 is collapse to a point. correlation: root mean square between dimensions, 1 is one "
        "dimension repeated. rank: effective rank (RankMe)."
    )
    return f"## Has a representation collapsed?\n\n{diagnostics}\n\n{words}"


def _gaps_section(frame: pd.DataFrame) -> str:
    """Every run without a result, with its state."""
    lines: dict[str, str] = {}
    for part in ("pretrain", "eval"):
        if f"{part}.state" not in frame:
            continue
        missing = frame[frame[f"{part}.state"].notna() & (frame[f"{part}.state"] != "done")]
        for _, row in missing.iterrows():
            lines[row[f"{part}.run"]] = f"- {row[f'{part}.run']}: {row[f'{part}.state']}"
    return "## Gaps\n\nRuns without a result:\n\n" + "\n".join(lines.values()) if lines else ""
