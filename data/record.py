"""Which folder a run reads its data from, in data.json of its directory; another folder must hold the same files.

A folder that the environment gives, or `data.root` of a dataset that its name defines, is no part of a run's identity,
and a relative `data.root`, which is, means another folder in another working directory. So without this record, a run
could go on with other images, or stand for them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import DataConfig
from runtime import files
from runtime.config_keys import Layer
from runtime.errors import UserError

if TYPE_CHECKING:
    from data.catalog import Dataset

FILE = "data.json"
SIZED = 64  # files of a split whose sizes count: asking for all takes minutes on network file systems
PRETRAINING, EVALUATION = ("train",), ("train", "val")  # the splits that each reads


def record_data(run: Path, config: DataConfig, dataset: Dataset, splits: Sequence[str]) -> None:
    """Write data.json, unless the identity names the data. Only for the process that holds the run."""
    if not _needs_record(config):
        return
    folder = str(config.folder.resolve())
    if (files.read_json_object(run / FILE) or {}).get("root") != folder:
        digests = {split: digest(dataset, split) for split in splits}
        # The names of the labels 0, 1, ...: which are theirs is an assumption about shards.
        files.write_json(run / FILE, {"root": folder, "classes": dataset.classes, "files": digests})


def refuse_other_data(run: Path, config: DataConfig) -> None:
    """Raise UserError where the run was begun with another folder, which held other files.

    In the same folder, files may be repaired. A folder that is missing here is left to what reads it.
    """
    if not _needs_record(config) or (record := files.read_json_object(run / FILE)) is None:
        return
    folder = config.folder.resolve()
    if not folder.is_dir() or str(folder) == record["root"]:
        return
    from data.catalog import open_dataset  # loads torch, which the planning of a study does without

    dataset = open_dataset(config)
    for split, recorded in record["files"].items():
        if (here := digest(dataset, split)) != recorded:
            raise UserError(
                f"{run} was begun with {config.name} in {record['root']} ({recorded['count']} files of {split}), and "
                f"{folder} holds others ({here['count']}). This run's name does not tell them apart: give the same "
                "data, other runs (machine.runs=FOLDER), or, for a dataset of your own, an absolute data.root with "
                "data.name=imagefolder or vocfolder"
            )


def recorded_root(run: Path) -> Layer:
    """Return a layer for a config: as data.root the folder that the run read, if it is still there."""
    root = (files.read_json_object(run / FILE) or {}).get("root")
    return str(run / FILE), {"data": {"root": root}} if root and os.path.isdir(root) else {}


def digest(dataset: Dataset, split: str) -> dict[str, Any]:
    """Identify a split by the names of all its files and the sizes of some, evenly spread."""
    images = dataset.images(split)
    paths = [str(path) for path in images.paths]
    if dataset.has_masks:
        layout = dataset.segmentation()
        paths += [str(layout.mask(split, name)) for name in layout.names(split)]
    every = max(1, len(paths) // SIZED)
    parts = [path.removeprefix(str(dataset.root)) for path in paths]
    sizes = [os.path.getsize(path) for path in paths[::every] if os.path.exists(path)]
    if images.shards is not None:  # tars with the folders' names give the folders' digest; parquet has row numbers
        parts = [f"/{split}/{name}" for name in images.names(dataset.root)]
        sizes = images.shards.places[::every, 2].tolist()
    parts += map(str, sizes)
    text = "\n".join(parts).encode(errors="surrogateescape")
    return {"count": len(paths), "sha256": hashlib.sha256(text).hexdigest()}


def _needs_record(config: DataConfig) -> bool:
    """Return whether the identity does not say where the data are; scenes are made from the config, which is in it."""
    named = config.root is not None and os.path.isabs(config.root) and not config.places()
    return config.name != "scenes" and not named
