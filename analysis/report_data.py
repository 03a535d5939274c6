"""ReportData: what every table and figure of a report is a function of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

import sweeps
from analysis.changes import changes
from analysis.published import POINTS, read_points
from analysis.results import history_of, load_results, results_of
from analysis.summary import Summary, summarize
from analysis.tables import DIAGNOSTICS
from runtime import PROJECT
from runtime.errors import UserError
from sweeps.graph import build
from sweeps.study import Study, load_study

STUDIES = PROJECT / sweeps.STUDIES
COSTS = "cost.csv"  # of a report's folder; analysis.cost_bench writes it


@dataclass
class ReportData:
    """A study, the table of its results, and what its pretrainings logged."""

    study: Study
    frame: pd.DataFrame  # results.results_of
    history: pd.DataFrame = field(default_factory=pd.DataFrame)  # results.history_of
    costs: pd.DataFrame | None = None  # of analysis.cost_bench
    points: pd.DataFrame | None = None  # published.read_points
    from_csv: bool = False  # the frame was read from a results.csv, so there is no history

    @cached_property
    def summary(self) -> Summary:
        """The scores that the study reports."""
        report = self.study.report
        return summarize(self.frame, self.study, list(dict.fromkeys([*self.study.scores, report.x, report.y])))

    @cached_property
    def diagnostics(self) -> Summary:
        """The diagnostics of the pretrained features."""
        return summarize(self.frame, self.study, DIAGNOSTICS)

    @cached_property
    def changes(self) -> list[str]:
        """What differs between the settings of a results.csv and those of its study now."""
        return changes(self.frame, build(self.study)) if self.from_csv else []


def add_measured(data: ReportData, folder: Path) -> None:
    """Add what lies in a report's folder beside its results: the cost of a step, and other people's points."""
    costs, points = folder / COSTS, folder / POINTS
    data.costs = pd.read_csv(costs, keep_default_na=False, na_values=[""]) if costs.is_file() else None
    data.points = read_points(points) if points.is_file() else None


def load_report_data(
    study: str | Path | Study, machine: Sequence[str] = (), results: str | Path | None = None
) -> ReportData:
    """Read a study (its file, or a Study) and its run directories, or in place of those the results.csv of its report.

    In place of both, that results.csv alone, if its study is one of STUDIES. UserError as load_results.
    """
    if results is None and not isinstance(study, Study) and Path(study).suffix == ".csv":
        study, results = _study_of(study), study
    read = study if isinstance(study, Study) else load_study(study)
    if results is not None:
        return ReportData(read, _of_the_study(load_results(results), read, results), from_csv=True)
    graph = build(read, machine)
    return ReportData(read, results_of(graph), history_of(graph))


def _study_of(results: str | Path) -> Path:
    """Return the file of the study that a results.csv names."""
    names = sorted(set(load_results(results)["study"].astype(str)))
    file = STUDIES / f"{names[0]}.yaml" if names else STUDIES
    if len(names) != 1 or not file.is_file():
        allowed = "the table of one study of sweeps/studies; for another: STUDY --results FILE"
        raise UserError(f"{results} has rows of {', '.join(names) or 'no study'}; expected {allowed}")
    return file


def _of_the_study(frame: pd.DataFrame, study: Study, file: str | Path) -> pd.DataFrame:
    missing = [f"grid.{key}" for key in study.grid if f"grid.{key}" not in frame]
    names = sorted(set(frame["study"].astype(str)))
    if missing or not set(names) <= {study.name}:
        lacking = f"; it lacks the columns {', '.join(missing)}" if missing else ""
        raise UserError(f"{file} has the study {', '.join(names)}{lacking}; expected {study.name} with all of its grid")
    return frame
