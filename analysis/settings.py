"""The table of settings: what a reader has to know of the configs of each stage, and of what a machine chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.labels import NONE, value_text
from analysis.render import Column, Table
from runtime.config import added_defaults
from sweeps.checkpoints import PRETRAIN
from sweeps.stages import get_stage
from sweeps.study import Study

PROTOCOL = "score.protocol"
# A row of the table of settings -> the columns of the results that it is in, by the stage's own name for it.
SETTINGS = {
    "data": ("data.name",),
    "network": ("model.backbone.name",),
    "criterion": ("loss.name",),  # where it is one of the user's own
    "protocol": (PROTOCOL,),
    "optimiser": ("optimizer.name", "momentum"),
    "learning rate": ("optimizer.base_lr", "optimizer.lr", "learning_rates"),
    "weight decay": ("optimizer.weight_decay", "weight_decay"),
    "length": ("train.duration", "epochs", "iterations"),
    "batch (images)": ("train.batch_size", "batch_size"),
    "crop or image (pixels)": ("views.large_size", "crop_size", "image_size"),
    "precision": ("result.precision", "train.precision", "precision"),  # what `auto` chose, before `auto`
    "neighbours": ("neighbours",),
}
SETTING_TEXTS = {
    "epochs": "{} epochs",
    "iterations": "{} iterations",
    "optimizer.base_lr": "{} (base)",  # times the batch over 256
    "momentum": "sgd, momentum {}",  # of a stage that has no other optimiser
}
AT_DEFAULT = ("precision",)  # fields added later that are shown also of runs that have, and do not record, the default
FEW = 3  # values; more are those of the table of scores


def settings_table(frame: pd.DataFrame, study: Study) -> Table | None:
    """Return the settings of the runs of the grid that a reader has to know: a column for each stage.

    None for a frame without configs.
    """
    grid = frame[frame["control"].isna()]
    parts = {PRETRAIN: grid} | {name: grid[grid["eval.name"] == name] for name in study.evals}
    stages = [_stage_column(part, rows, study) for part, rows in parts.items()]
    titles = [title for title in SETTINGS if any(stage.text(title) != NONE for stage in stages)]
    return Table.of([Column[str]("setting", str), *stages], titles) if titles else None


def _stage_column(part: str, rows: pd.DataFrame, study: Study) -> Column[str]:
    stage = PRETRAIN if part == PRETRAIN else study.evals[part].stage
    added = added_defaults(get_stage(stage, part).schema())  # type: ignore[arg-type]  # a class can be hashed
    defaults = {name: added[name] for name in AT_DEFAULT if name in added}
    return Column(part, lambda title: _setting_text(rows, part, SETTINGS[title], defaults))


def _setting_text(rows: pd.DataFrame, part: str, names: Sequence[str], defaults: Mapping[str, Any]) -> str:
    side = "pretrain" if part == PRETRAIN else "eval"
    for name in names:
        column = f"{side}.{name}" if name != PROTOCOL else name if side == "eval" else ""
        known = rows[column] if column in rows else pd.Series(None, rows.index, dtype=object)
        if name in defaults and f"{side}.stage" in rows:
            known = known.astype(object).where(known.notna(), defaults[name])
        if values := [value_text(value) for value in dict.fromkeys(known.dropna())]:
            return SETTING_TEXTS.get(name, "{}").format("varied" if len(values) > FEW else ", ".join(values))
    return NONE
