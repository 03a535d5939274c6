"""A brief look at a dataset before an evaluation spends hours on it; `python -m eval.check` looks longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.catalog import open_dataset
from data.config import DataConfig
from eval.findings import check_images
from eval.mask_check import check_masks
from runtime.errors import UserError

BRIEF = 16  # files of each split that are read


def preflight(config: DataConfig, masks: bool) -> None:
    """A brief look at the dataset of an evaluation (of pixels if `masks`); UserError that lists what is wrong.

    Reads BRIEF files of each split, whatever the dataset's size. What the layout alone tells, open_dataset refuses.
    """
    dataset = open_dataset(config)
    found = check_masks(dataset.segmentation(), BRIEF) if masks else check_images(dataset, BRIEF)
    if found.left_out:
        print("\n".join(found.left_out), flush=True)
    refuse(config.name, dataset.root, found.problems)


def refuse(name: str, root: Path, problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"dataset {name} at {root}: {len(problems)} kinds of problems{listed}")
