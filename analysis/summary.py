"""The table's rows: what the study varies, with each score over the seeds, and what is missing of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.results import score_column
from analysis.statistics import Estimate, difference, estimate
from sweeps.graph import as_text
from sweeps.study import Study, is_seed


@dataclass
class Scores:
    """One score of one row: its value for each seed that has one, and the states of those that do not."""

    by_seed: dict[Hashable, float] = field(default_factory=dict)
    gaps: Counter[str] = field(default_factory=Counter)

    @property
    def estimate(self) -> Estimate | None:
        return estimate(list(self.by_seed.values()))

    @property
    def expected(self) -> int:
        return len(self.by_seed) + sum(self.gaps.values())


@dataclass
class Row:
    """A setting of the study, or a control."""

    control: str | None
    values: tuple[Any, ...]  # of study.row_keys; the varied one first; None where a control has none
    scores: dict[str, Scores] = field(default_factory=dict)

    @property
    def varied(self) -> Any:
        return self.values[0]

    @property
    def group(self) -> tuple[Any, ...]:
        """The other grid keys: rows of one group are one curve, with one baseline."""
        return self.values[1:]


@dataclass
class Summary:
    """All rows of a study: curve after curve, each in the order of the grid, then the controls."""

    study: Study
    rows: list[Row]

    @property
    def settings(self) -> list[Row]:
        return [row for row in self.rows if row.control is None]

    @property
    def controls(self) -> list[Row]:
        return [row for row in self.rows if row.control is not None]

    def groups(self) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
        """Each curve: the values of the other grid keys, and its rows in order of the varied one."""
        for group in dict.fromkeys(row.group for row in self.settings):
            rows = [row for row in self.settings if row.group == group]
            yield group, sorted(rows, key=lambda row: (isinstance(row.varied, str), row.varied))

    def baseline(self, row: Row) -> Row | None:
        """The row that this one is compared with; None where the study names none."""
        wanted = _comparable(self.study.report.baseline)
        if wanted is None:
            return None
        found = [r for r in self.settings if r.group == row.group and r.varied == wanted]
        return found[0] if found else None

    def controls_of(self, group: tuple[Any, ...]) -> list[Row]:
        """A control that does not take a key from the grid stands beside every curve."""
        return [
            row
            for row in self.controls
            if all(own in (None, value) for own, value in zip(row.group, group, strict=True))
        ]

    def difference(self, row: Row, other: Row | None, score: str) -> Estimate | None:
        """row - other; None where one has no value."""
        return None if other is None else difference(row.scores[score].by_seed, other.scores[score].by_seed)


def summarize(frame: pd.DataFrame, study: Study, scores: Sequence[str]) -> Summary:
    """Collect the scores of the frame of `results.load_results` into rows over seeds."""
    rows: dict[tuple[Any, ...], Row] = {}
    seeds = [f"grid.{key}" for key in study.pretrain.grid if is_seed(key)]
    keys = [f"grid.{key}" for key in study.row_keys]
    for score in scores:
        for record in score_column(frame, score).to_dict("records"):
            values = tuple(_comparable(record[key]) for key in keys)
            control = _comparable(record["control"])
            row = rows.setdefault((control, *values), Row(control, values))
            cell = row.scores.setdefault(score, Scores())
            if math.isfinite(record["value"]):
                cell.by_seed[tuple(_comparable(record[key]) for key in seeds)] = float(record["value"])
            else:
                state = record["state"]
                cell.gaps["no score" if state == "done" else state] += 1
    groups = list(dict.fromkeys(row.group for row in rows.values()))
    ordered = sorted(rows.values(), key=lambda row: (row.control is not None, groups.index(row.group)))
    return Summary(study, ordered)


def _comparable(value: Any) -> Any:
    """pandas writes an absent value as NaN, which equals nothing, itself included; lists are text in the frame."""
    return None if isinstance(value, float) and math.isnan(value) else as_text(value)
