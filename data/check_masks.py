"""The masks of a segmentation dataset: their values, sizes and images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.check_images import SPLITS, Findings, briefly, check_overlap, read_headers, sample, tagged, unreadable
from data.images import Header
from data.layout import SegmentationLayout, files_in, mode_fault, size_fault, strip
from runtime.errors import UserError


@dataclass
class MaskCounts:
    """What the masks of one split hold, and what is wrong with some of them and of their images."""

    layout: SegmentationLayout
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of each value
    images: list[str] = field(default_factory=list)  # unreadable ones
    broken: list[str] = field(default_factory=list)
    sizes: list[str] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    ignored: int = 0  # masks of which nothing counts

    def headers_fit(self, mask: Path, image: Path, of_mask: Header | str, of_image: Header | str) -> bool:
        """Whether both files have a header, the mask's is that of a mask, and of its image's size."""
        if isinstance(of_image, str):
            self.images.append(of_image)
        if isinstance(of_mask, str):
            self.broken.append(of_mask)
        elif fault := mode_fault(of_mask.mode):
            self.broken.append(f"{mask} {fault}")
        elif isinstance(of_image, Header):
            if fault := size_fault((of_mask.height, of_mask.width), (of_image.height, of_image.width)):
                self.sizes.append(f"{mask} {fault}")
            return not fault
        return False

    def read(self, mask: Path) -> None:
        try:
            labels = self.layout.read_mask(mask)
        except UserError as error:
            self.broken.append(briefly(error))
            return
        if fault := self.layout.labels.fault(labels):
            self.values.append(f"{mask} {fault}")
        pixels = np.bincount(labels.ravel(), minlength=256)
        self.ignored += int(pixels[self.layout.ignore_index] == labels.size)
        self.pixels += pixels


def check_masks(layout: SegmentationLayout, samples: int | None) -> Findings:
    """Every header; counts, values and overlap of every mask where `samples` is None, else of so many a split.

    That each listed image and its mask are there was checked when the dataset was opened.
    """
    found = Findings()
    for split in SPLITS:
        found.join(_check_split(layout, split, samples))
    paths = {split: [layout.image(split, name) for name in layout.names(split)] for split in SPLITS}
    found.join(check_overlap(paths["train"], paths["val"], samples))
    return found


def _check_split(layout: SegmentationLayout, split: str, samples: int | None) -> Findings:
    found, counts = Findings(), MaskCounts(layout)
    images = {layout.mask(split, name): layout.image(split, name) for name in layout.names(split)}  # by mask
    of_masks, of_images = read_headers(list(images)), read_headers(list(images.values()))
    found.notes += tagged(f"{split} images", of_images) + tagged(f"{split} masks", of_masks)
    fit = [mask for mask, image in images.items() if counts.headers_fit(mask, image, of_masks[mask], of_images[image])]
    masks = sample(fit, samples)
    for mask in masks:
        counts.read(mask)
    counts.images += unreadable([images[mask] for mask in masks])
    found.several(f"{split} images that cannot be read", counts.images)
    found.several(f"{split} masks that cannot be read", counts.broken)
    found.several(f"{split} masks of another size than their image", counts.sizes)
    found.several(f"{split} masks with values that are no class ({layout.labels.allowed})", counts.values)
    found.lines.append(f"{split}: {len(images):,} images with masks; read {len(masks):,} of them")
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
    for image_dir, mask_dir in sorted({(part.image_dir, part.mask_dir) for part in (*layout.train, *layout.val)}):
        images = set(strip(files_in(layout.root / image_dir), layout.img_suffix))
        masks = set(strip(files_in(layout.root / mask_dir), layout.mask_suffix))
        found.several(f"masks in {mask_dir} have no image in {image_dir}", sorted(masks - images))
    return found
