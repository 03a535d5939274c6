"""Every dataset by name: where it lies, how it is checked, what it offers.

A new dataset is a new function in `_OPENERS` that returns a `Dataset`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data import scenes
from data.compose import CLASSES as DIGITS
from data.compose import IGNORE, PALETTE
from data.images import IMAGE_SUFFIXES, ImageList
from data.scenes import ScenesConfig, data_root
from runtime.config import require
from runtime.errors import UserError

VOC_CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


@dataclass
class DataConfig:
    """Which dataset, and where it lies: `root`; or, where that is null, $VICREGL_<NAME> (as $VICREGL_IMAGENET), or else
    <name> in $VICREGL_DATA (or in data/cache). A root is part of a run's name; the environment never is, so a study
    that leaves it null is the same study on every machine.
    """

    name: str = "scenes"  # scenes | imagefolder | imagenet | voc
    root: str | None = None
    on_bad_image: str = "stop"  # stop | skip (and count); of pretraining only
    segmentation_train: str = "train"  # list of ImageSets/Segmentation to train on; train_aug for VOC with SBD's masks
    scenes: ScenesConfig = field(default_factory=ScenesConfig)

    def check(self) -> None:
        require(self.name in _OPENERS, "data.name", self.name, ", ".join(_OPENERS))
        require(self.on_bad_image in ("stop", "skip"), "data.on_bad_image", self.on_bad_image, "stop, skip")
        allowed = ("train", "train_aug")
        require(
            self.segmentation_train in allowed, "data.segmentation_train", self.segmentation_train, "train, train_aug"
        )


@dataclass(frozen=True)
class SegmentationLayout:
    """A VOC tree. Paths are relative to `root`; masks are palette PNGs, value = index into `classes`."""

    root: Path
    image_dir: str
    mask_dir: str  # of val
    train_mask_dir: str  # another one for SBD's masks
    train_file: str  # one image name a line, without suffix
    val_file: str
    classes: list[str]  # the first is the background
    palette: list[list[int]]  # (red, green, blue) of each class
    img_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    ignore_index: int = IGNORE

    def names(self, split: str) -> list[str]:
        """Image names of "train" or "val"."""
        return (self.root / (self.train_file if split == "train" else self.val_file)).read_text().split()


@dataclass(frozen=True)
class Dataset:
    """A dataset that was found and is whole as far as its folders tell."""

    name: str
    root: Path
    classes: list[str]  # of images(); empty where they have no labels
    _images: Callable[[str], ImageList]
    _segmentation: Callable[[], SegmentationLayout] | None = None

    def images(self, split: str) -> ImageList:
        """The images of "train" or "val". Raises UserError where there are none."""
        if split not in ("train", "val"):
            raise UserError(f"dataset {self.name} has no split {split!r}; allowed: train, val")
        return self._images(split)

    def segmentation(self) -> SegmentationLayout:
        """Raises UserError for a dataset without masks."""
        if self._segmentation is None:
            raise UserError(f"dataset {self.name} has no segmentation masks; choose data.name=scenes or data.name=voc")
        return self._segmentation()


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset of that name; "scenes" is made on first use.

    Raises UserError for an unknown name and for a dataset that is missing, empty or half-made.
    """
    config.check()
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
    palette = [list(PALETTE[3 * k : 3 * k + 3]) for k in range(11)]
    train, val = (f"ImageSets/Segmentation/{split}.txt" for split in ("train", "val"))
    masks = "SegmentationClass"
    layout = SegmentationLayout(
        root, "JPEGImages", masks, masks, train, val, ["background", *DIGITS], palette, img_suffix=".png"
    )
    return Dataset("scenes", root, DIGITS, lambda split: read_folders(root, split, DIGITS), lambda: layout)


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
    """Sorted names of the class folders of a split. Raises UserError where there are none."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist; expected one folder a class in it, with the images of that class")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UserError(f"{folder} holds no class folders; expected one folder a class, with the images of that class")
    return names


def read_folders(root: Path, split: str, classes: list[str]) -> ImageList:
    """Images of root/split/<class>/, sorted, labelled by the place of their class in `classes`."""
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
    for label, name in enumerate(classes):
        images = sorted(file for file in os.listdir(folder / name) if _is_image(file))  # as text: Paths sort slowly
        if not images:
            raise UserError(f"{folder / name} holds no image; allowed: {', '.join(sorted(IMAGE_SUFFIXES))}")
        paths += [folder / name / file for file in images]
        labels += [label] * len(images)
    return ImageList(paths, labels)


def _is_image(file: str) -> bool:
    return os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES and not file.startswith(".")


def _open_voc(config: DataConfig) -> Dataset:
    root = _find_root(config)
    for inner in ("VOCdevkit/VOC2012", "VOC2012"):
        if (root / inner).is_dir():
            root = root / inner
            break
    augmented = config.segmentation_train == "train_aug"
    layout = SegmentationLayout(
        root=root,
        image_dir="JPEGImages",
        mask_dir="SegmentationClass",
        train_mask_dir="SegmentationClassAug" if augmented else "SegmentationClass",
        train_file=f"ImageSets/Segmentation/{config.segmentation_train}.txt",
        val_file="ImageSets/Segmentation/val.txt",
        classes=VOC_CLASSES,
        palette=[list(PALETTE[3 * k : 3 * k + 3]) for k in range(21)],
    )
    _check_voc(layout)

    def images(split: str) -> ImageList:
        return ImageList([root / layout.image_dir / f"{name}{layout.img_suffix}" for name in layout.names(split)], None)

    return Dataset("voc", root, [], images, lambda: layout)


def _check_voc(layout: SegmentationLayout) -> None:
    """Every listed image and mask must be there, and no image may be listed in both splits."""
    root = layout.root
    for part in (layout.image_dir, layout.mask_dir, layout.train_mask_dir, layout.train_file, layout.val_file):
        if not (root / part).exists():
            raise UserError(f"voc at {root}: {part} is missing; expected Pascal VOC 2012's layout (see README)")
    for split, masks in (("train", layout.train_mask_dir), ("val", layout.mask_dir)):
        names = layout.names(split)
        if not names:
            raise UserError(f"voc at {root}: the list of {split} images is empty")
        for folder, suffix in ((layout.image_dir, layout.img_suffix), (masks, layout.mask_suffix)):
            missing = [name for name in names if not (root / folder / f"{name}{suffix}").is_file()]
            if missing:
                raise UserError(
                    f"voc at {root}: {len(missing)} of {len(names)} {split} files are missing in {folder}, "
                    f"the first is {missing[0]}{suffix}; unpack the archive again"
                )
    if shared := set(layout.names("train")) & set(layout.names("val")):
        raise UserError(f"voc at {root}: {len(shared)} images are listed in both train and val, as {sorted(shared)[0]}")


_OPENERS: dict[str, Callable[[DataConfig], Dataset]] = {
    "scenes": _open_scenes,
    "imagefolder": _open_folders,
    "imagenet": _open_imagenet,
    "voc": _open_voc,
}
