"""The published score of a published weights file, for the same evaluation, or nothing.

The files that the authors offer are named <backbone>_alpha<alpha>.pth and <backbone>_alpha<alpha>_fullckpt.pth; figures
and where they were read are in analysis/published.csv. A name is all there is to go by: it is said beside the figure.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from typing import Any

from data.config import DataConfig
from runtime.provenance import PROJECT

FILE = PROJECT / "analysis" / "published.csv"
# (stage, data.name, protocol) -> (column of published.csv, score of result.json)
MEASURED = {
    ("linear", "imagenet", "linear"): ("linear_top1", "top1"),
    ("segmentation", "voc", "frozen linear"): ("voc_frozen_miou", "miou"),
    ("segmentation", "cityscapes", "frozen linear"): ("cityscapes_frozen_miou", "miou"),
}


@dataclass(frozen=True)
class Published:
    """One figure, percent."""

    score: str  # of result.json that measures the same
    value: float
    source: str

    def __str__(self) -> str:
        return f"published {self.score} of the weights of this file name: {self.value:g} % ({self.source})"


def published_score(file: str, arch: str, stage: str, data: DataConfig, result: dict[str, Any]) -> Published | None:
    """The figure for a file of that name; None where nothing comparable was published or could be verified."""
    named = re.fullmatch(r"(\w+?)_alpha(\d+(?:\.\d+)?)(?:_fullckpt)?\.pth", file)
    measured = MEASURED.get((stage, data.name, result.get("protocol", "")))
    if named is None or measured is None or named[1] != arch:
        return None
    if stage == "segmentation" and result.get("taps") != ("last" if arch.startswith("resnet") else "all"):
        return None  # scored by the last map of ResNets, by all four stages of ConvNeXts
    if data.name == "voc" and data.segmentation_train != "train_aug":
        return None
    column, score = measured
    with open(FILE, newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            same = row["method"] == "VICRegL" and row["backbone"] == arch and row["alpha"]
            if same and float(row["alpha"]) == float(named[2]) and row[column]:
                return Published(score, float(row[column]), row["source"])
    return None
