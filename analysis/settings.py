"""The settings that a reader has to know before the scores, as one table: a row a setting, a column a stage."""

from __future__ import annotations

import pandas as pd

from analysis.labels import value_text
from analysis.table import NONE, Table
from sweeps.study import PRETRAIN, Study

PROTOCOL = "score.protocol"
# A row of the table -> the column of the results that it is in, by the stage's own name for it.
ROWS = {
    "data": ("data.name",),
    "network": ("model.backbone.name",),
    "protocol": (PROTOCOL,),
    "optimiser": ("optimizer.name", "momentum"),
    "learning rate": ("optimizer.base_lr", "optimizer.lr", "learning_rates"),
    "weight decay": ("optimizer.weight_decay", "weight_decay"),
    "length": ("train.duration", "epochs", "iterations"),
    "batch (images)": ("train.batch_size", "batch_size"),
    "crop or image (pixels)": ("views.large_size", "crop_size", "image_size"),
    "neighbours": ("neighbours",),
}
TEXTS = {
    "epochs": "{} epochs",
    "iterations": "{} iterations",
    "optimizer.base_lr": "{} (base)",  # times the batch over 256
    "momentum": "sgd, momentum {}",  # of a stage that has no other optimiser
}
FEW = 3  # values; more are those of the table of scores


def settings_table(frame: pd.DataFrame, study: Study) -> Table | None:
    """Of the runs of the grid, as the frame has them; None where it has no config (of runs that nobody planned)."""
    grid = frame[frame["control"].isna()]
    parts = {PRETRAIN: grid} | {name: grid[grid["eval.name"] == name] for name in study.evals}
    lines = [[title, *(_cell(rows, part, ROWS[title]) for part, rows in parts.items())] for title in ROWS]
    lines = [line for line in lines if any(cell != NONE for cell in line[1:])]
    return Table(["setting", *parts], [lines]) if lines else None


def _cell(rows: pd.DataFrame, part: str, names: tuple[str, ...]) -> str:
    side = "pretrain" if part == PRETRAIN else "eval"
    for name in names:
        column = f"{side}.{name}" if name != PROTOCOL else name if side == "eval" else ""
        values = [value_text(value) for value in dict.fromkeys(rows[column].dropna())] if column in rows else []
        if values:
            return TEXTS.get(name, "{}").format("varied" if len(values) > FEW else ", ".join(values))
    return NONE
