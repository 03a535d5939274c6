"""Published scores (published.csv, each with its source) beside ours: never in one row, rarely in one plot."""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from analysis.labels import NONE, number, value_text
from analysis.render import Table

FILE = Path(__file__).with_name("published.csv")
# A study's score -> the column of published.csv that measures the same on ImageNet-1k and Pascal VOC.
SOURCES = {"linear.top1": "linear_top1", "segmentation.miou": "voc_frozen_miou"}
_COLUMNS = {
    "linear_top1": "linear top-1 (%)",
    "voc_frozen_miou": "VOC mIoU, frozen (%)",
    "voc_finetune_miou": "VOC mIoU, finetuned (%)",
    "cityscapes_frozen_miou": "Cityscapes mIoU, frozen (%)",
}


@functools.cache
def published() -> pd.DataFrame:
    return pd.read_csv(FILE)


def rows_beside(frame: pd.DataFrame) -> pd.DataFrame:
    """The published rows of the study's backbone; those of the paper's main table, ResNet-50, where it has none."""
    known = published()
    column = frame.get("pretrain.model.backbone.name", pd.Series(dtype=str))
    same = known[known["backbone"].isin(set(column.dropna()))]
    return same if len(same) else known[known["backbone"] == "resnet50"]


def is_comparable(frame: pd.DataFrame) -> bool:
    """Whether the study measured what was published: ImageNet, Pascal VOC, a published backbone."""
    backbones = set(frame.get("pretrain.model.backbone.name", pd.Series(dtype=str)).dropna())
    pretrained = set(frame.get("pretrain.data.name", pd.Series(dtype=str)).dropna())
    evaluated = set(frame.get("eval.data.name", pd.Series(dtype=str)).dropna())
    same_backbone = bool(backbones) and backbones <= set(published()["backbone"])
    return same_backbone and pretrained == {"imagenet"} and bool(evaluated) and evaluated <= {"imagenet", "voc"}


def published_table(rows: pd.DataFrame) -> Table:
    """Rows of published.csv; the columns that no row fills are left out."""
    scores = {column: name for column, name in _COLUMNS.items() if rows[column].notna().any()}
    sources = list(dict.fromkeys(rows["source"]))
    header = ["method", "backbone", "α", "pretraining", *scores.values(), "source"]
    lines = []
    for record in rows.to_dict("records"):
        epochs = "" if pd.isna(record["epochs"]) else f", {record['epochs']:.0f} epochs"
        cells = [
            f"*{record['method']}*",
            record["backbone"],
            _text(record["alpha"]),
            f"{record['pretrain_data']}{epochs}",
        ]
        cells += [NONE if pd.isna(record[column]) else number(record[column], True) for column in scores]
        lines.append([*cells, f"({sources.index(record['source']) + 1})"])
    return Table(header, [lines])


def _text(value: float) -> str:
    return "" if pd.isna(value) else value_text(value)


def notes(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    """What may be read from the published rows, and where they were read."""
    sources = "; ".join(f"({i}) {source}" for i, source in enumerate(dict.fromkeys(rows["source"]), 1))
    if is_comparable(frame):
        warning = "The same data and backbone as here; recipes and epochs may differ."
    else:
        warning = "On other data than this study's: the direction can be compared, the figures cannot."
    return f"{warning} Sources: {sources}."
