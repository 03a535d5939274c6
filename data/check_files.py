"""Checks of a dataset's files: counts, damage, sizes, labels, orientation tags, and overlap of the splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from data.catalog import Dataset
from data.images import Header, ImageList, read_header, read_image
from data.layout import SegmentationLayout, files_in, mode_fault, names_with_suffix, size_fault
from runtime.device import available_cores
from runtime.errors import UserError

T = TypeVar("T")

SHOWN = 3  # examples of one kind of problem
STATS = 20_000  # training files whose sizes are read; of a larger set, a sample and those with the name of a val image
SPLITS = ("train", "val")
ILSVRC2012 = {"train": 1_281_167, "val": 50_000}


@dataclass
class Findings:
    """`lines` describe the dataset, `notes` say what may surprise the user, `problems` must be solved."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add_problem(self, what: str, examples: Sequence[object]) -> None:
        """Add one kind of problem with its examples, if there are any."""
        if examples:
            more = ", ..." if len(examples) > SHOWN else ""
            self.problems.append(f"{len(examples)} {what}: {', '.join(map(str, examples[:SHOWN]))}{more}")

    def join(self, other: Findings) -> None:
        self.lines += other.lines
        self.notes += other.notes
        self.problems += other.problems


def check_images(dataset: Dataset, samples: int | None) -> Findings:
    """Check counts, readability and overlap, of `samples` files of each split or of all (None)."""
    findings, lists = Findings(), {split: dataset.images(split) for split in SPLITS}
    for split, images in lists.items():
        findings.lines.append(f"{split}: {counts(images, dataset.classes)}")
        if note := images.describe_left_out():
            findings.notes.append(f"{split}: {note}")
        expected = ILSVRC2012[split]
        if dataset.name == "imagenet" and len(images) != expected:
            findings.lines.append(f"{split}: note that ImageNet-1k (ILSVRC 2012) has {expected:,} images")
    for split, images in lists.items():
        chosen = sample(images.paths, samples)
        findings.add_problem(f"unreadable of {len(chosen)} {split} images read", unreadable(chosen))
        findings.notes += tagged(f"{split} images", _try_each(read_header, chosen))
        findings.lines.append(f"{split}: read {len(chosen):,} images")
    findings.join(check_overlap(lists["train"].paths, lists["val"].paths, samples))
    return findings


def counts(images: ImageList, classes: Sequence[str]) -> str:
    """As "5,000 images in 10 classes, 480 to 530 (median 500) a class"."""
    if images.labels is None:
        return f"{len(images):,} images without class labels"
    number = Counter(images.labels)
    each = [number[label] for label in range(len(classes))]
    return (
        f"{len(images):,} images in {len(each)} classes, {min(each)} to {max(each)} (median {median(each):g}) a class"
    )


def sample(paths: Sequence[Path], count: int | None) -> list[Path]:
    """Return `count` of the paths (None: all), from the whole list, and the same ones every time."""
    if count is None or count >= len(paths):
        return list(paths)
    chosen = np.random.default_rng(0).choice(len(paths), count, replace=False)
    return [paths[index] for index in sorted(chosen.tolist())]


def _try_each(read: Callable[[Path], T], paths: Iterable[Path]) -> dict[Path, T | str]:
    """Return what `read` gives for each file, or the message of its UserError without the advice; in threads."""

    def attempt(path: Path) -> T | str:
        try:
            return read(path)
        except UserError as error:
            return str(error).partition(". Replace")[0]

    paths = list(paths)
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(paths, pool.map(attempt, paths), strict=True))


def _messages(results: Mapping[Path, object]) -> list[str]:
    return [result for result in results.values() if isinstance(result, str)]


def unreadable(paths: Sequence[Path]) -> list[str]:
    """Return the errors of those images that cannot be read."""

    def read(path: Path) -> None:  # and do not keep the pixels
        read_image(path)

    return _messages(_try_each(read, paths))


def tagged(what: str, headers: Mapping[Path, Header | str]) -> list[str]:
    """Return a note if files ask to be rotated or mirrored."""
    tags = {path: header.orientation for path, header in headers.items() if isinstance(header, Header)}
    turned = [f"{path} (tag {tag})" for path, tag in tags.items() if tag != 1]
    if not turned:
        return []
    return [
        f"{len(turned)} of {len(headers)} {what} carry an EXIF orientation tag, which every stage ignores: pixels are "
        f"taken as they are stored, and masks must match those: {', '.join(turned[:SHOWN])}"
    ]


def check_overlap(train: Sequence[Path], val: Sequence[Path], samples: int | None) -> Findings:
    """Look for images that are in both splits, by path (links followed) and by content."""
    findings, train_paths = Findings(), set(_real_paths(train))
    findings.add_problem("files are both in train and val", [path for path in _real_paths(val) if path in train_paths])
    chosen, others = sample(val, samples), list(train)
    if samples is not None and len(train) > STATS:
        names = {path.name for path in chosen}
        others = [path for path in train if path.name in names] + sample(train, samples)
    pairs = same_content(chosen, others)
    findings.add_problem("val images are also in train, by content", [f"{one} = {other}" for one, other in pairs])
    compared = "all" if len(others) == len(train) else "those of the same name and a sample, in all"
    findings.lines.append(f"overlap: compared {len(chosen):,} val images with {compared} {len(others):,} of train")
    return findings


