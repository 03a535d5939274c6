"""All reports of a folder at once: `check` that each is current or says that it is not, `refresh` them.

Each is made again from its own results.csv, because the run directories are not kept beside the reports.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.figures import FIGURES
from analysis.page import SITE
from analysis.report import RESULTS, STALE, pictures_of, texts_of, write_report
from analysis.report_data import STUDIES, ReportData, add_measured, load_report_data
from analysis.site import texts_of as site_texts
from analysis.site import write_site
from runtime.errors import UserError

_PHRASE = STALE.removeprefix("Made with ").lower()
_QUOTE = re.compile(r"\]\(reports/([^/)]+)/")


@dataclass(frozen=True)
class Verdict:
    """What the check says of one report, or of the page that quotes them."""

    name: str
    text: str
    sound: bool = True
    stale: bool = False


def check(reports: str | Path) -> list[Verdict]:
    """Return a verdict for each report, and one for each that the README.md beside the folder quotes wrongly.

    Raises UserError where there is no report.
    """
    verdicts = [_verdict(folder) for folder in _folders(reports)]
    if (Path(reports) / SITE).is_file():
        verdicts.append(_verdict_on_site(Path(reports)))
    return [*verdicts, *_wrong_quotes(Path(reports).parent / "README.md", {v.name: v.stale for v in verdicts})]


def refresh(reports: str | Path) -> Iterator[Path]:
    """Write the overview and every report again from their results.csv.

    Figures that need the run directories stay.
    """
    yield site(reports)
    for folder in _folders(reports):
        yield write_report(STUDIES / f"{folder.name}.yaml", reports, results=folder / RESULTS)


def site(reports: str | Path) -> Path:
    """Write the overview of all reports, and return its page."""
    return write_site(*_listed(reports), Path(reports))


def _listed(reports: str | Path) -> tuple[list[ReportData], dict[str, str]]:
    """Return the reports of an overview, and why the others are not in it, by name."""
    listed, left = [], {}
    for folder in _folders(reports):
        try:
            data = load_report_data(STUDIES / f"{folder.name}.yaml", results=folder / RESULTS)
        except UserError as error:
            left[folder.name] = str(error).replace(f"{STUDIES}/", "")
            continue
        add_measured(data, folder)
        listed.append(data)
    return listed, left


def _verdict_on_site(reports: Path) -> Verdict:
    texts = site_texts(*_listed(reports), reports)
    other = [file for file, text in texts.items() if _text(reports / file) != text]
    text = f"{', '.join(other)} is not what the reports make" if other else "current"
    return Verdict("overview", text, sound=not other)


def _folders(reports: str | Path) -> list[Path]:
    """Return the folders that git does not ignore: the report of `make smoke` is not to be kept."""
    tables = sorted(Path(reports).glob(f"*/{RESULTS}"))
    ignored = _ignored(tables)
    folders = [file.parent for file in tables if str(file) not in ignored]
    if not folders:
        raise UserError(f"there is no report in {reports}; expected {reports}/<study>/{RESULTS}, as analysis writes it")
    return folders


def _ignored(paths: Sequence[Path]) -> set[str]:
    try:
        done = subprocess.run(["git", "check-ignore", *map(str, paths)], capture_output=True, encoding="utf-8")
    except OSError:  # no git
        return set()
    return set(done.stdout.splitlines())


def _verdict(folder: Path) -> Verdict:
    name = folder.name
    try:
        data = load_report_data(STUDIES / f"{name}.yaml", results=folder / RESULTS)
        settings, stale = "; ".join(data.changes), bool(data.changes)
    except UserError as error:
        return Verdict(name, f"cannot be compared with its study: {error}", sound=False)
    if stale and STALE not in _text(folder / "README.md"):
        return Verdict(name, f"has other settings than this checkout and does not say so: {settings}", False, stale)
    if outdated := pictures_of(folder, data.frame)[1]:
        text = f"{', '.join(outdated)} shows other results than {RESULTS}: python -m analysis.pictures --study STUDY"
        return Verdict(name, text, False, stale)
    add_measured(data, folder)
    plots = [plot for plot in FIGURES if (folder / f"{plot.name}.svg").is_file()]
    other = [file for file, text in texts_of(data, folder, plots).items() if _text(folder / file) != text]
    if other:
        return Verdict(name, f"{', '.join(other)} is not what {RESULTS} makes", False, stale)
    text = f"says that its settings are not this checkout's: {settings}" if stale else "current"
    return Verdict(name, text, stale=stale)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _wrong_quotes(page: Path, stale: Mapping[str, bool]) -> list[Verdict]:
    """Return the reports of which a page hides, or claims without reason, that their settings are others."""
    says: dict[str, bool] = {}
    for paragraph in _text(page).split("\n\n"):
        words = " ".join(paragraph.split()).lower()
        for name in _QUOTE.findall(paragraph):
            says[name] = says.get(name, False) or _PHRASE in words
    problem = {True: "does not say", False: "says without reason"}
    return [
        Verdict(page.name, f'quotes reports/{name} and {problem[stale[name]]} that it has "{_PHRASE}"', False)
        for name in says
        if name in stale and says[name] != stale[name]
    ]
