"""What every pretraining of a study logged while it ran, as one table: a row a logging step.

Columns: run, control, grid.<key>, step, and whatever metrics.jsonl holds (loss terms, probe_top1, rank_pooled, ...).
A file that a kill cut off loses its last line alone; a run that logged nothing has no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from sweeps.graph import Graph, Point, as_text


def history_of(graph: Graph) -> pd.DataFrame:
    once = {point.pretrain.run.path: point for point in reversed(graph.points)}  # two points may share a run
    rows = [row for point in reversed(once.values()) for row in _rows(point)]
    return pd.DataFrame(rows, columns=None if rows else ["run", "control", "step"])


def _rows(point: Point) -> Iterator[dict[str, Any]]:
    start = {"run": f"pretrain/{point.pretrain.run.name}", "control": point.control}
    start |= {f"grid.{key}": as_text(value) for key, value in point.varied.items()}
    for row in point.pretrain.run.metrics():
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield start | {key: value for key, value in row.items() if isinstance(value, int | float)}
