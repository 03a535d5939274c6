"""The report that lies where a new one is to be written: what it knows that the new one does not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.changes import plain
from analysis.labels import value_text
from analysis.material import Material
from analysis.results import load_results
from runtime.errors import UserError

RESULTS = "results.csv"
CURVES = "training"  # the one figure that is drawn from what the runs logged, which results.csv has not
_NAMED = 3  # runs of an error, by name


def require_no_loss(frame: pd.DataFrame, folder: Path) -> None:
    """Raise UserError where the report in `folder` has scores that `frame` has not; it says which."""
    former = _former(folder)
    new = _scores(frame)
    lost = [row for row, count in _scores(former).items() if new.get(row, 0) < count]
    if lost:
        named = "; ".join(", ".join(row) for row in lost[:_NAMED])
        more = f"; and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise _refusal(folder, f"the scores of {len(lost)} of its {len(former)} evaluations ({named}{more})")


def keeps_curves(material: Material, folder: Path, force: bool) -> bool:
    """Whether the training curves in `folder` stay: they cannot be drawn again, and they are of the same runs.

    UserError where they are of other runs, and would be lost; False with `force`.
    """
    if not material.of_a_table or not (folder / f"{CURVES}.svg").is_file():
        return False
    same = _same_pretrainings(material.frame, _former(folder))
    if not same and not force:
        raise _refusal(folder, "the training curves of other runs")
    return same


def _refusal(folder: Path, lost: str) -> UserError:
    return UserError(
        f"{folder} is left as it is: it has {lost}, which would be lost. "
        "Expected runs that are done (python -m sweeps status STUDY; machine.runs=FOLDER where they lie elsewhere). "
        "--reports FOLDER writes beside it; --force replaces it"
    )


def _former(folder: Path) -> pd.DataFrame:
    file = folder / RESULTS
    return load_results(file) if file.is_file() else pd.DataFrame()


def _scores(frame: pd.DataFrame) -> dict[tuple[str, ...], int]:
    """How many scores each evaluation of each setting has."""
    named = [c for c in frame.columns if c in ("study", "control", "eval.name") or str(c).startswith("grid.")]
    counts = frame[[c for c in frame.columns if str(c).startswith(("score.", "pretrain.result."))]].notna().sum(axis=1)
    names = [str(column).removeprefix("grid.") for column in named]
    rows = ([plain(value) for value in row] for row in frame[named].to_numpy(object))
    texts = [tuple(f"{n} {value_text(v)}" for n, v in zip(names, row, strict=True) if v is not None) for row in rows]
    return {text: int(count) for text, count in zip(texts, counts, strict=True) if count}


def _same_pretrainings(frame: pd.DataFrame, former: pd.DataFrame) -> bool:
    column = "pretrain.hash"
    return column in frame and column in former and set(frame[column]) == set(former[column])
