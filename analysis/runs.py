"""The runs of a report on its page: a row for each pretraining with its scores, and where they differ in anything.

The points of figures are links to the rows of their runs; `points_of` says what such a link shows.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator
from typing import Any

import pandas as pd

from analysis.labels import NONE, is_percent, label, number, score_label, score_name, short_labels, symbol, value_text
from analysis.render import from_template
from analysis.report_data import ReportData
from analysis.summary import Row, Summary
from analysis.tables import score_text
from sweeps.study import is_seed

MANY = 500  # runs; above this the page would be slow, and results.csv has them all


def points_of(data: ReportData) -> dict[str, str]:
    """Return the text of every link to a run or to a setting; none where the page has no rows for them."""
    summary, texts = data.summary, {}
    if not _has_rows(data):
        return {}
    for row in summary.rows:
        means = [f"{score_name(name)} {score_text(scores, is_percent(name))}" for name, scores in row.scores.items()]
        if row.mean_link:
            texts[row.mean_link] = f"{_name(summary, row)}, mean of n = {len(row.runs)}: {', '.join(means)}"
        for seed, run in row.runs.items():
            values = [f"{score_name(name)} {_value(row, name, seed)}" for name in row.scores]
            named = ", ".join([_name(summary, row), *_seed_texts(data, seed)])
            texts[row.link(seed) or ""] = f"{named}: {', '.join(values)}; run {run}"
    return texts


def runs_section(data: ReportData) -> str:
    """Return the section of a page that has a row for each run; empty where there are none, or too many."""
    if not _has_rows(data):
        return ""
    summary, names = data.summary, [key for key in data.study.grid if is_seed(key)]
    header = [*map(symbol, summary.row_keys), *map(symbol, names), *map(score_label, data.study.scores), "run"]
    shared, own = _fields(data.frame)
    return from_template(
        "runs.html.j2",
        header=header,
        rows=list(_rows(data)),
        shared=shared,
        own=json.dumps(own, ensure_ascii=False, sort_keys=True).replace("</", "<\\/"),
    )


def _has_rows(data: ReportData) -> bool:
    return 0 < sum(len(row.runs) for row in data.summary.rows) <= MANY


def _rows(data: ReportData) -> Iterator[dict[str, Any]]:
    """Yield the cells of each run, with the ids that are not given yet: two settings may share a run."""
    summary, given = data.summary, set[str]()
    for row in summary.rows:
        keys = [
            NONE if v is None else label(data.study, k, v) for k, v in zip(summary.row_keys, row.values, strict=True)
        ]
        keys = [f"{row.control} (control)", *keys[1:]] if row.control is not None else keys
        for position, (seed, run) in enumerate(row.runs.items()):
            new = run not in given
            given.add(run)
            yield {
                "setting": f"setting-{run}" if position == 0 and new else "",
                "id": f"run-{run}" if new else "",
                "cells": [*keys, *map(value_text, seed), *(_value(row, name, seed) for name in data.study.scores)],
                "run": run,
            }


def _name(summary: Summary, row: Row) -> str:
    known = [(key, value) for key, value in zip(summary.row_keys, row.values, strict=True) if value is not None]
    named = short_labels(summary.study, [key for key, _ in known], [value for _, value in known])
    return ", ".join(filter(None, [row.control, named]))


def _seed_texts(data: ReportData, seed: Any) -> list[str]:
    names = [key for key in data.study.grid if is_seed(key)]
    return [f"{symbol(name)} {value_text(value)}" for name, value in zip(names, seed, strict=True)]


def _value(row: Row, score: str, seed: Hashable) -> str:
    value = row.scores[score].by_seed.get(seed)
    return NONE if value is None else number(value, is_percent(score))


def _fields(frame: pd.DataFrame) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return every field of the configs, results and provenance: what all runs share, and what each has of its own."""
    runs: dict[str, dict[str, str]] = {}
    for record in frame.to_dict("records"):
        fields = runs.setdefault(record["pretrain.hash"], {})
        for column, value in record.items():
            name = _field_name(str(column), record["eval.name"])
            if name and pd.notna(value) and value != "":  # a results.csv cannot tell an empty text from none
                fields[name] = value_text(value)
    first, *others = runs.values()
    shared = {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}
    return shared, {run: {k: v for k, v in fields.items() if k not in shared} for run, fields in runs.items()}


def _field_name(column: str, evaluation: Any) -> str:
    """Name a field by its part of the study: pretrain.seed, linear.momentum, linear.result.top1."""
    side, _, name = column.partition(".")
    if side == "pretrain":
        return column
    if not isinstance(evaluation, str) or column == "eval.name":
        return ""
    return {"eval": f"{evaluation}.{name}", "score": f"{evaluation}.result.{name}"}.get(side, "")
