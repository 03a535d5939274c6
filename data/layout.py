"""A segmentation dataset as files: which mask belongs to which image, and which class a mask's value means."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.images import as_stored, open_image, read_file, stored_mode
from runtime.errors import UserError

IGNORE = 255  # the label of pixels that count for nothing


@dataclass(frozen=True)
class SegmentationPart:
    """Folders relative to the dataset's root. The mask of IMAGE_DIR/<name><suffix> is MASK_DIR/<name><suffix>."""

    image_dir: str
    mask_dir: str
    list_file: str = ""  # one name a line, without suffix; empty: every image in image_dir, at any depth

    def names(self, root: Path, img_suffix: str) -> list[str]:
        """Return the names in the list, or the sorted paths of the images; without suffix."""
        if self.list_file:
            return read_list(root / self.list_file)
        return sorted(names_with_suffix(files_in(root / self.image_dir), img_suffix))


def parts_by_name(root: Path, parts: Sequence[SegmentationPart], img_suffix: str) -> dict[str, SegmentationPart]:
    """Return the names of a split, each with the first part that has it."""
    by_name: dict[str, SegmentationPart] = {}
    for part in parts:
        for name in part.names(root, img_suffix):
            by_name.setdefault(name, part)
    return by_name


def read_list(file: Path) -> list[str]:
    """Return the names in a list; UserError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the list {file}: {error}; expected one image name a line") from error


@dataclass(frozen=True)
class MaskLabels:
    """How to read the values of a mask: single-channel, 8 bits.

    `values` maps them to classes where the file has other numbers (Cityscapes' label ids, ADE20K's unlabelled 0): 256
    numbers, `ignore` for values that count for nothing. Without it, a value is the class.
    """

    classes: int
    values: tuple[int, ...] | None = None
    ignore: int = IGNORE

    def read(self, path: Path) -> np.ndarray:
        """Read the mask as classes, (H, W) uint8, as it is stored (its EXIF orientation is ignored).

        UserError unless it is a complete single-channel image of 8 bits.
        """
        with open_image(io.BytesIO(read_file(path)), path) as image:
            if fault := mode_fault(stored_mode(image)):
                raise UserError(f"{path} {fault}")
            stored = np.array(as_stored(image))
        return stored if self.values is None else np.array(self.values, np.uint8)[stored]

    def fault(self, labels: np.ndarray) -> str:
        """Name the labels that are neither classes nor ignored; empty if there are none."""
        unknown = (labels >= self.classes) & (labels != self.ignore)
        if not unknown.any():
            return ""
        return f"holds {', '.join(map(str, np.unique(labels[unknown])[:5]))}; expected {self.allowed}"

    @property
    def allowed(self) -> str:
        """The values that a file may have, as "0 to 20, and 255 for ignored"."""
        values = self.values or range(256)
        top = max(v for v in range(256) if v != self.ignore and (values[v] < self.classes or values[v] == self.ignore))
        return f"0 to {top}, and {self.ignore} for ignored"


def mode_fault(mode: str) -> str:
    """Say why an image of that mode (data.images.stored_mode) is not a mask; empty for one channel of 8 bits."""
    if mode in ("P", "L"):
        return ""
    if mode.startswith("L;"):
        factor = 255 // (2 ** int(mode[2]) - 1)
        what = f"has gray values of {mode[2]} bits, which the decoder multiplies by {factor}"
        return f"{what}; divide what it reads by {factor} and save the classes with 8 bits"
    return (
        f"is an image of mode {mode}, and a mask is expected: one channel, palette or gray of 8 bits, whose values are "
        "classes"
    )


def size_fault(mask: tuple[int, ...], image: tuple[int, ...]) -> str:
    """Say how the (height, width) of a mask differs from its image's; empty if they are equal."""
    if mask == image:
        return ""
    return (
        f"is {mask[1]} x {mask[0]} pixels and its image {image[1]} x {image[0]}; expected the same "
        "(both as they are stored: an EXIF orientation tag is ignored)"
    )


