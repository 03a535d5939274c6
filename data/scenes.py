"""The embedded dataset: real handwritten digits over real photographs, small and segmented.

    python -m data.scenes                    # makes it in $VICREGL_DATA or data/cache, and prints where
    python -m data.scenes train=500 val=100  # another composition, in its own folder

One image has one dominant digit (its class) and up to two small distractors of other classes. The digits are
scikit-learn's `load_digits` (8 x 8, UCI), the backgrounds crops of its two sample photographs at reduced contrast: at
full contrast the background is a shortcut, because both views share it. Train and val share no source digit and no
pixel of a photograph. The dataset is written as an ImageFolder tree and as a VOC tree, so the code that reads ImageNet
and Pascal VOC also reads it; manifest.csv lists the sources of each image.

What it can show: which weights of the global and the local criterion give better features for one label an image, and
which for a label a pixel. After 4,000 steps every alpha classifies 98 % of the default composition, so there only the
segmentations differ; smaller digits among more distractors (sweeps/studies/scenes.yaml) tell both apart.
What it cannot show: natural object classes, scale variation beyond a factor of three, photographs as the thing to
recognise. The digits' writers are not known, so train and val may share writers.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data.compose import CLASSES, Scene, compose, split_sources
from data.config import ScenesConfig, data_root
from data.segmentation_sets import VOC_PALETTE
from runtime import config as configs
from runtime import files
from runtime.console import make_parser
from runtime.errors import UserError, run_command


def prepare(config: ScenesConfig, parent: Path | None = None) -> Path:
    """Return the dataset's folder; make it first if it is missing or damaged.

    It is made under a temporary name and renamed at the end, so a folder of that name is complete, whatever kills its
    maker. Processes that need it at the same time wait for the one that makes it.
    """
    parent = data_root() if parent is None else parent
    folder = parent / f"scenes-{configs.identity_hash(configs.to_dict(config))}"
    if damage(folder) is None:
        return folder
    files.make_folder(parent, "keep datasets elsewhere: VICREGL_DATA=FOLDER in the environment")
    with files.lock(parent / f".{folder.name}.lock"):
        if damage(folder) is not None:
            _remake(config, folder)
    return folder


def _remake(config: ScenesConfig, folder: Path) -> None:
    if folder.is_dir():
        print(f"{folder} is damaged ({damage(folder)}): making it again", file=sys.stderr)
    for leftover in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        write_dataset(config, temporary)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def damage(folder: Path) -> str | None:
    """Compare the files and bytes of a scenes folder with complete.json; return the first difference, or None."""
    if not folder.is_dir():
        return "there is no such folder"
    complete = files.read_json_object(folder / "complete.json")
    if complete is None or "contents" not in complete:
        return "complete.json is missing or damaged"
    actual = _contents(folder)
    for name in sorted(complete["contents"].keys() | actual.keys()):
        expected, got = complete["contents"].get(name), actual.get(name)
        if expected != got:
            return f"{name} holds {_describe(got)}, expected {_describe(expected)}"
    return None


def refuse_other(config: ScenesConfig, folder: Path) -> None:
    """Raise UserError if an undamaged scenes folder was made with other options."""
    complete = folder / "complete.json"
    recorded = (files.read_json_object(complete) or {}).get("config", {})
    made = configs.to_dict(configs.from_layers(ScenesConfig, [(str(complete), recorded)]))
    wanted = configs.to_dict(config)
    differing = [key for key in wanted if made[key] != wanted[key]]
    if differing:
        has, asked = (
            " ".join(f"data.scenes.{key}={json.dumps(values[key], separators=(',', ':'))}" for key in differing)
            for values in (made, wanted)
        )
        raise UserError(
            f"scenes at {folder} were made with {has}, and the config says {asked}; say what they were made with, or "
            "leave data.root out to have the config's made"
        )


def _describe(content: dict[str, int] | None) -> str:
    return "nothing" if content is None else f"{content['files']} files of {content['bytes']} bytes"


def _contents(folder: Path) -> dict[str, dict[str, int]]:
    """Count the files of each subfolder, and their bytes."""
    contents = {}
    for place, _, names in os.walk(folder):
        counted = [name for name in names if name != "complete.json"]
        if counted:
            size = sum(os.stat(os.path.join(place, name)).st_size for name in counted)
            contents[os.path.relpath(place, folder)] = {"files": len(counted), "bytes": size}
    return contents


def read_sources(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the source digits of each image by its name: the dominant one first, then the distractors."""
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as file:
        return {
            row["image"]: (int(row["digit"]), *map(int, row["distractors"].split())) for row in csv.DictReader(file)
        }


def write_dataset(config: ScenesConfig, folder: Path) -> None:
    """Write both trees, the manifest and finally complete.json into a new folder."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    digest, rows = hashlib.sha256(), []
    for split, count in (("train", config.train), ("val", config.val)):
        names = []
        for name, scene in _scenes(config, split, count):
            names.append(f"{name}\n")
            rows.append({"image": name, "split": split, **scene.manifest_row()})
            digest.update(_write_scene(folder, split, name, scene))
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(names), encoding="utf-8")
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as file:
        manifest = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        manifest.writeheader()
        manifest.writerows(rows)
    files.write_json(
        folder / "complete.json",
        {"config": configs.to_dict(config), "contents": _contents(folder), "sha256": digest.hexdigest()},
    )


def _scenes(config: ScenesConfig, split: str, count: int) -> Iterator[tuple[str, Scene]]:
    """Yield named scenes; classes alternate, so that they are equally frequent."""
    for number in range(count):
        generator = np.random.default_rng([config.seed, split == "val", number])
        yield f"{split}_{number:05d}", compose(config, split_sources(split), number % 10, generator)


def _write_scene(folder: Path, split: str, name: str, scene: Scene) -> bytes:
    """Write image and mask; return their pixels, for the dataset's digest."""
    path = folder / split / CLASSES[scene.label] / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(path)
    linked = folder / "JPEGImages" / path.name
    try:
        os.link(path, linked)
    except OSError:  # file systems without hard links
        shutil.copyfile(path, linked)
    mask = Image.fromarray(scene.mask)
    mask.putpalette(np.ravel(VOC_PALETTE).tolist())  # turns mode L into mode P
    mask.save(folder / "SegmentationClass" / path.name)
    return scene.image.tobytes() + scene.mask.tobytes()


def main(argv: Sequence[str]) -> None:
    parser = make_parser("data.scenes", __doc__)
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as train=500")
    config = configs.load(ScenesConfig, None, configs.parse_command(parser, argv).overrides)
    print(f"scenes: {config.train} train and {config.val} val images in {prepare(config)}")


if __name__ == "__main__":
    run_command(main)
