"""The results table as numbers, for whoever reads on with another program: one row a setting and score."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from analysis.published import SOURCES
from analysis.statistics import Estimate
from analysis.summary import Row, Summary
from analysis.table import control_baseline, gaps_text, is_best

HERE = "this study"


def table_values(summary: Summary, published: pd.DataFrame) -> pd.DataFrame:
    """Columns: source, control or method, the row keys, score, n, mean, half95 (half of the interval), the same of
    the difference to the baseline, best (whether the intervals support it) and gaps. Published rows stand last.
    """
    rows = [_ours(summary, row, score) for row in summary.rows for score in summary.study.scores]
    rows += [
        _published(summary, record, score)
        for record in published.to_dict("records")
        for score, column in SOURCES.items()
        if score in summary.study.scores and pd.notna(record[column])
    ]
    return pd.DataFrame(rows)


def _ours(summary: Summary, row: Row, score: str) -> dict[str, object]:
    cell = row.scores[score]
    base = summary.baseline(row) if row.control is None else control_baseline(summary, row)
    against = None if row is base else summary.difference(row, base, score)
    start = {"source": HERE, "name": row.control, **dict(zip(summary.row_keys, row.values, strict=True))}
    start |= {"score": score, "n": len(cell.by_seed)} | _numbers("", cell.estimate)
    start |= _numbers("difference_", against) | {"difference_n": None if against is None else against.n}
    return start | {"best": row.control is None and is_best(summary, row, score), "gaps": gaps_text(cell) or None}


def _numbers(name: str, found: Estimate | None) -> dict[str, object]:
    return {f"{name}mean": found.mean if found else None, f"{name}half95": found.half if found else None}


def _published(summary: Summary, record: dict[Hashable, Any], score: str) -> dict[str, object]:
    name = f"{record['method']}, {record['backbone']}, {record['pretrain_data']}"
    alpha = {"loss.alpha": record["alpha"]} if "loss.alpha" in summary.row_keys else {}
    return {"source": record["source"], "name": name, **alpha, "score": score, "mean": record[SOURCES[score]]}
