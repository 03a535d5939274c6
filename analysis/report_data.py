"""What every table and figure is a function of: the study, the tidy table of its runs, and what they logged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from analysis.changes import changes
from analysis.results import history_of, load_results, results_of
from analysis.summary import Summary, summarize
from analysis.tables import DIAGNOSTICS
from runtime.errors import UserError
from sweeps.graph import build
from sweeps.study import Study, load_study


@dataclass
class ReportData:
    study: Study
    frame: pd.DataFrame  # of results.results_of
    history: pd.DataFrame = field(default_factory=pd.DataFrame)  # of history.history_of
    of_a_table: bool = False  # the frame was read from a results.csv, so nothing is known of what the runs logged

    @cached_property
    def summary(self) -> Summary:
        """The scores that the study reports."""
        report = self.study.report
        return summarize(self.frame, self.study, list(dict.fromkeys([*self.study.scores, report.x, report.y])))

    @cached_property
    def changes(self) -> list[str]:
        """Settings of the frame that are no longer those of the study; none of a frame of run directories."""
        return changes(self.frame, build(self.study)) if self.of_a_table else []

    @cached_property
    def diagnostics(self) -> Summary:
        """The diagnostics of the pretrained features."""
        return summarize(self.frame, self.study, DIAGNOSTICS)


def load_report_data(
    study: str | Path | Study, machine: Sequence[str] = (), results: str | Path | None = None
) -> ReportData:
    """Of a study file (or one already read) and its run directories, as they are now. UserError as load_results.

    With `results`, a results.csv: of what was written there, without training curves.
    """
    read = study if isinstance(study, Study) else load_study(study)
    if results is not None:
        return ReportData(read, _of_the_study(load_results(results), read, results), of_a_table=True)
    graph = build(read, machine)
    return ReportData(read, results_of(graph), history_of(graph))


def _of_the_study(frame: pd.DataFrame, study: Study, file: str | Path) -> pd.DataFrame:
    missing = [f"grid.{key}" for key in study.pretrain.grid if f"grid.{key}" not in frame]
    if missing or not set(frame["study"]) <= {study.name}:
        found = ", ".join(sorted(set(frame["study"].astype(str))))
        raise UserError(f"{file} is of the study {found}, expected {study.name} with its grid; missing: {missing}")
    return frame
