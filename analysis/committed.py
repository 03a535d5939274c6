"""All reports of a folder at once: are they what their results make, and do they say whose settings they have?

`check` looks, `refresh` writes: each from its own results.csv, for no run directories lie beside the reports.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.figures import FIGURES
from analysis.report import RESULTS, STALE, texts_of, write_report
from analysis.report_data import load_report_data
from runtime.errors import UserError
from runtime.provenance import PROJECT

STUDIES = PROJECT / "sweeps" / "studies"
_PHRASE = STALE.removeprefix("Made with ").lower()
_QUOTE = re.compile(r"\]\(reports/([^/)]+)/")


@dataclass(frozen=True)
class Verdict:
    """Of one report, or of the page that quotes them."""

    name: str
    text: str
    sound: bool = True
    stale: bool = False


def check(reports: str | Path) -> list[Verdict]:
    """A verdict a report, then one a report that the README.md beside the folder quotes wrongly. UserError for none."""
    found = [_verdict(folder) for folder in _folders(reports)]
    return [*found, *_quotes(Path(reports).parent / "README.md", {v.name: v.stale for v in found})]


def refresh(reports: str | Path) -> Iterator[Path]:
    """Write every report again from its results.csv; what cannot be drawn from there stays."""
    for folder in _folders(reports):
        yield write_report(STUDIES / f"{folder.name}.yaml", reports, results=folder / RESULTS)


def _folders(reports: str | Path) -> list[Path]:
    """The folders that git does not ignore: the report of `make smoke` is nobody's to keep."""
    ignored = _ignored(files := sorted(Path(reports).glob(f"*/{RESULTS}")))
    folders = [file.parent for file in files if str(file) not in ignored]
    if not folders:
        raise UserError(f"no report lies in {reports}; expected {reports}/<study>/{RESULTS}, as analysis writes it")
    return folders


def _ignored(files: Sequence[Path]) -> set[str]:
    """Those of the files that git ignores; none where there is no checkout."""
    try:
        done = subprocess.run(["git", "check-ignore", *map(str, files)], capture_output=True, encoding="utf-8")
    except OSError:
        return set()
    return set(done.stdout.splitlines())


def _verdict(folder: Path) -> Verdict:
    name = folder.name
    try:
        data = load_report_data(STUDIES / f"{name}.yaml", results=folder / RESULTS)
        changes = data.changes
    except UserError as error:
        return Verdict(name, f"cannot be compared with its study: {error}", sound=False)
    plots = [plot for plot in FIGURES if (folder / f"{plot.name}.svg").is_file()]
    other = [file for file, text in texts_of(data, folder, plots).items() if not _is(folder / file, text)]
    settings, stale = "; ".join(changes), bool(changes)
    if stale and not _is_said(folder / "README.md"):
        return Verdict(name, f"has other settings than this checkout and does not say so: {settings}", False, stale)
    if other:
        return Verdict(name, f"{', '.join(other)} is not what {RESULTS} makes", False, stale)
    text = f"says that its settings are not this checkout's: {settings}" if stale else "current"
    return Verdict(name, text, stale=stale)


def _is_said(page: Path) -> bool:
    return page.is_file() and STALE in page.read_text(encoding="utf-8")


def _is(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8") == text


def _quotes(page: Path, stale: Mapping[str, bool]) -> list[Verdict]:
    """Reports that the page links to: those of other settings it has to call so where it does, and no others."""
    if not page.is_file():
        return []
    said: dict[str, bool] = {}
    for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
        words = " ".join(paragraph.split()).lower()
        for name in _QUOTE.findall(paragraph):
            said[name] = said.get(name, False) or _PHRASE in words
    problem = {True: "does not say", False: "says without reason"}
    return [
        Verdict(page.name, f'quotes reports/{name} and {problem[stale[name]]} that it has "{_PHRASE}"', False)
        for name in said
        if name in stale and said[name] != stale[name]
    ]
