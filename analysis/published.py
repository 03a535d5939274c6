"""Published scores (eval/published.csv, each with its source) beside ours: never in one row, rarely in one plot."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.labels import NONE, number, value_text
from analysis.render import Column, Table
from eval.published import MEASURED, figure_of_row, published_rows
from runtime.errors import UserError

Record = dict[Hashable, Any]
# On which data the columns that a study's scores are shown beside were measured.
_MEASURED_ON = {"linear": "imagenet", "segmentation": "voc"}
_NARROW = ("linear_top1", "voc_frozen_miou")
POINTS = "points.csv"  # of a report's folder
POINT_COLUMNS = ("name", "score", "data", "protocol", "value")  # score: linear.top1; data, protocol: as in results.csv
_COLUMNS = {
    "linear_top1": "linear top-1 (%)",
    "voc_frozen_miou": "VOC mIoU, frozen (%)",
    "voc_finetune_miou": "VOC mIoU, finetuned (%)",
    "cityscapes_frozen_miou": "Cityscapes mIoU, frozen (%)",
}


_NAMES = (
    Column[Record]("method", lambda row: f"*{row['method']}*"),
    Column[Record]("backbone", lambda row: row["backbone"]),
    Column[Record]("α", lambda row: "" if pd.isna(row["alpha"]) else value_text(row["alpha"])),
)


@functools.cache
def published() -> pd.DataFrame:
    return pd.DataFrame(published_rows())


def _backbones() -> set[str]:
    """Return the networks with which VICRegL itself was published."""
    known = published()
    return set(known.loc[known["method"] == "VICRegL", "backbone"])


def rows_beside(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the published rows of the study's backbones; of ResNet-50, the paper's main table, where it has none."""
    column = frame.get("pretrain.model.backbone.name", pd.Series(dtype=str))
    same = set(column.dropna()) & _backbones()
    return published()[published()["backbone"].isin(same or {"resnet50"})]


def is_comparable(frame: pd.DataFrame) -> bool:
    """Return whether the study measured what was published: ImageNet, Pascal VOC, a published backbone."""
    backbones = set(frame.get("pretrain.model.backbone.name", pd.Series(dtype=str)).dropna())
    pretrained = set(frame.get("pretrain.data.name", pd.Series(dtype=str)).dropna())
    evaluated = set(frame.get("eval.data.name", pd.Series(dtype=str)).dropna())
    same_backbone = bool(backbones) and backbones <= _backbones()
    return same_backbone and pretrained == {"imagenet"} and bool(evaluated) and evaluated <= {"imagenet", "voc"}


def published_figure(frame: pd.DataFrame, score: str, row: Record) -> float | None:
    """Return a published row's figure for a study's score, such as linear.top1, where it measures the very same.

    That is the data, the protocol and the maps of its evaluation (eval.published).
    """
    kinds = _measurements(frame, score)
    if len(kinds) != 1:
        return None
    ((stage, data, split, protocol, taps),) = kinds
    known = {str(key): None if pd.isna(value) else value for key, value in row.items()}
    same = figure_of_row(known, stage, data, split, {"protocol": protocol, "taps": taps})
    return same.value if same is not None and same.score == score.partition(".")[2] else None


def column_beside(frame: pd.DataFrame, score: str) -> str | None:
    """Return the column of published.csv to show beside a study's score; None without one.

    It is that of the same stage and head, on the same data or else on the main ones, for the direction: a finetuned
    network, or a subset of the labels, measures something else.
    """
    columns = set()
    for stage, data, _, protocol, _ in _measurements(frame, score):
        head = str(protocol).partition(",")[0].removesuffix(" cached")
        on_main = MEASURED.get((stage, _MEASURED_ON.get(stage, ""), head))
        columns.add(MEASURED.get((stage, data, head), on_main))
    column, metric = (columns.pop() if len(columns) == 1 else None) or (None, None)
    return column if metric == score.partition(".")[2] else None


def values_beside(frame: pd.DataFrame, scores: Sequence[str]) -> list[dict[str, Any]]:
    """Return the published rows of table.csv: a row for each method and each score that has a column beside it."""
    columns = {score: column for score in scores if (column := column_beside(frame, score)) is not None}
    return [
        {
            "source": row["source"],
            "name": f"{row['method']}, {row['backbone']}, {row['pretrain_data']}: {_COLUMNS[column]}",
            "loss.alpha": row["alpha"],
            "score": score,
            "mean": row[column],
        }
        for row in rows_beside(frame).to_dict("records")
        for score, column in columns.items()
        if pd.notna(row[column])
    ]


