"""The table's rows: what the study varies, with each score over the seeds, and what is missing of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.labels import score_name, value_text
from analysis.results import score_column
from analysis.statistics import Estimate, difference, estimate
from sweeps.graph import as_text
from sweeps.study import Study, is_seed


@dataclass
class Scores:
    """One score of one row: its value for each seed that has one, and the states of those that do not."""

    by_seed: dict[Hashable, float] = field(default_factory=dict)
    gaps: Counter[str] = field(default_factory=Counter)
    refused: set[Hashable] = field(default_factory=set)  # seeds with two values that contradict each other

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
    values: tuple[Any, ...]  # of summary.row_keys; the varied one first; None where a control has none
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
    """All rows of a study: curve after curve, each in the order of the grid, then the controls.

    Where the runs are of several code versions or protocols, `version` is one more key of the rows, so
    that each version is a curve of its own and no mean runs across two.
    """

    study: Study
    rows: list[Row]
    row_keys: list[str]  # study.row_keys, and analysis.summary.KEY where there are several
    contradictions: list[str] = field(default_factory=list)

    @property
    def split(self) -> bool:
        """Whether the runs are of several code versions or protocols."""
        return VERSION_KEY in self.row_keys

    @property
    def most_seeds(self) -> int:
        """The most seeds that any score of any row has."""
        return max((len(s.by_seed) for row in self.rows for s in row.scores.values()), default=0)

    def group_name(self, group: tuple[Any, ...]) -> str:
        """loss.local = both, ...: what tells a curve from the others; empty for the only one."""
        keys = self.row_keys[1:]
        return ", ".join(f"{key} = {value_text(value)}" for key, value in zip(keys, group, strict=True))

    @property
    def settings(self) -> list[Row]:
        return [row for row in self.rows if row.control is None]

    @property
    def controls(self) -> list[Row]:
        return [row for row in self.rows if row.control is not None]

    def groups(self) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
        """Each curve: the values of the other grid keys, and its rows; numbers by size, names as the study has them."""
        for group in dict.fromkeys(row.group for row in self.settings):
            rows = [row for row in self.settings if row.group == group]
            yield group, sorted(rows, key=lambda row: row.varied) if self.varies_a_number else rows

    @property
    def varies_a_number(self) -> bool:
        """Whether values of the varied field have an order, so that a line between two of them means something."""
        return all(isinstance(r.varied, int | float) and not isinstance(r.varied, bool) for r in self.settings)

    def baseline(self, row: Row) -> Row | None:
        """The row that this one is compared with; None where the study names none.

        With several curves there are several baselines, and none of them is that of a control.
        """
        groups = {other.group for other in self.settings}
        if row.control is not None and (len(groups) != 1 or row not in self.controls_of(*groups)):
            return None
        wanted, group = _comparable(self.study.report.baseline), row.group if row.control is None else groups.pop()
        rows = [other for other in self.settings if other.group == group and other.varied == wanted]
        return rows[0] if wanted is not None and rows else None

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

    def best(self, rows: Sequence[Row], score: str) -> Row | None:
        """The row with the highest mean, if the interval of its difference to every other one excludes 0.

        None where that cannot be said: too few rows, one seed, or two rows that the seeds do not tell apart.
        """
        scored = [row for row in rows if row.scores[score].by_seed]
        if len(scored) < 2:
            return None
        top, *others = sorted(scored, key=lambda row: -np.mean(list(row.scores[score].by_seed.values())))
        found = [self.difference(top, other, score) for other in others]
        return top if all(d is not None and d.sign > 0 for d in found) else None


def summarize(frame: pd.DataFrame, study: Study, scores: Sequence[str]) -> Summary:
    """Collect the scores of the frame of `results.load_results` into rows over seeds."""
    versions = version_of_each_point(frame)
    split = len(set(versions)) > 1
    collected = _Collected(frame, study, versions if split else None)
    for score in scores:
        collected.add(score)
    rows = collected.rows
    groups = list(dict.fromkeys(row.group for row in rows.values()))
    ordered = sorted(rows.values(), key=lambda row: (row.control is not None, groups.index(row.group)))
    return Summary(study, ordered, collected.row_keys, collected.contradictions)


class _Collected:
    """The rows while the scores are read into them, one score after the other."""

    def __init__(self, frame: pd.DataFrame, study: Study, versions: pd.Series | None) -> None:
        self.frame = frame if versions is None else frame.assign(**{f"grid.{VERSION_KEY}": versions})
        self.row_keys = study.row_keys if versions is None else [*study.row_keys, VERSION_KEY]
        self.seeds = [key for key in study.pretrain.grid if is_seed(key)]
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.contradictions: list[str] = []

    def add(self, score: str) -> None:
        column = score_column(self.frame, score)
        wanted = [f"grid.{key}" for key in [*self.row_keys, *self.seeds]]
        lists = [map(_comparable, column[name]) for name in ["control", *wanted, "value", "state"]]
        for control, *values, value, state in zip(*lists, strict=True):
            setting, seed = tuple(values[: len(self.row_keys)]), tuple(values[len(self.row_keys) :])
            row = self.rows.setdefault((control, *setting), Row(control, setting))
            cell = row.scores.setdefault(score, Scores())
            if value is None or not math.isfinite(value):
                cell.gaps["no score" if state == "done" else state] += 1
            elif seed not in cell.by_seed and seed not in cell.refused:
                cell.by_seed[seed] = float(value)
            elif cell.by_seed.get(seed) != value:
                self._contradict(row, score, cell, seed)

    def _contradict(self, row: Row, score: str, cell: Scores, seed: tuple[Hashable, ...]) -> None:
        """Two values for one seed: neither counts, because nothing says which one is right."""
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


def _comparable(value: Any) -> Any:
    """pandas writes an absent value as NaN, which equals nothing, itself included; lists are text in the frame."""
    return None if isinstance(value, float) and math.isnan(value) else as_text(value)


VERSION_KEY = "version"
_POINT = ("control", "grid.")


def version_of_each_point(frame: pd.DataFrame) -> pd.Series:
    """For each row of the frame, the version of its point (a pretraining and all its evaluations), as text.

    That is the commits of all its runs, a dirty one marked with +, and the protocols of those evaluations whose
    protocol differs within the study. A point that is not complete counts to the most usual version that its
    runs so far can still become; one that was not begun, to the most usual of all.
    """
    keys = [c for c in frame.columns if c == _POINT[0] or c.startswith(_POINT[1])]
    point = frame.groupby(keys, dropna=False, sort=False).ngroup() if keys else pd.Series(0, frame.index)
    marks = pd.DataFrame({"point": point, "mark": _marks(frame)}).explode("mark").dropna()
    texts = marks.groupby("point")["mark"].agg(lambda found: " then ".join(dict.fromkeys(found)))
    begun = point.map(texts).fillna("")
    open_points = set(point[frame["eval.state"] != "done"]) if "eval.state" in frame else set()
    whole = begun[~point.isin(open_points)]
    usual = [version for version, _ in Counter(whole if len(whole) else begun).most_common()]
    ends = {text: next((v for v in usual if v.startswith(text)), text) for text in begun.unique()}
    return begun.where(~point.isin(open_points), begun.map(ends))


def _marks(frame: pd.DataFrame) -> pd.Series:
    """For each row, the list of what its version consists of; empty where nothing was begun."""
    found: list[list[str]] = [[] for _ in range(len(frame))]
    for side in ("pretrain", "eval"):
        column = f"{side}.provenance.commits"
        if column in frame:
            for marks, commits in zip(found, frame[column], strict=True):
                marks += [_short(commit) for commit in str(commits).split()] if isinstance(commits, str) else []
    for marks, protocol in zip(found, _telling_protocols(frame), strict=True):
        marks += [protocol] if protocol else []
    return pd.Series(found, frame.index)


def _short(commit: str) -> str:
    version, colon, sources = commit.partition(":")  # without a commit: as analysis.results writes it
    if colon:
        return f"{version}:{sources[:7]}"
    name, plus, _ = commit.partition("+")
    return name[:7] + plus


def _telling_protocols(frame: pd.DataFrame) -> list[str]:
    """The protocol of each row where its evaluation has several; "" elsewhere."""
    if "score.protocol" not in frame:
        return [""] * len(frame)
    protocols = frame["score.protocol"].where(frame["score.protocol"].notna(), "").astype(str)
    several = protocols[protocols != ""].groupby(frame["eval.name"]).nunique()
    telling = frame["eval.name"].map(several).fillna(0) > 1
    return [protocol if tells else "" for protocol, tells in zip(protocols, telling, strict=True)]
