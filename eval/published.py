"""Published scores, and the one of a published weights file for the same evaluation.

The files that the authors offer are named <backbone>_alpha<alpha>.pth and <backbone>_alpha<alpha>_fullckpt.pth; figures
and their sources are in published.csv. A name is all there is to go by: it is printed beside the figure.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config import DataConfig

FILE = Path(__file__).with_name("published.csv")
# (stage, data.name, protocol) -> (column of published.csv, score of result.json)
MEASURED = {
    ("linear", "imagenet", "linear"): ("linear_top1", "top1"),
    ("segmentation", "voc", "frozen linear"): ("voc_frozen_miou", "miou"),
    ("segmentation", "cityscapes", "frozen linear"): ("cityscapes_frozen_miou", "miou"),
}


@functools.cache
def published_rows() -> list[dict[str, Any]]:
    """Read the rows of published.csv: numbers as float, an empty cell as None."""
    with open(FILE, newline="", encoding="utf-8") as file:
        return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> float | str | None:
    try:
        return float(text) if text else None
    except ValueError:
        return text


@dataclass(frozen=True)
class Published:
    """One figure, percent."""

    score: str  # of result.json that measures the same
    value: float
    source: str

    def __str__(self) -> str:
        return f"published {self.score} of the weights of this file name: {self.value:g} % ({self.source})"


def published_score(file: str, arch: str, stage: str, data: DataConfig, result: dict[str, Any]) -> Published | None:
    """Return the figure for a file of that name; None where nothing comparable was published or could be verified."""
    named = re.fullmatch(r"(\w+?)_alpha(\d+(?:\.\d+)?)(?:_fullckpt)?\.pth", file)
    if named is None or named[1] != arch:
        return None
    row = row_of({"method": "VICRegL", "backbone": arch, "alpha": float(named[2])})
    return None if row is None else figure_of_row(row, stage, data.name, data.segmentation_train, result)


def figure_of(selected: dict[str, Any], config: Any) -> Published | None:
    """Return the figure of the row with the selected values, if it measures what the evaluation of that config does."""
    if not selected or (row := row_of(selected)) is None:
        return None
    measured = {key: getattr(config, key, None) for key in ("protocol", "taps")}
    return figure_of_row(row, config.stage, config.data.name, config.data.segmentation_train, measured)


def row_of(selected: dict[str, Any]) -> dict[str, Any] | None:
    """Return the row of published.csv with the selected values; None if there is none, or several."""
    rows = [row for row in published_rows() if all(row.get(key, "") == value for key, value in selected.items())]
    return rows[0] if len(rows) == 1 else None


def figure_of_row(
    row: dict[str, Any], stage: str, data: str, training_masks: str | None, measured: dict[str, Any]
) -> Published | None:
    """Return the row's figure for the same stage, data (data.name, data.segmentation_train), protocol and maps."""
    known = MEASURED.get((stage, data, measured.get("protocol", "")))
    if known is None or row[known[0]] is None:
        return None
    if stage == "segmentation" and measured.get("taps") != ("last" if row["backbone"].startswith("resnet") else "all"):
        return None  # scored by the last map of ResNets, by all four stages of ConvNeXts
    if data == "voc" and training_masks != "train_aug":
        return None
    column, score = known
    return Published(score, row[column], row["source"])
