"""Every dataset by name: where it is, how it is checked, what it offers.

A new dataset is a name in data/config.py and a function in `_OPENERS` that returns a `Dataset`. A package outside
of the checkout calls `register`, and configs name it in `imports`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data import scenes
from data.compose import CLASSES as DIGITS
from data.config import DATASETS, MMSEG, DataConfig
from data.images import IMAGE_SUFFIXES, ImageList
from data.layout import SegmentationLayout, walk
from data.segmentation_sets import LAYOUTS, VOC_PALETTE, voc_splits
from data.shards import find_shards, read_shards
from runtime.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A dataset that exists and is complete as far as its folders show."""

    name: str
    root: Path
    classes: list[str]  # of images(); empty if they have no labels
    _images: Callable[[str], ImageList]
    _layout: SegmentationLayout | None = None
    _sources: Callable[[], dict[str, tuple[int, ...]]] | None = None
    # By split. ImageNet's folders are listed only once: it takes seconds to minutes on a network file system.
    _listed: dict[str, ImageList] = field(default_factory=dict, init=False, compare=False, repr=False)

    def images(self, split: str) -> ImageList:
        """Return the images of "train" or "val". Raises UserError if there are none."""
        if split not in ("train", "val"):
            raise UserError(f"dataset {self.name} has no split {split!r}; allowed: train, val")
        if split not in self._listed:
            self._listed[split] = self._images(split)
        return self._listed[split]

    def steps_per_epoch(self, images: int, batch_size: int) -> int:
        """Return the whole batches in that many training images. Raises UserError if there are none."""
        if images < batch_size:
            raise UserError(
                f"dataset {self.name} at {self.root} has {images} training images, "
                f"fewer than one batch of {batch_size}; choose a batch size of at most {images}"
            )
        return images // batch_size

    def sources(self, images: ImageList) -> list[tuple[int, ...]] | None:
        """Return the sources that each image is composed of, first the one that determines its label; None for photos.

        Images that share a source are not independent (eval/splits.py).
        """
        if self._sources is None:
            return None
        by_name = self._sources()
        return [by_name[path.stem] for path in images.paths]

    @property
    def has_masks(self) -> bool:
        return self._layout is not None

    def segmentation(self) -> SegmentationLayout:
        """Raises UserError for a dataset without masks."""
        if self._layout is None:
            allowed = ", ".join(("scenes", *LAYOUTS, f"{MMSEG}<class>"))
            raise UserError(f"dataset {self.name} has no segmentation masks; choose data.name among {allowed}")
        return self._layout


def open_dataset(config: DataConfig) -> Dataset:
    """Return the dataset of that name; "scenes" is made on first use.

    Raises UserError for one that is missing, empty or incomplete.
    """
    return (_open_masks if config.name.startswith(MMSEG) else _OPENERS[config.name])(config)


def root_of(config: DataConfig) -> Path:
    """Return the dataset's folder. Raises UserError if there is none."""
    if not (root := config.folder).is_dir():
        how = "data.root" if config.root else f"data.root or the environment's {config.variable}"
        raise UserError(f"dataset {config.name}: {root} is not a folder; set {how} to where it is")
    return root


def _open_scenes(config: DataConfig) -> Dataset:
    root = scenes.prepare(config.scenes) if config.root is None else root_of(config)
    if config.root:
        if damage := scenes.damage(root):
            raise UserError(f"scenes at {root}: {damage}; leave data.root out to have the dataset made")
        scenes.refuse_other(config.scenes, root)
    classes, palette = ["background", *DIGITS], VOC_PALETTE[:11]
    layout = SegmentationLayout("scenes", root, *voc_splits(root, "train"), classes, palette, img_suffix=".png")
    return Dataset(
        "scenes",
        root,
        DIGITS,
        lambda split: read_folders(root, split, DIGITS),
        layout,
        lambda: scenes.read_sources(root),
    )


def _open_folders(config: DataConfig) -> Dataset:
    """Open folders of images, or the same images in shards (data/shards.py)."""
    root = root_of(config)
    if not _has_folders(root / "train") and find_shards(root, "train"):
        train, classes = read_shards(root, "train")
        return Dataset(
            config.name,
            root,
            classes,
            lambda split: train if split == "train" else read_shards(root, split, classes)[0],
        )
    classes = class_folders(root / "train")
    return Dataset(config.name, root, classes, lambda split: read_folders(root, split, classes))


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in os.scandir(folder))