def _measurements(frame: pd.DataFrame, score: str) -> set[tuple[Any, ...]]:
    """Return what an evaluation's runs measured: stage, data, list of training masks, protocol, maps."""
    keys = ["eval.stage", "eval.data.name", "eval.data.segmentation_train", "score.protocol", "eval.taps"]
    if "eval.name" not in frame:
        return set()
    rows = frame[frame["eval.name"] == score.partition(".")[0]].reindex(columns=keys)
    done = rows.dropna(subset=["eval.stage", "score.protocol"])
    return {tuple(None if pd.isna(value) else value for value in kind) for kind in done.drop_duplicates().to_numpy()}


def read_points(file: Path) -> pd.DataFrame:
    """Return own or other people's points of a CSV file with the columns POINT_COLUMNS: a row for each score of each.

    UserError where it cannot be read, lacks a column, or has a value that is not a number.
    """
    try:
        frame = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a CSV file: {error}") from error
    if missing := [name for name in POINT_COLUMNS if name not in frame]:
        raise UserError(f"{file} has no column {', '.join(missing)}; expected {', '.join(POINT_COLUMNS)}")
    numbers = pd.to_numeric(frame["value"], errors="coerce")
    if wrong := [value for value, known in zip(frame["value"], numbers.notna(), strict=True) if not known]:
        raise UserError(f"{file}: value {wrong[0]!r}; expected a number, a percentage as 71.5")
    return frame[list(POINT_COLUMNS)].assign(value=numbers)


def matching(points: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the points measured as the study measures: its evaluation's data and protocol."""
    wanted = ["eval.name", "eval.data.name", "score.protocol"]
    if not set(wanted) <= set(frame):
        return points.iloc[:0]
    known = {tuple(row) for row in frame[wanted].dropna().to_numpy()}
    rows = zip(points["score"].str.partition(".")[0], points["data"], points["protocol"], strict=True)
    return points[[row in known for row in rows]]


def points_table(points: pd.DataFrame, frame: pd.DataFrame) -> Table:
    """Return the table of points, each with whether it is drawn."""
    same = set(matching(points, frame).index)
    columns = [
        *(_text_column(name) for name in POINT_COLUMNS[:-1]),
        Column[Record]("value", lambda row: number(row["value"], percent=True)),
        Column[Record]("measured as here", lambda row: "yes" if row["index"] in same else "no"),
    ]
    return Table.of(columns, points.reset_index().to_dict("records"))


def names(rows: pd.DataFrame) -> list[str]:
    """Return names for a figure, such as "VICRegL, α = 0.9"."""
    alphas = ["" if pd.isna(alpha) else f", α = {value_text(alpha)}" for alpha in rows["alpha"]]
    return [f"{method}{alpha}" for method, alpha in zip(rows["method"], alphas, strict=True)]


def narrow_table(rows: pd.DataFrame) -> Table:
    """Return the published rows for one column of a paper: their methods and the scores that a study may measure."""
    scores = [_score_column(column, _COLUMNS[column]) for column in _NARROW if rows[column].notna().any()]
    return Table.of([*_NAMES, *scores], rows.to_dict("records"))


def published_table(rows: pd.DataFrame) -> Table:
    """Return the table of published rows, without the columns that none of them fills."""
    sources = list(dict.fromkeys(rows["source"]))
    columns = [
        *_NAMES,
        Column[Record]("pretraining", _pretraining_text),
        *(_score_column(column, name) for column, name in _COLUMNS.items() if rows[column].notna().any()),
        Column[Record]("source", lambda row: f"({sources.index(row['source']) + 1})"),
    ]
    return Table.of(columns, rows.to_dict("records"))


def _text_column(name: str) -> Column[Record]:
    return Column(name, lambda row: str(row[name]))


def _pretraining_text(row: Record) -> str:
    return row["pretrain_data"] + ("" if pd.isna(row["epochs"]) else f", {row['epochs']:.0f} epochs")


def _score_column(column: str, name: str) -> Column[Record]:
    return Column(name, lambda row: NONE if pd.isna(row[column]) else number(row[column], percent=True))


def notes(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Say what may be compared with the published rows, and where they were read."""
    sources = "; ".join(f"({i}) {source}" for i, source in enumerate(dict.fromkeys(rows["source"]), 1))
    if is_comparable(frame):
        warning = "Measured on the same data and backbones as here; recipes and epochs may differ."
    else:
        warning = "Measured on other data than this study's: compare the direction, not the figures."
    return f"{warning} Sources: {sources}."