@dataclass(frozen=True)
class SegmentationLayout:
    """Images and their masks, in the parts of each split."""

    name: str
    root: Path
    train: tuple[SegmentationPart, ...]
    val: tuple[SegmentationPart, ...]
    classes: list[str]
    palette: list[list[int]]  # (red, green, blue) of each class
    img_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    values: tuple[int, ...] | None = None
    ignore_index: ClassVar[int] = IGNORE

    def names(self, split: str) -> list[str]:
        """Return the image names of "train" or "val", without suffix."""
        return list(self._parts[split])

    @cached_property
    def _parts(self) -> dict[str, dict[str, SegmentationPart]]:
        splits = {"train": self.train, "val": self.val}
        return {split: parts_by_name(self.root, parts, self.img_suffix) for split, parts in splits.items()}

    def image(self, split: str, name: str) -> Path:
        return self.root / self._parts[split][name].image_dir / f"{name}{self.img_suffix}"

    def mask(self, split: str, name: str) -> Path:
        return self.root / self._parts[split][name].mask_dir / f"{name}{self.mask_suffix}"

    @property
    def labels(self) -> MaskLabels:
        return MaskLabels(len(self.classes), self.values)

    def read_mask(self, path: Path) -> np.ndarray:
        return self.labels.read(path)

    def check(self) -> None:
        """UserError unless every image and mask exists and no image is in both splits."""
        require_parts(self.name, self.root, (*self.train, *self.val))
        for split, parts in (("train", self.train), ("val", self.val)):
            self._check_split(split, parts)
        train, val = ({self.image(split, name): name for name in self.names(split)} for split in ("train", "val"))
        if shared := [train[path] for path in train.keys() & val.keys()]:
            raise UserError(
                f"{self.name} at {self.root}: {len(shared)} images are listed in both train and val, "
                f"as {min(shared)}; every validation image must be new to the head"
            )

    def _check_split(self, split: str, parts: Sequence[SegmentationPart]) -> None:
        by_name = self._parts[split]
        if not by_name:
            where = parts[0].list_file or f"{parts[0].image_dir} (files ending in {self.img_suffix})"
            raise UserError(f"{self.name} at {self.root}: no {split} images in {where}")
        for part in parts:
            names = {name for name, its_part in by_name.items() if its_part == part}
            for folder, suffix in ((part.image_dir, self.img_suffix), (part.mask_dir, self.mask_suffix)):
                # One listing of the folder: asking for each file is slow on network file systems.
                if missing := sorted(names - set(names_with_suffix(files_in(self.root / folder), suffix))):
                    raise UserError(
                        f"{self.name} at {self.root}: {len(missing)} of {len(by_name)} {split} files are missing in "
                        f"{folder}, the first is {missing[0]}{suffix}; unpack the archive again"
                    )


def require_parts(name: str, root: Path, parts: Sequence[SegmentationPart]) -> None:
    """UserError unless the parts' folders and lists exist."""
    for part in parts:
        for needed in filter(None, (part.image_dir, part.mask_dir, part.list_file)):
            if not (root / needed).exists():
                raise UserError(f"{name} at {root}: {needed} is missing; data/README.md has the layout of each dataset")


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) of a folder and of all below it; links are followed.

    UserError for a folder that cannot be read, and for a link to a folder that contains it.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        for link in (path for name in folders if os.path.islink(path := os.path.join(place, name))):
            if os.path.realpath(link) in [os.path.realpath(above) for above in (Path(place), *Path(place).parents)]:
                raise UserError(f"{link} is a link to a folder that contains it, so its images never end; remove it")
        yield place, files


def files_in(folder: Path) -> list[str]:
    """Return every file below `folder`, relative to it. Raises as `walk` does."""
    paths = []
    for place, files in walk(folder):
        inner = f"{os.path.relpath(place, folder)}/".removeprefix("./")
        paths += [inner + file for file in files]
    return paths


def names_with_suffix(files: list[str], suffix: str) -> list[str]:
    """Return the files that end in `suffix`, without it; hidden ones are left out."""
    return [
        file[: -len(suffix)] for file in files if file.endswith(suffix) and not file.rpartition("/")[2].startswith(".")
    ]
