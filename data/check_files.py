"""Checks of a dataset's files: counts, damage, sizes, labels, orientation tags, and overlap of the splits."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np

from data.catalog import Dataset
from data.images import Header, ImageList, read_header
from data.layout import SegmentationLayout, files_in, mode_fault, names_with_suffix, size_fault
from runtime.device import available_cores
from runtime.errors import UserError

T = TypeVar("T")
K = TypeVar("K")

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
        if images.shards is not None:
            shards, first = images.shards.paths, dataset.classes[0]
            findings.lines.append(f"{split}: in {len(shards):,} shards from {shards[0].name}; label 0 is class {first}")
        if note := images.describe_left_out():
            findings.notes.append(f"{split}: {note}")
        expected = ILSVRC2012[split]
        if dataset.name == "imagenet" and len(images) != expected:
            findings.lines.append(f"{split}: note that ImageNet-1k (ILSVRC 2012) has {expected:,} images")
    for split, images in lists.items():
        chosen = images.select(sample(range(len(images)), samples))
        findings.add_problem(f"unreadable of {len(chosen)} {split} images read", unreadable(chosen))
        headers = _try_each(chosen.header, range(len(chosen))).values()
        findings.notes += tagged(f"{split} images", dict(zip(chosen.paths, headers, strict=True)))
        findings.lines.append(f"{split}: read {len(chosen):,} images")
    findings.join(check_overlap(lists["train"], lists["val"], samples))
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


def sample(items: Sequence[T], count: int | None) -> list[T]:
    """Return `count` of the items (None: all), from the whole list, and the same ones every time."""
    if count is None or count >= len(items):
        return list(items)
    chosen = np.random.default_rng(0).choice(len(items), count, replace=False)
    return [items[index] for index in sorted(chosen.tolist())]


def _try_each(read: Callable[[K], T], items: Iterable[K]) -> dict[K, T | str]:
    """Return what `read` gives for each item, or the message of its UserError without the advice; in threads."""

    def attempt(item: K) -> T | str:
        try:
            return read(item)
        except UserError as error:
            return str(error).partition(". Replace")[0]

    items = list(items)
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(items, pool.map(attempt, items), strict=True))


def _messages(results: Mapping[Any, object]) -> list[str]:
    return [result for result in results.values() if isinstance(result, str)]


def unreadable(images: ImageList) -> list[str]:
    """Return the errors of those images that cannot be read."""

    def read(number: int) -> None:  # and do not keep the pixels
        images.read(number)

    return _messages(_try_each(read, range(len(images))))


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


def check_overlap(train: ImageList, val: ImageList, samples: int | None) -> Findings:
    """Look for images that are in both splits, by path (links followed) and by content."""
    findings, train_paths = Findings(), set(_real_paths(train.paths))
    shared = [path for path in _real_paths(val.paths) if path in train_paths]
    findings.add_problem("files are both in train and val", shared)
    chosen, others = val.select(sample(range(len(val)), samples)), train
    if samples is not None and len(train) > STATS:
        names = {path.name for path in chosen.paths}
        same_name = [number for number, path in enumerate(train.paths) if path.name in names]
        others = train.select(same_name + sample(range(len(train)), samples))
    pairs = same_content(chosen, others)
    findings.add_problem("val images are also in train, by content", [f"{one} = {other}" for one, other in pairs])
    compared = "all" if len(others) == len(train) else "those of the same name and a sample, in all"
    findings.lines.append(f"overlap: compared {len(chosen):,} val images with {compared} {len(others):,} of train")
    return findings


def _real_paths(paths: Sequence[Path]) -> list[str]:
    """Follow links to folders; the file system is asked once for each folder."""
    real: Callable[[str], str] = cache(os.path.realpath)
    return [f"{real(folder)}/{name}" for folder, name in map(os.path.split, paths)]


def same_content(ones: ImageList, others: ImageList) -> list[tuple[Path, Path]]:
    """Return (one, other) pairs of equal files. Only files of equal size are read; unreadable ones are left out."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for number, size in _sizes(ones):
        by_size[size].append(number)
    suspicious = [(number, size) for number, size in _sizes(others) if size in by_size]
    hashes: dict[bytes, Path] = {}
    for size in {size for _, size in suspicious}:
        hashes |= {_digest(ones, number): ones.paths[number] for number in by_size[size]}
    pairs = [(hashes.get(_digest(others, number)), others.paths[number]) for number, _ in suspicious]
    return [(one, other) for one, other in pairs if one is not None and one != other]


def _sizes(images: ImageList) -> Iterator[tuple[int, int]]:
    """Yield (number, bytes) of each image whose size can be read."""
    if images.shards is not None:
        yield from enumerate(images.shards.places[:, 2].tolist())
        return
    for number, path in enumerate(images.paths):
        with suppress(OSError):
            yield number, path.stat().st_size


def _digest(images: ImageList, number: int) -> bytes:
    try:
        return hashlib.sha256(images.content(number)).digest()
    except UserError:
        return os.urandom(32)  # equals nothing


def check_masks(layout: SegmentationLayout, samples: int | None) -> Findings:
    """Check every header, and the labels and overlap of `samples` files of each split or of all (None).

    That every listed image and mask exists was checked when the dataset was opened.
    """
    findings = Findings()
    for split in SPLITS:
        findings.join(_check_split(layout, split, samples))
    train, val = (ImageList([layout.image(split, name) for name in layout.names(split)], None) for split in SPLITS)
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
    bad_images = _messages(image_headers) + unreadable(ImageList([images[mask] for mask in masks], None))
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
