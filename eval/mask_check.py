"""The masks of a segmentation dataset: their values, sizes and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from data.layout import SegmentationLayout, files_in, strip
from eval.findings import SPLITS, Findings, check_overlap, sample, unreadable
from runtime.errors import UserError


@dataclass
class MaskCounts:
    """What the masks of one split hold, and what is wrong with some of them."""

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of each value
    broken: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    ignored: int = 0  # masks of which nothing counts

    def add(self, layout: SegmentationLayout, image: Path, mask: Path) -> None:
        try:
            labels = layout.read_mask(mask)
            with Image.open(image) as opened:
                width, height = opened.size
        except (UserError, OSError, ValueError, SyntaxError) as error:
            self.broken.append(f"{mask} ({error})")
            return
        if labels.shape != (height, width):
            self.sizes.append(f"{mask} is {labels.shape[1]} x {labels.shape[0]}, its image {width} x {height}")
        pixels = np.bincount(labels.ravel(), minlength=256)
        unknown = [v for v in np.flatnonzero(pixels) if v >= len(layout.classes) and v != layout.ignore_index]
        if unknown:
            self.values.append(f"{mask} holds {', '.join(map(str, unknown[:5]))}")
        self.ignored += int(pixels[layout.ignore_index] == labels.size)
        self.pixels += pixels


def check_masks(layout: SegmentationLayout, samples: int | None) -> Findings:
    """Counts, values, sizes and overlap; of every mask where `samples` is None, else of so many a split.

    That each listed image and its mask are there was checked when the dataset was opened.
    """
    found = Findings()
    paths = {split: [layout.image(split, name) for name in layout.names(split)] for split in SPLITS}
    for split in SPLITS:
        found.join(_check_split(layout, split, samples))
        found.several(f"{split} images that cannot be read", unreadable(sample(paths[split], samples)))
    found.join(check_overlap(paths["train"], paths["val"], samples))
    return found


def _check_split(layout: SegmentationLayout, split: str, samples: int | None) -> Findings:
    found, counts, names = Findings(), MaskCounts(), layout.names(split)
    masks = sample([layout.mask(split, name) for name in names], samples)
    images = {layout.mask(split, name): layout.image(split, name) for name in names}
    for mask in masks:
        counts.add(layout, images[mask], mask)
    top = len(layout.classes) - 1
    found.several(f"{split} masks that cannot be read", counts.broken)
    found.several(f"{split} masks of another size than their image", counts.sizes)
    allowed = f"0 to {top}, and {layout.ignore_index} for ignored"
    found.several(f"{split} masks with values that are no class ({allowed})", counts.values)
    found.lines.append(f"{split}: {len(names):,} images with masks; read {len(masks):,} of them")
    if total := int(counts.pixels.sum()):
        seen = np.count_nonzero(counts.pixels[: len(layout.classes)])
        share = 100 * counts.pixels[layout.ignore_index] / total
        nothing = f"; {counts.ignored} masks are ignored whole" if counts.ignored else ""
        found.lines.append(
            f"{split}: {seen} of {len(layout.classes)} classes seen, {share:.1f} % of the pixels ignored{nothing}"
        )
        if seen == 0:
            found.problems.append(f"all pixels of the {len(masks)} {split} masks read are ignored")
    return found


def check_strays(layout: SegmentationLayout) -> Findings:
    """Masks in the folders that belong to no image."""
    found = Findings()
    for files in {layout.train, layout.val}:
        images = set(strip(files_in(layout.root / files.image_dir), layout.img_suffix))
        masks = set(strip(files_in(layout.root / files.mask_dir), layout.mask_suffix))
        found.several(f"masks in {files.mask_dir} have no image in {files.image_dir}", sorted(masks - images))
    return found
