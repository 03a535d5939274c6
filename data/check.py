"""Look at a dataset before hours are spent on it.

    python -m data.check imagenet data.root=/path/to/imagenet           # some hundred files, a picture
    python -m data.check voc data.root=/path/to/VOCdevkit --all         # every file

Tells what is there, draws a sheet of samples with their labels or masks, and ends with 2 where something is wrong.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.catalog import Dataset, open_dataset
from data.check_images import Findings, check_images
from data.check_masks import check_masks, check_strays
from data.check_picture import draw
from data.config import DataConfig
from data.layout import SegmentationLayout
from runtime import config as configs
from runtime import files
from runtime.config import Config, require
from runtime.errors import UserError, run_command
from runtime.provenance import PROJECT
from runtime.world import world_from_environment

SAMPLES = 200  # files of each split
BRIEF = 16  # of a preflight


class CheckConfig(Config):
    data: DataConfig = DataConfig()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.check", description="Look at a dataset.")
    parser.add_argument("dataset", help="its name, as scenes, imagenet, imagefolder, voc")
    parser.add_argument("--all", action="store_true", help=f"read every file, not {SAMPLES} of each split")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="files of each split that are read")
    parser.add_argument("--out", type=Path, help="the picture; without it reports/check/<dataset>.png")
    parser.add_argument("overrides", nargs="*", help="key=value, as data.root=/path")
    arguments = parser.parse_intermixed_args(argv)
    require(arguments.samples >= 1, "--samples", arguments.samples, "1 or more")
    config = configs.load(CheckConfig, None, [f"data.name={arguments.dataset}", *arguments.overrides])
    dataset = open_dataset(config.data)
    layout = dataset.segmentation() if dataset.has_masks else None
    out = arguments.out or PROJECT / "reports" / "check" / f"{dataset.name}.png"
    files.make_folder(out.parent, "write elsewhere: --out FILE")  # before minutes of reading
    print(f"{dataset.name} at {dataset.root}", flush=True)
    found = look(dataset, layout, None if arguments.all else arguments.samples)
    print("\n".join([*found.lines, *found.notes]))
    draw(dataset, layout, out)
    print(f"wrote {out}", flush=True)
    refuse(dataset.name, dataset.root, found.problems)
    print("no problem found" + ("" if arguments.all else " in what was read; --all reads every file"))


def look(dataset: Dataset, layout: SegmentationLayout | None, samples: int | None) -> Findings:
    """All that can be told; a split that cannot be opened is a problem, not the end."""
    found = Findings()
    if dataset.classes:
        try:
            found.join(check_images(dataset, samples))
        except UserError as error:
            found.problems.append(str(error))
    if layout is not None:
        found.join(check_masks(layout, samples))
        found.join(check_strays(layout))
    return found


def preflight(config: DataConfig, masks: bool) -> None:
    """Look briefly at the dataset of an evaluation (at its masks if `masks`): print notes, refuse what is wrong.

    Reads BRIEF files of each split, whatever the dataset's size, and with masks the headers of all (a second for ten
    thousand files). What the layout alone shows, open_dataset refuses.
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


if __name__ == "__main__":
    run_command(main)
