"""The scores of a study over its seeds: one row for each setting and control; which runs may be averaged together.

Runs of different code or of different protocols are never averaged together, and neither of two results that
contradict each other counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import label, named_values, order_of, run_link, score_name, short_labels, value_text
from analysis.results import score_column
from analysis.statistics import Estimate, decided_against, decided_together, difference, estimate
from analysis.versions import version_of_each_point
from sweeps.keys import as_text
from sweeps.study import CHECKPOINT, Study, is_seed

VERSION_KEY = "version"  # one more key of the rows where the runs are of several versions


@dataclass
class Scores:
    """One score of one row: its value for each seed that has one, and the states of the runs that have none."""

    by_seed: dict[Hashable, float] = field(default_factory=dict)
    gaps: Counter[str] = field(default_factory=Counter)
    refused: set[Hashable] = field(default_factory=set)  # seeds with two values that contradict each other
    published: float | None = None  # of the same weights, evaluated in the same way

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
    values: tuple[Any, ...]  # of summary.row_keys, the varied one first; None where a control has none
    scores: dict[str, Scores] = field(default_factory=dict)
    runs: dict[Any, str] = field(default_factory=dict)  # by seed: the hash of the pretraining

    @property
    def varied(self) -> Any:
        return self.values[0]

    @property
    def group(self) -> tuple[Any, ...]:
        """The values of the other grid keys: rows of one group are one curve, with one baseline."""
        return self.values[1:]

    def link(self, seed: Hashable) -> str | None:
        """Return the link from a point of a figure to its run, on the page of the report."""
        return run_link(self.runs.get(seed))

    @property
    def mean_link(self) -> str | None:
        """The link from a mean to its runs; of a single run, to that one."""
        first = next(iter(self.runs.values()), None)
        return f"#setting-{first}" if len(self.runs) > 1 else run_link(first)


@dataclass
class Summary:
    """All rows of a study: curve after curve, each in the order of the grid, then the controls."""

    study: Study
    rows: list[Row]
    row_keys: list[str]  # study.row_keys, and VERSION_KEY where the runs are of several versions
    contradictions: list[str] = field(default_factory=list)
    own_criterion: bool = False  # some pretrainings are by another criterion than VICRegL's

    @property
    def split(self) -> bool:
        """Whether the runs are of several code versions or protocols."""
        return VERSION_KEY in self.row_keys

    @property
    def most_seeds(self) -> int:
        """The most seeds that any score of any row has."""
        return max((len(s.by_seed) for row in self.rows for s in row.scores.values()), default=0)

    @property
    def settings(self) -> list[Row]:
        return [row for row in self.rows if row.control is None]

    @property
    def distinct_settings(self) -> list[Row]:
        """Return the settings without those that are an earlier one's runs: they differ in options of no effect.

        Checkpoints that are given are all kept, for they have names.
        """
        if self.study.checkpoints:
            return self.settings
        first = {tuple(row.runs.items()): row for row in reversed(self.settings)}
        return [row for row in self.settings if not row.runs or first[tuple(row.runs.items())] is row]

    @property
    def controls(self) -> list[Row]:
        return [row for row in self.rows if row.control is not None]

    @property
    def order(self) -> dict[Any, tuple[float, ...]] | None:
        """The varied values with the numbers that order them, so that a line between two means something; else None."""
        return order_of(self.study.report.vary, [row.varied for row in self.settings])

    def groups(self) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
        """Yield the group of each curve and its rows: numbers by size, names in the order of the study."""
        order = self.order
        for group in dict.fromkeys(row.group for row in self.settings):
            rows = [row for row in self.settings if row.group == group]
            yield group, rows if order is None else sorted(rows, key=lambda row: order[row.varied])

    def label(self, value: Any) -> str:
        """Return what a report calls a value of the varied key."""
        return label(self.study, self.study.report.vary, value)

    def group_name(self, group: tuple[Any, ...]) -> str:
        """Name a curve by what distinguishes it from the others (loss.local = both, ...); empty for the only one."""
        labels = [label(self.study, key, value) for key, value in zip(self.row_keys[1:], group, strict=True)]
        return named_values(self.row_keys[1:], labels)

    def baseline(self, row: Row) -> Row | None:
        """Return the row that this one is compared with, a setting of its curve or a control; None where there is none.

        With several curves there are several baselines, and none of them is that of a control.
        """
        wanted, groups = comparable(self.study.report.baseline), {other.group for other in self.settings}
        if wanted is None:
            return None
        if self.baseline_is_control and row.control == wanted:
            return row
        if row.control is not None and (len(groups) != 1 or row not in self.controls_of(*groups)):
            return None
        group = row.group if row.control is None else groups.pop()
        if self.baseline_is_control:
            return next((other for other in self.controls_of(group) if other.control == wanted), None)
        return next((other for other in self.settings if other.group == group and other.varied == wanted), None)

    @property
    def baseline_is_control(self) -> bool:
        """Whether the baseline is a control; a value of the varied key that has the same name comes first."""
        report = self.study.report
        return report.baseline is not None and report.baseline not in self.study.grid.get(report.vary, [])

    @property
    def baseline_label(self) -> str:
        """What a report calls the baseline: "α = 1", or the name of a control."""
        report = self.study.report
        if self.baseline_is_control:
            return str(report.baseline)
        return short_labels(self.study, [report.vary], [report.baseline])

    def controls_of(self, group: tuple[Any, ...]) -> list[Row]:
        """Return the controls of a curve; a control that does not take a key from the grid belongs to every curve."""
        return [
            row
            for row in self.controls
            if all(own in (None, value) for own, value in zip(row.group, group, strict=True))
        ]

    def checkpoint(self, row: Row) -> Any:
        """Return the name of the row in a study of checkpoints; None in others, and for a control."""
        return row.values[self.row_keys.index(CHECKPOINT)] if CHECKPOINT in self.row_keys else None

    def difference(self, row: Row, other: Row | None, score: str) -> Estimate | None:
        """Return row - other; None where one has no value."""
        return None if other is None else difference(row.scores[score].by_seed, other.scores[score].by_seed)

    def is_decided(self, row: Row, score: str) -> bool:
        """Whether the difference of a row to its baseline holds, allowing for that of every other row with it."""
        base = self.baseline(row)
        if base is None or base is row:
            return False
        gap = self.difference(row, base, score)
        if gap is None or not gap.sign:
            return False  # decided_against would say so too, after Dunnett's p-values, which take time
        others = self.compared_with(base)
        scores = [tuple(cell.scores[score].by_seed.items()) for cell in (base, *others)]
        return any(others[index] is row for index in _decided(*scores))

    def setting_against_baseline(self, a: Row, b: Row) -> Row | None:
        """Return the one of two rows whose baseline the other is; None where neither is the other's."""
        return a if self.baseline(a) is b else b if self.baseline(b) is a else None

    def compared_with(self, base: Row) -> list[Row]:
        """Return the rows whose baseline this one is."""
        return [row for row in self.rows if row is not base and self.baseline(row) is base]

    def open_leads(self, row: Row, rows: Sequence[Row], score: str) -> list[Row]:
        """Return those of the rows over which the lead of `row` is not shown."""
        scored = [other for other in rows if other.scores[score].by_seed]
        return [other for other in scored if other is not row and not self._leads(row, other, scored, score)]

    def _leads(self, row: Row, other: Row, scored: Sequence[Row], score: str) -> bool:
        """Whether a row is shown to lead another one.

        Over the baseline, and of it, as `is_decided`; else among all pairs of the rows (decided_together).
        """
        gap = self.difference(row, other, score)
        if gap is None or gap.mean <= 0:
            return False
        if setting := self.setting_against_baseline(row, other):
            return self.is_decided(setting, score)
        place = {id(cell): index for index, cell in enumerate(scored)}
        decided = _decided_pairs(*(tuple(cell.scores[score].by_seed.items()) for cell in scored))
        return frozenset((place[id(row)], place[id(other)])) in decided

    def best(self, rows: Sequence[Row], score: str) -> Row | None:
        """Return the row with the highest mean, if its lead over every other row is shown.

        None where that cannot be said: too few rows, one seed, or two rows that are too close.
        """
        scored = [row for row in rows if row.scores[score].by_seed]
        if len(scored) < 2:
            return None
        # The closest first: it mostly decides.
        top, *others = sorted(scored, key=lambda row: -np.mean(list(row.scores[score].by_seed.values())))
        return top if all(self._leads(top, other, scored, score) for other in others) else None


