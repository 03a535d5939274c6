"""A brief look at a dataset before an evaluation spends hours on it; `python -m eval.check` looks longer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.catalog import open_dataset
from data.config import DataConfig
from eval.findings import check_images
from eval.mask_check import check_masks
from runtime.distributed import world_from_environment
from runtime.errors import UserError

BRIEF = 16  # files of each split that are read


def preflight(config: DataConfig, masks: bool) -> None:
    """A brief look at the dataset of an evaluation (of pixels if `masks`): prints notes; UserError that lists what is
    wrong.

    Reads BRIEF files of each split, whatever the dataset's size, and with masks the headers of all (a second for ten
    thousand files). What the layout alone tells, open_dataset refuses.
    """
    dataset = open_dataset(config)
    found = check_masks(dataset.segmentation(), BRIEF) if masks else check_images(dataset, BRIEF)
    if world_from_environment().is_main:
        for note in found.notes:
            print(note, flush=True)
    refuse(config.name, dataset.root, found.problems)


def refuse(name: str, root: Path, problems: Sequence[str]) -> None:
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise UserError(f"dataset {name} at {root}: {len(problems)} kinds of problems{listed}")