def _real_paths(paths: Sequence[Path]) -> list[str]:
    """Follow links to folders; the file system is asked once for each folder."""
    real: Callable[[str], str] = cache(os.path.realpath)
    return [f"{real(folder)}/{name}" for folder, name in map(os.path.split, paths)]


def same_content(ones: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Return (one, other) pairs of equal files. Only files of equal size are read; unreadable ones are left out."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, size in _sizes(ones):
        by_size[size].append(path)
    suspicious = [(path, size) for path, size in _sizes(others) if size in by_size]
    hashes: dict[bytes, Path] = {}
    for size in {size for _, size in suspicious}:
        hashes |= {_digest(path): path for path in by_size[size]}
    pairs = [(hashes.get(_digest(path)), path) for path, _ in suspicious]
    return [(one, other) for one, other in pairs if one is not None and one != other]


def _sizes(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        try:
            yield path, path.stat().st_size
        except OSError:
            continue


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.urandom(32)  # equals nothing


def check_masks(layout: SegmentationLayout, samples: int | None) -> Findings:
    """Check every header, and the labels and overlap of `samples` files of each split or of all (None).

    That every listed image and mask exists was checked when the dataset was opened.
    """
    findings = Findings()
    for split in SPLITS:
        findings.join(_check_split(layout, split, samples))
    train, val = ([layout.image(split, name) for name in layout.names(split)] for split in SPLITS)
    findings.join(check_overlap(train, val, samples))
    return findings


def _check_split(layout: SegmentationLayout, split: str, samples: int | None) -> Findings:
    images = {layout.mask(split, name): layout.image(split, name) for name in layout.names(split)}  # by mask
    mask_headers, image_headers = _try_each(read_header, images), _try_each(read_header, images.values())
    bad_masks, bad_sizes, fitting = _compare_headers(images, mask_headers, image_headers)
    masks = sample(fitting, samples)
    labels = _try_each(lambda mask: _count_labels(layout, mask), masks)
    counted = [result for result in labels.values() if not isinstance(result, str)]
    findings = Findings(notes=tagged(f"{split} images", image_headers) + tagged(f"{split} masks", mask_headers))
    bad_images = _messages(image_headers) + unreadable([images[mask] for mask in masks])
    findings.add_problem(f"{split} images that cannot be read", bad_images)
    findings.add_problem(f"{split} masks that cannot be read", bad_masks + _messages(labels))
    findings.add_problem(f"{split} masks of another size than their image", bad_sizes)
    no_class = f"{split} masks with values that are no class ({layout.labels.allowed})"
    findings.add_problem(no_class, [fault for _, fault in counted if fault])
    findings.lines.append(f"{split}: {len(images):,} images with masks; read {len(masks):,} of them")
    if counted:
        findings.join(_describe_labels(layout, split, np.array([pixels for pixels, _ in counted])))
    return findings


def _compare_headers(
    images: Mapping[Path, Path], mask_headers: Mapping[Path, Header | str], image_headers: Mapping[Path, Header | str]
) -> tuple[list[str], list[str], list[Path]]:
    """Return (what is wrong with masks themselves, what with their sizes, masks that fit their image)."""
    bad_masks, bad_sizes, fitting = [], [], []
    for mask, header in mask_headers.items():
        image = image_headers[images[mask]]
        if isinstance(header, str):
            bad_masks.append(header)
        elif fault := mode_fault(header.mode):
            bad_masks.append(f"{mask} {fault}")
        elif isinstance(image, Header):
            if fault := size_fault((header.height, header.width), (image.height, image.width)):
                bad_sizes.append(f"{mask} {fault}")
            else:
                fitting.append(mask)
    return bad_masks, bad_sizes, fitting


def _count_labels(layout: SegmentationLayout, mask: Path) -> tuple[np.ndarray, str]:
    """Return (pixels of each label (256,), which labels are wrong) of a mask."""
    labels = layout.read_mask(mask)
    fault = layout.labels.fault(labels)
    return np.bincount(labels.ravel(), minlength=256), f"{mask} {fault}" if fault else ""


def _describe_labels(layout: SegmentationLayout, split: str, pixels: np.ndarray) -> Findings:
    """Describe the labels of masks; pixels (masks, 256) of each."""
    total, ignored = pixels.sum(0), pixels[:, layout.ignore_index]
    seen, share = np.count_nonzero(total[: len(layout.classes)]), 100 * ignored.sum() / total.sum()
    whole = np.count_nonzero(ignored == pixels.sum(1))
    more = f"; {whole} masks are ignored whole" if whole else ""
    line = f"{split}: {seen} of {len(layout.classes)} classes seen, {share:.1f} % of the pixels ignored{more}"
    problems = [] if seen else [f"all pixels of the {len(pixels)} {split} masks read are ignored"]
    return Findings([line], problems=problems)


def check_strays(layout: SegmentationLayout) -> Findings:
    """Look for masks that belong to no image."""
    findings = Findings()
    for image_dir, mask_dir in sorted({(part.image_dir, part.mask_dir) for part in (*layout.train, *layout.val)}):
        images = set(names_with_suffix(files_in(layout.root / image_dir), layout.img_suffix))
        masks = set(names_with_suffix(files_in(layout.root / mask_dir), layout.mask_suffix))
        findings.add_problem(f"masks in {mask_dir} have no image in {image_dir}", sorted(masks - images))
    return findings