@lru_cache(maxsize=1000)  # a table asks once for each row
def _decided_pairs(*scores: tuple[tuple[Hashable, float], ...]) -> set[frozenset[int]]:
    """Return the pairs, by their places, whose difference is decided among those of all pairs."""
    by_seed = list(map(dict, scores))
    pairs = combinations(range(len(by_seed)), 2)
    return decided_together({frozenset((i, j)): difference(by_seed[i], by_seed[j]) for i, j in pairs})


@lru_cache(maxsize=1000)  # a table asks once for each row
def _decided(base: tuple[tuple[Hashable, float], ...], *others: tuple[tuple[Hashable, float], ...]) -> set[int]:
    return decided_against(dict(base), {index: dict(other) for index, other in enumerate(others)})


def summarize(frame: pd.DataFrame, study: Study, scores: Sequence[str]) -> Summary:
    """Collect scores of the table of results into rows over seeds."""
    versions, row_keys = version_of_each_point(frame), study.row_keys
    if len(set(versions)) > 1:
        frame, row_keys = frame.assign(**{f"grid.{VERSION_KEY}": versions}), [*row_keys, VERSION_KEY]
    collector = _Collector(frame, row_keys, [key for key in study.grid if is_seed(key)])
    for score in scores:
        collector.add(score)
    rows = collector.rows
    groups = list(dict.fromkeys(row.group for row in rows.values()))
    ordered = sorted(rows.values(), key=lambda row: (row.control is not None, groups.index(row.group)))
    return Summary(study, ordered, row_keys, collector.contradictions, "pretrain.loss.name" in frame)