def _open_imagenet(config: DataConfig) -> Dataset:
    dataset = _open_folders(config)
    if len(dataset.classes) != 1000:
        raise UserError(
            f"imagenet at {dataset.root}: train holds {len(dataset.classes)} classes, expected 1000; "
            "for another set of classes choose data.name=imagefolder"
        )
    return dataset


def _open_masks(config: DataConfig) -> Dataset:
    """Open a dataset of images with masks and without class labels."""
    if config.name.startswith(MMSEG):
        from data.mmseg_sets import mmseg_layout  # imports mmsegmentation, which takes seconds

        layout = mmseg_layout(config, root_of(config))
    else:
        layout = LAYOUTS[config.name](root_of(config), config.segmentation_train)
    layout.check()

    def images(split: str) -> ImageList:
        return ImageList([layout.image(split, name) for name in layout.names(split)], None)

    return Dataset(config.name, layout.root, [], images, layout)


_OPENERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "scenes": _open_scenes,
    "imagefolder": _open_folders,
    "imagenet": _open_imagenet,
    **dict.fromkeys(LAYOUTS, _open_masks),
}


def register(name: str, opener: Callable[[DataConfig], Dataset]) -> None:
    """Add a dataset of your own, which `imports` of a config loads.

    UserError where the name is another's, or could not be a part of a run's name.
    """
    if not re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII):
        raise UserError(f"dataset {name!r}: expected a name of letters, digits, _ and -, as it names runs")
    if name in _OPENERS and _OPENERS[name] is not opener:
        raise UserError(f"dataset {name!r} is registered already; choose another name")
    if name not in DATASETS:
        DATASETS.append(name)
    _OPENERS[name] = opener


_EXPECTED = "expected one folder a class in it, with the images of that class (or shards, as data/shards.py says)"


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of a split's class folders. Raises UserError if there are none.

    As torchvision's ImageFolder, except for a hidden folder without images (.ipynb_checkpoints), which is an error
    there.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; {_EXPECTED}")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    names = [name for name in names if not name.startswith(".") or _split_files(folder / name)[0]]
    if not names:
        raise UserError(f"{folder} holds no class folders; {_EXPECTED}")
    return names


def read_folders(root: Path, split: str, classes: list[str]) -> ImageList:
    """Return the images at any depth of root/split/<class>/, labelled by the index of their class in `classes`.

    The same files in the same order as torchvision's ImageFolder.
    """
    folder = root / split
    present = class_folders(folder)
    if present != classes:
        missing, unknown = sorted(set(classes) - set(present)), sorted(set(present) - set(classes))
        raise UserError(
            f"{folder} has other classes than {root / 'train'}: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}. Both splits need the same class folders"
        )
    paths: list[Path] = []
    labels: list[int] = []
    beside = [entry.name for entry in os.scandir(folder) if _is_image(entry.name) and not entry.is_dir()]
    left_out = Counter({"beside the class folders": len(beside)} if beside else {})
    for label, name in enumerate(classes):
        images, others = _split_files(folder / name)
        if not images:
            raise UserError(f"{folder / name} holds no image; allowed: {', '.join(sorted(IMAGE_SUFFIXES))}")
        paths += map(Path, images)
        labels += [label] * len(images)
        suffixes = (os.path.splitext(file)[1].lower() for file in others)
        left_out.update(f"ending in {suffix}" if suffix else "without a suffix" for suffix in suffixes)
    return ImageList(paths, labels, dict(left_out))


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES)


def _split_files(folder: Path) -> tuple[list[str], list[str]]:
    """Return (images, other files) at any depth of a folder, sorted by folder, then by name. Raises as `walk` does.

    By suffix alone, without a system call for each file; as text, because Paths sort slowly.
    """
    paths = [f"{place}/{file}" for place, files in sorted(walk(folder)) for file in sorted(files)]
    return [path for path in paths if _is_image(path)], [path for path in paths if not _is_image(path)]
