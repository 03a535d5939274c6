"""How keys, values and scores are written for a reader, and in which order the values of a key stand."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from runtime import PROJECT
from sweeps.keys import as_text
from sweeps.study import CHECKPOINT, METHOD, Study

# A score's last part -> (its name, its unit).
SCORES = {
    "top1": ("top-1", "%"),
    "top5": ("top-5", "%"),
    "best_on_val_top1": ("best top-1 on val", "%"),
    "probe_top1": ("online probe top-1", "%"),
    "miou": ("mIoU", "%"),
    "macc": ("mean accuracy", "%"),
    "aacc": ("pixel accuracy", "%"),
}
SOURCES = {"knn": "kNN", "dense_knn": "dense kNN"}  # an evaluation's name, where a reader writes another
# As in the papers: VICRegL's alpha and gamma, VICReg's lambda, mu and nu.
SYMBOLS = {
    "loss.alpha": "α",
    "loss.num_matches": "γ",
    "loss.invariance_coefficient": "λ",
    "loss.variance_coefficient": "μ",
    "loss.covariance_coefficient": "ν",
}
_DURATION = re.compile(r"\d+ \w+")  # 200 steps
MINUS = "−"
NONE = "–"  # nothing to show


def score_name(score: str) -> str:
    """Return "linear top-1" for linear.top1."""
    source, _, name = score.partition(".")
    return f"{SOURCES.get(source, source.replace('_', ' '))} {SCORES.get(name, (name, ''))[0]}"


def score_label(score: str) -> str:
    """Return "linear top-1 (%)" for linear.top1."""
    unit = SCORES.get(score.rpartition(".")[2], ("", ""))[1]
    return score_name(score) + (f" ({unit})" if unit else "")


def is_percent(score: str) -> bool:
    return SCORES.get(score.rpartition(".")[2], ("", ""))[1] == "%"


def symbol(key: str) -> str:
    """Return "α" for loss.alpha, and the last part of any other key."""
    return SYMBOLS.get(key, key.rpartition(".")[2].replace("_", " "))


def value_text(value: Any) -> str:
    """Return "1" for 1.0: a table shows no digits that the config did not have."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def named_values(keys: Sequence[str], values: Sequence[Any]) -> str:
    """Return text such as "loss.alpha = 0.9, loss.local = both"; empty without keys."""
    return ", ".join(f"{key} = {value_text(value)}" for key, value in zip(keys, values, strict=True))


def label(study: Study, key: str, value: Any) -> str:
    """Return what the study calls a value of a grid key (report.labels); else its text, of a mapping without braces."""
    names, text = study.report.labels.get(key), as_text(value)
    values = [as_text(known) for known in study.grid.get(key, [])]
    if names and text in values:
        return names[values.index(text)]
    return _mapping_text(text) if isinstance(text, str) and text.startswith("{") else value_text(text)


def _mapping_text(text: str) -> str:
    """Return "scenes_resnet, width_factor = 0.5" for {"name": "scenes_resnet", "args": {"width_factor": 0.5}}."""
    parts = json.loads(text)
    name = [str(parts.pop("name"))] if "name" in parts else []
    inner = {
        k: v for key, value in parts.items() for k, v in (value if isinstance(value, dict) else {key: value}).items()
    }
    return ", ".join([*name, *(f"{key} = {value_text(as_text(value))}" for key, value in inner.items())])


def short_labels(study: Study, keys: Sequence[str], values: Sequence[Any]) -> str:
    """Return text such as "α = 0.9, local = both", for figures; what the study names is its name alone."""
    return ", ".join(_short_label(study, key, value) for key, value in zip(keys, values, strict=True))


def _short_label(study: Study, key: str, value: Any) -> str:
    text = label(study, key, value)
    is_name = key in (CHECKPOINT, METHOD) or key in study.report.labels or str(as_text(value)).startswith("{")
    return text if is_name or _DURATION.fullmatch(text) else f"{symbol(key)} = {text}"


# [20, 4], 200 steps, 512-512-512: texts that differ in their numbers alone.
_ORDERED_TEXT = re.compile(r"\[.*\]|\d+(\.\d+)? \w+|\d+(-\d+)+")
_NUMBER = re.compile(r"(?<!\d)-?\d+(?:\.\d+)?")


def order_of(key: str, values: Sequence[Any]) -> dict[Any, tuple[float, ...]] | None:
    """Return the numbers by which values of a key are sorted; None where they have no order.

    Numbers have one, and lists or texts whose numbers all grow together: [4, 4], [20, 4]. As a count of matches, 0 is
    all of them.
    """
    texts = [str(value) for value in values]
    if any(isinstance(value, bool) or value is None for value in values):
        return None
    if not all(isinstance(value, int | float) for value in values) and (
        not all(map(_ORDERED_TEXT.fullmatch, texts)) or len({_NUMBER.sub("", text) for text in texts}) > 1
    ):
        return None
    found = {value: _numbers(value) for value in values}
    if key.endswith("matches"):
        found = {value: tuple(n or math.inf for n in numbers) for value, numbers in found.items()}
    ordered = sorted(found.values())
    grow = all(a <= b for lower, upper in pairwise(ordered) for a, b in zip(lower, upper, strict=True))
    return found if grow else None


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(map(float, _NUMBER.findall(value))) if isinstance(value, str) else (float(value),)


def number(value: float, percent: bool, signed: bool = False) -> str:
    """Return a percentage with one decimal, any other number with three significant digits."""
    text = f"{abs(value):.1f}" if percent else f"{abs(value):#.3g}".rstrip(".")
    if value < 0 and text.strip("0.") != "":
        return MINUS + text
    return f"+{text}" if signed else text


def run_link(run: str | None) -> str | None:
    """Return the link to the run of that hash; None without one."""
    return None if run is None else f"#run-{run}"


def project_path(path: str) -> str:
    """Return a path within the project from its root, of any other the name: no report shows folders of one machine."""
    full = Path(path).resolve()
    return str(full.relative_to(PROJECT)) if full.is_relative_to(PROJECT) else full.name
