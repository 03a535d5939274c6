"""Every dataset by name: where it lies, how it is checked, what it offers.

A new dataset is a name in data/config.py and a function in `_OPENERS` that returns a `Dataset`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data import scenes, segmentation_sets
from data.compose import CLASSES as DIGITS
from data.config import DataConfig
from data.images import IMAGE_SUFFIXES, ImageList
from data.layout import SegmentationLayout, walk
from data.place import data_root
from runtime.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """A dataset that was found and is whole as far as its folders tell."""

    name: str
    root: Path
    classes: list[str]  # of images(); empty where they have no labels
    _images: Callable[[str], ImageList]
    _segmentation: Callable[[], SegmentationLayout] | None = None
    _sources: Callable[[], dict[str, tuple[int, ...]]] | None = None
    # By split: ImageNet's folders are listed once, which takes seconds to minutes on a network file system.
    _listed: dict[str, ImageList] = field(default_factory=dict, init=False, compare=False, repr=False)

    def images(self, split: str) -> ImageList:
        """The images of "train" or "val". Raises UserError where there are none."""
        if split not in ("train", "val"):
            raise UserError(f"dataset {self.name} has no split {split!r}; allowed: train, val")
        if split not in self._listed:
            self._listed[split] = self._images(split)
        return self._listed[split]

    def steps_per_epoch(self, images: int, batch_size: int) -> int:
        """Whole batches in that many training images. Raises UserError where there is none."""
        if images < batch_size:
            raise UserError(
                f"dataset {self.name} at {self.root} has {images} training images, "
                f"fewer than one batch of {batch_size}; choose a batch size of at most {images}"
            )
        return images // batch_size

    def sources(self, images: ImageList) -> list[tuple[int, ...]] | None:
        """What each image is composed of, first the source that gives its label; None for plain photographs."""
        if self._sources is None:
            return None
        by_name = self._sources()
        return [by_name[path.stem] for path in images.paths]

    @property
    def has_masks(self) -> bool:
        return self._segmentation is not None

    def segmentation(self) -> SegmentationLayout:
        """Raises UserError for a dataset without masks."""
        if self._segmentation is None:
            allowed = ", ".join(("scenes", *segmentation_sets.LAYOUTS))
            raise UserError(f"dataset {self.name} has no segmentation masks; choose data.name among {allowed}")
        return self._segmentation()


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset of that name; "scenes" is made on first use.

    Raises UserError for an unknown name and for a dataset that is missing, empty or half-made.
    """
    return _OPENERS[config.name](config)


def _find_root(config: DataConfig) -> Path:
    variable = f"VICREGL_{config.name.upper()}"
    named = config.root or os.environ.get(variable)
    root = Path(named).expanduser() if named else data_root() / config.name
    if not root.is_dir():
        how = "data.root" if config.root else f"data.root or the environment's {variable}"
        raise UserError(f"dataset {config.name}: {root} is not a folder; set {how} to where it lies")
    return root


def _open_scenes(config: DataConfig) -> Dataset:
    if config.root is None:
        root = scenes.prepare(config.scenes)
    else:
        root = _find_root(config)
        if damage := scenes.damage(root):
            raise UserError(f"scenes at {root}: {damage}; leave data.root out to have the dataset made")
    layout = SegmentationLayout(
        "scenes",
        root,
        *segmentation_sets.voc_splits(root, "train"),
        classes=["background", *DIGITS],
        palette=segmentation_sets.voc_palette(11),
        img_suffix=".png",
    )
    return Dataset(
        "scenes",
        root,
        DIGITS,
        lambda split: read_folders(root, split, DIGITS),
        lambda: layout,
        lambda: scenes.read_sources(root),
    )


def _open_folders(config: DataConfig) -> Dataset:
    root = _find_root(config)
    classes = class_folders(root / "train")
    return Dataset(config.name, root, classes, lambda split: read_folders(root, split, classes))


def _open_imagenet(config: DataConfig) -> Dataset:
    dataset = _open_folders(config)
    if len(dataset.classes) != 1000:
        raise UserError(
            f"imagenet at {dataset.root}: train/ holds {len(dataset.classes)} class folders, expected 1000; "
            "for another set of classes choose data.name=imagefolder"
        )
    return dataset


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders of a split. Raises UserError where there are none.

    As torchvision's ImageFolder, but for a hidden folder without images (.ipynb_checkpoints), which it stops at.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected one folder a class in it, with the images of that class")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    names = [name for name in names if not name.startswith(".") or _split_files(folder / name)[0]]
    if not names:
        raise UserError(f"{folder} holds no class folders; expected one folder a class, with the images of that class")
    return names


def read_folders(root: Path, split: str, classes: list[str]) -> ImageList:
    """Images at any depth of root/split/<class>/, labelled by the place of their class in `classes`.

    The same files in the same order as torchvision's ImageFolder.
    """
    folder = root / split
    found = class_folders(folder)
    if found != classes:
        missing, unknown = sorted(set(classes) - set(found)), sorted(set(found) - set(classes))
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
        left_out.update(f"ending in {suffix}" if (suffix := _suffix(file)) else "without a suffix" for file in others)
    return ImageList(paths, labels, dict(left_out))


def _is_image(file: str) -> bool:
    return file.lower().endswith(IMAGE_SUFFIXES)


def _suffix(file: str) -> str:
    return os.path.splitext(file)[1].lower()


def _split_files(folder: Path) -> tuple[list[str], list[str]]:
    """(images, other files) at any depth of a folder, as text, because Paths sort slowly; no file is asked for itself.

    Sorted by folder, then by name. Raises as `walk` does.
    """
    paths = [f"{place}/{file}" for place, files in sorted(walk(folder)) for file in sorted(files)]
    images = [path for path in paths if _is_image(path)]
    return images, [] if len(images) == len(paths) else [path for path in paths if not _is_image(path)]


def _open_masks(config: DataConfig) -> Dataset:
    """Images with masks; their labels are of pixels alone."""
    root = _find_root(config)
    layout = segmentation_sets.LAYOUTS[config.name](root, config.segmentation_train)

    def images(split: str) -> ImageList:
        return ImageList([layout.image(split, name) for name in layout.names(split)], None)

    return Dataset(config.name, layout.root, [], images, lambda: layout)


_OPENERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "scenes": _open_scenes,
    "imagefolder": _open_folders,
    "imagenet": _open_imagenet,
    **dict.fromkeys(segmentation_sets.LAYOUTS, _open_masks),
}