@dataclass
class _Collector:
    """Reads one score after the other into rows."""

    frame: pd.DataFrame
    row_keys: list[str]
    seeds: list[str]  # keys of the grid
    rows: dict[tuple[Any, ...], Row] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)

    def add(self, score: str) -> None:
        column = score_column(self.frame, score)
        wanted = [f"grid.{key}" for key in [*self.row_keys, *self.seeds]]
        names = ["control", *wanted, "run", "value", "state", "published"]
        lists = [map(comparable, column[name]) for name in names]
        for control, *values, run, value, state, published in zip(*lists, strict=True):
            setting, seed = tuple(values[: len(self.row_keys)]), tuple(values[len(self.row_keys) :])
            row = self.rows.setdefault((control, *setting), Row(control, setting))
            row.runs |= {} if run is None else {seed: run}
            cell = row.scores.setdefault(score, Scores(published=published))
            if value is None or not math.isfinite(value):
                cell.gaps["no score" if state == "done" else state] += 1
            elif seed not in cell.by_seed and seed not in cell.refused:
                cell.by_seed[seed] = float(value)
            elif cell.by_seed.get(seed) != value:
                self._refuse(row, score, cell, seed)

    def _refuse(self, row: Row, score: str, cell: Scores, seed: tuple[Hashable, ...]) -> None:
        """Drop both of two values for one seed, because nothing says which one is right."""
        if seed in cell.refused:
            return
        first = cell.by_seed.pop(seed)
        cell.refused.add(seed)
        cell.gaps["contradictory"] += 1
        named = [*zip(self.row_keys, row.values, strict=True), *zip(self.seeds, seed, strict=True)]
        where = ", ".join(
            [*filter(None, [row.control]), *(f"{k} = {value_text(v)}" for k, v in named if v is not None)]
        )
        self.contradictions.append(f"{score_name(score)} at {where}: {first:g} and another value; neither counts")


def comparable(value: Any) -> Any:
    """Return a value of a column as rows have it: None for NaN, which equals nothing; a list as the frame's text."""
    return None if isinstance(value, float) and math.isnan(value) else as_text(value)
