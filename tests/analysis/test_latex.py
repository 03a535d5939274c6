"""The tables compile, whatever their first cells are, and fit the page or the column that they are for."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from analysis import published, render
from analysis.render import Table
from analysis.report_data import ReportData
from analysis.tables import narrow_table, results_table
from runtime import PROJECT

NASTY = Table(
    ["a_b & c", "x%", "words"], [[["50 #1 {x} ~^\\", "−1.0 ± 0.2", "one"]], [["*ctl*", "**3** (1 new)", "`two`"]]]
)
# A row after a rule, one after a row, and what LaTeX would read as the star of a command.
OPTIONS = Table(
    ["γ", "difference to [20, 4]"], [[["[4, 4]", "1.0"], ["[20, 4]", "2.0"]], [["* (all)", "3.0"], ["[64, 4]", "4.0"]]]
)
COLUMN = r"\documentclass[10pt,twocolumn]{article}"
PAGE = COLUMN + r"\onecolumn"  # as wide as a table* in two columns


def compiled(head: str, tables: Sequence[str], folder: Path) -> str:
    """Return LaTeX's log of a document of these tables; fails where one does not compile."""
    engine = next(filter(None, map(shutil.which, ("pdflatex", "lualatex", "xelatex"))), None)
    if engine is None:
        pytest.skip("no LaTeX engine on this machine: make install-report")
    body = "\n\n\\noindent ".join(["", *tables])
    start = "\\usepackage{booktabs,tabularx}\n\\begin{document}\n"
    head, onecolumn, _ = head.partition(r"\onecolumn")
    text = f"{head}\n{start}{onecolumn}\n{body}\n\\end{{document}}\n"
    (folder / "t.tex").write_text(text, encoding="utf-8")
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    log = (folder / "t.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    return log


def overfull(log: str) -> list[str]:
    return re.findall(r"Overfull .hbox .*", log)


@pytest.mark.slow
def test_nasty_cells_compile(report_data_of: Callable[..., ReportData], tmp_path: Path) -> None:
    rows = [(None, {"loss.alpha": a, "seed": s}, 60 + a + s / 9, 30 - a) for a in (0.0, 1.0) for s in range(3)]
    summary = report_data_of({"loss.alpha": [0.0, 1.0], "seed": [0, 1, 2]}, rows).summary
    known = published.published_table(published.published())
    tables = [NASTY, OPTIONS, results_table(summary), narrow_table(summary), known]
    compiled(COLUMN, [render.to_latex(table, "ρ") for table in tables], tmp_path)


def test_a_first_cell_is_no_option_of_the_line_before() -> None:
    lines = render.to_latex(OPTIONS).splitlines()
    assert [line for line in lines if line.startswith(("[", "*"))] == []
    assert [line for line in lines if line.startswith("{}")] == [
        r"{}[4, 4] & 1.0 \\",
        r"{}[20, 4] & 2.0 \\",
        r"{}* (all) & 3.0 \\",
        r"{}[64, 4] & 4.0 \\",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("head", [COLUMN, PAGE], ids=["column", "page"])
def test_every_committed_table_fits(head: str, tmp_path: Path) -> None:
    files = sorted((PROJECT / "reports").glob("*/*.tex"))
    wanted = [file for file in files if file.stem.endswith("-narrow") == (head == COLUMN)]
    assert wanted
    assert overfull(compiled(head, [file.read_text(encoding="utf-8") for file in wanted], tmp_path)) == []


@pytest.mark.slow
def test_the_worked_example_compiles(tmp_path: Path) -> None:
    """As its first line says: a table and a figure of a report in two columns."""
    example = PROJECT / "analysis" / "paper.tex"
    line = re.match(r"% (pdflatex) -output-directory build (\S+)\n", example.read_text(encoding="utf-8"))
    assert line
    assert PROJECT / line[2] == example
    if shutil.which(line[1]) is None:
        pytest.skip("no pdflatex on this machine: make install-report")
    command = [line[1], "-interaction=nonstopmode", "-halt-on-error", "-output-directory", str(tmp_path), line[2]]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True)
    log = (tmp_path / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, log[-2000:]
    assert overfull(log) == []
    assert log.count("(./reports/") == 2
    assert "<./reports/scenes/tradeoff.pdf>" in log.replace("\n", "")


@pytest.mark.slow
def test_a_table_too_wide_is_seen(tmp_path: Path) -> None:
    wide = Table([f"column {i}" for i in range(30)], [[["x"] + ["100.0"] * 29]])
    assert overfull(compiled(PAGE, [render.to_latex(wide)], tmp_path))
