"""A segmentation dataset as files: which image belongs to which mask, and which class a mask's value means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from data.compose import IGNORE
from runtime.errors import UserError


@dataclass(frozen=True)
class SegmentationSplit:
    """Folders relative to the dataset's root. The mask of IMAGE_DIR/<name><suffix> is MASK_DIR/<name><suffix>."""

    image_dir: str
    mask_dir: str
    list_file: str = ""  # one name a line, without suffix; empty: every image in image_dir, at any depth


@dataclass(frozen=True)
class SegmentationLayout:
    """Images and single-channel masks of 8 bits.

    `values` maps a mask's values to indices into `classes` where the file holds others (Cityscapes' label ids, ADE20K's
    unlabelled 0): 256 numbers, IGNORE for what counts for nothing. Without it a value is the class.
    """

    name: str
    root: Path
    train: SegmentationSplit
    val: SegmentationSplit
    classes: list[str]
    palette: list[list[int]]  # (red, green, blue) of each class
    img_suffix: str = ".jpg"
    mask_suffix: str = ".png"
    values: tuple[int, ...] | None = None
    ignore_index: int = IGNORE

    def split(self, split: str) -> SegmentationSplit:
        """Of "train" or "val"."""
        return {"train": self.train, "val": self.val}[split]

    def names(self, split: str) -> list[str]:
        """Image names of "train" or "val": what the list says, or the files' paths, sorted; without suffix."""
        return self._names[split]

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        return {split: self._read_names(self.split(split)) for split in ("train", "val")}

    def _read_names(self, split: SegmentationSplit) -> list[str]:
        if split.list_file:
            return (self.root / split.list_file).read_text(encoding="utf-8").split()
        return sorted(strip(files_in(self.root / split.image_dir), self.img_suffix))

    def image(self, split: str, name: str) -> Path:
        return self.root / self.split(split).image_dir / f"{name}{self.img_suffix}"

    def mask(self, split: str, name: str) -> Path:
        return self.root / self.split(split).mask_dir / f"{name}{self.mask_suffix}"

    def read_mask(self, path: Path) -> np.ndarray:
        """The mask of a file as classes, (H, W) uint8. UserError where it is no single-channel image of 8 bits."""
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise UserError(
                    f"{path} is an image of mode {image.mode}, and a mask is expected: one channel of 8 bits "
                    "(palette or gray) whose values are classes"
                )
            raw = np.array(image)
        return raw if self.values is None else np.array(self.values, np.uint8)[raw]

    def check(self) -> None:
        """UserError unless every image and mask is there and no image is in both splits."""
        for split in ("train", "val"):
            self._check_split(split)
        if self.train.image_dir == self.val.image_dir and (shared := set(self.names("train")) & set(self.names("val"))):
            raise UserError(
                f"{self.name} at {self.root}: {len(shared)} images are listed in both train and val, "
                f"as {min(shared)}; every validation image must be new to the head"
            )

    def _check_split(self, split: str) -> None:
        files = self.split(split)
        for part in filter(None, (files.image_dir, files.mask_dir, files.list_file)):
            if not (self.root / part).exists():
                raise UserError(f"{self.name} at {self.root}: {part} is missing; see README for the layout")
        if not (names := self.names(split)):
            where = files.list_file or f"{files.image_dir} (files ending in {self.img_suffix})"
            raise UserError(f"{self.name} at {self.root}: no {split} images in {where}")
        for folder, suffix in ((files.image_dir, self.img_suffix), (files.mask_dir, self.mask_suffix)):
            there = set(strip(files_in(self.root / folder), suffix))
            if missing := sorted(set(names) - there):
                raise UserError(
                    f"{self.name} at {self.root}: {len(missing)} of {len(names)} {split} files are missing in "
                    f"{folder}, the first is {missing[0]}{suffix}; unpack the archive again"
                )


def files_in(folder: Path) -> list[str]:
    """Every file below `folder`, relative to it. One listing a folder: asking for files one by one is slow on network
    file systems."""
    found = []
    for where, _, files in os.walk(folder, followlinks=True):
        inner = os.path.relpath(where, folder)
        found += files if inner == "." else [f"{inner}/{file}" for file in files]
    return found


def strip(files: list[str], suffix: str) -> list[str]:
    """Those of the files that end in `suffix`, without it; hidden ones are left out."""
    return [
        file[: -len(suffix)] for file in files if file.endswith(suffix) and not file.rpartition("/")[2].startswith(".")
    ]
