"""What has changed since a report was made: the settings in its results.csv against those of its study now.

A run with the hash that the study plans now has these very settings. For any other run, every field of its config is
compared, and the format of its stage, which is raised when the same config comes to measure something else. A field
that was added later (`added_later`) stands for its default where the table lacks it: that is what the code did before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.labels import value_text
from runtime.config import COLUMNS, added_defaults
from runtime.config_keys import flatten
from sweeps.graph import Graph, Node, Point
from sweeps.keys import as_text

Row = Mapping[Hashable, Any]
Key = tuple[Any, ...]  # of a row: control, evaluation, values of the grid


def changes(frame: pd.DataFrame, graph: Graph) -> list[str]:
    """Return how a table of results differs from what its study plans now: a text for each stage, none if it does not.

    A score that is missing is not a change.
    """
    grid = list(graph.study.grid)
    rows = {_row_key(row, grid): row for row in frame.to_dict("records")}
    planned = {_planned_key(point, name, grid): point for point in graph.points for name in point.evals or [None]}
    texts = _changes_of_the_rows(rows, planned, set(map(str, frame.columns)), grid)
    counts: dict[str, Counter[str]] = {}
    runs: Counter[str] = Counter()
    for node, row in _runs(rows, planned):
        runs[node.part] += 1
        counts.setdefault(node.part, Counter()).update(_changes_of_a_run(node, row))
    for part, changed in counts.items():
        some = [text if n == runs[part] else f"{text} ({n} of {runs[part]} runs)" for text, n in changed.items()]
        texts += [f"{part} {', '.join(some)}"] if some else []
    return texts


def _row_key(row: Row, grid: list[str]) -> Key:
    return tuple(comparable(row.get(name)) for name in ("control", "eval.name", *(f"grid.{key}" for key in grid)))


def _planned_key(point: Point, evaluation: str | None, grid: list[str]) -> Key:
    return (point.control, evaluation, *(comparable(point.varied[key]) for key in grid))


def _changes_of_the_rows(
    rows: Mapping[Key, Row], planned: Mapping[Key, Point], columns: set[str], grid: list[str]
) -> list[str]:
    """Name what only the table or only the study has."""
    dropped = sorted({c for c in columns if c.startswith("grid.")} - {f"grid.{key}" for key in grid})
    texts = [f"{column.removeprefix('grid.')} is no longer varied" for column in dropped]
    lacking, former = len(planned.keys() - rows.keys()), len(rows.keys() - planned.keys())
    texts += [f"{lacking} of its {len(planned)} rows are not here"] if lacking else []
    texts += [f"{former} of these {len(rows)} rows are no longer part of it"] if former else []
    return [f"study {', '.join(texts)}"] if texts else []


def _runs(rows: Mapping[Key, Row], planned: Mapping[Key, Point]) -> Iterator[tuple[Node, Row]]:
    """Yield each run that is planned and recorded, once, with a row that has it."""
    seen: set[Node] = set()
    for key, point in planned.items():
        for node in (point.pretrain, point.evals.get(key[1])):
            if key in rows and node is not None and node not in seen:
                seen.add(node)
                yield node, rows[key]


def _changes_of_a_run(node: Node, row: Row) -> list[str]:
    side = "pretrain" if node.parent is None else "eval"
    if row.get(f"{side}.hash") == node.identity.hash:
        return []
    known, added = flatten(node.identity.config), added_defaults(node.stage.schema())  # type: ignore[arg-type]  # a class can be hashed
    # An empty cell is null, or a field that another stage has, or one added later that this run has at its default.
    empty_means_null = known.keys() - added.keys()
    recorded = {k: v for k, v in _fields(row, side) if comparable(v) is not None or k in empty_means_null}
    was, now = added | recorded, added | known
    texts = [
        f"`{key}` {_text(was, key, 'not there')} → {_text(now, key, 'gone')}"
        for key in {**now, **was}
        if comparable(was.get(key)) != comparable(now.get(key))
    ]
    return texts + _changed_format(node, row, side, explained=bool(texts))


def _fields(row: Row, side: str) -> Iterator[tuple[str, Any]]:
    for column, value in row.items():
        prefix, _, name = str(column).partition(".")
        if prefix == side and name.partition(".")[0] not in COLUMNS:
            yield name, value


def _changed_format(node: Node, row: Row, side: str, explained: bool) -> list[str]:
    """Say whether the format was raised; one that is not recorded is found by the hash, if no field differs."""
    identity, recorded = node.identity, comparable(row.get(f"{side}.format"))
    parent = identity.parent if side == "pretrain" else row.get("pretrain.hash")
    if recorded is None and not explained:
        formats = [replace(identity, format=n, parent=parent) for n in range(1, identity.format + 1)]
        recorded = next((made.format for made in formats if made.hash == row.get(f"{side}.hash")), None)
        if recorded is None:
            return ["something that results.csv does not record"]
    if recorded in (None, identity.format):
        return []  # these settings are the same; the parent's may differ
    return [f"format {value_text(recorded)} → {identity.format}: the same settings now measure something else"]


def comparable(value: Any) -> Any:
    """Return what is the same for a config and for a table: CSV makes 3 of 3.0, and text of both."""
    value = as_text(value)
    if value is None or value != value:
        return None
    try:
        return str(value).lower() if str(value) in ("True", "False") else float(value)
    except ValueError:
        return str(value)


def _text(values: Mapping[str, Any], key: str, absent: str) -> str:
    value = comparable(values.get(key))
    return value_text(value) if value is not None else "null" if key in values else f"({absent})"
