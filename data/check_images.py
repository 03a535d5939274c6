"""What is found wrong with the images of a dataset, or told of them."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from data.catalog import Dataset
from data.images import Header, ImageList, read_header, read_image
from runtime.device import available_cores
from runtime.errors import UserError

SHOWN = 3  # examples of one kind of problem
STATS = 20_000  # training files whose sizes are asked for; of a larger set, those of suspicious names
SPLITS = ("train", "val")
ILSVRC2012 = {"train": 1_281_167, "val": 50_000}


@dataclass
class Findings:
    """`lines` tell what is there, `notes` what a user may not expect of it, `problems` what must not be."""

    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def several(self, what: str, examples: Sequence[object]) -> None:
        """A problem of that many examples; none where there are none."""
        if examples:
            more = ", ..." if len(examples) > SHOWN else ""
            self.problems.append(f"{len(examples)} {what}: {', '.join(map(str, examples[:SHOWN]))}{more}")

    def join(self, other: Findings) -> None:
        self.lines += other.lines
        self.notes += other.notes
        self.problems += other.problems


def check_images(dataset: Dataset, samples: int | None) -> Findings:
    """Counts, readability and overlap of the images; of every file where `samples` is None, else of so many a split."""
    found, lists = Findings(), {split: dataset.images(split) for split in SPLITS}
    for split, images in lists.items():
        found.lines.append(f"{split}: {counts(images, dataset.classes)}")
        if note := images.describe_left_out():
            found.notes.append(f"{split}: {note}")
        expected = ILSVRC2012[split]
        if dataset.name == "imagenet" and len(images) != expected:
            found.lines.append(f"{split}: note that ImageNet-1k (ILSVRC 2012) has {expected:,} images")
    for split, images in lists.items():
        chosen = sample(images.paths, samples)
        found.several(f"unreadable of {len(chosen)} {split} images read", unreadable(chosen))
        found.notes += tagged(f"{split} images", read_headers(chosen))
        found.lines.append(f"{split}: read {len(chosen):,} images")
    found.join(check_overlap(lists["train"].paths, lists["val"].paths, samples))
    return found


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
    """`count` of the paths (all for None), the same ones every time, from everywhere in the list."""
    if count is None or count >= len(paths):
        return list(paths)
    chosen = np.random.default_rng(0).choice(len(paths), count, replace=False)
    return [paths[index] for index in sorted(chosen.tolist())]


def unreadable(paths: Sequence[Path]) -> list[str]:
    """What is wrong with those of the images that cannot be read."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return [message for message in pool.map(_read_error, paths) if message]


def _read_error(path: Path) -> str | None:
    try:
        read_image(path)
    except UserError as error:
        return briefly(error)
    return None


def briefly(error: UserError) -> str:
    """What is wrong with a file, without the advice that follows."""
    return str(error).partition(". Replace")[0]


def read_headers(paths: Sequence[Path]) -> dict[Path, Header | str]:
    """The header of each file, or what is wrong with it."""
    with ThreadPoolExecutor(available_cores()) as pool:
        return dict(zip(paths, pool.map(_header_or_error, paths), strict=True))


def _header_or_error(path: Path) -> Header | str:
    try:
        return read_header(path)
    except UserError as error:
        return briefly(error)


def tagged(what: str, headers: Mapping[Path, Header | str]) -> list[str]:
    """A note where files ask for being turned or mirrored; none else."""
    tags = {path: head.orientation for path, head in headers.items() if isinstance(head, Header)}
    turned = [f"{path} (tag {tag})" for path, tag in tags.items() if tag != 1]
    if not turned:
        return []
    return [
        f"{len(turned)} of {len(headers)} {what} carry an EXIF orientation tag, which every stage ignores: pixels are "
        f"taken as they are stored, and masks must match those: {', '.join(turned[:SHOWN])}"
    ]


def check_overlap(train: Sequence[Path], val: Sequence[Path], samples: int | None) -> Findings:
    """Images that are in train and in val, by path (links followed) and by content."""
    found = Findings()
    known = set(real_paths(train))
    found.several("files are both in train and val", [path for path in real_paths(val) if path in known])
    chosen = sample(val, samples)
    others = list(train)
    if samples is not None and len(train) > STATS:
        names = {path.name for path in chosen}
        others = [path for path in train if path.name in names] + sample(train, samples)
    pairs = same_content(chosen, others)
    found.several("val images are also in train, by content", [f"{one} = {other}" for one, other in pairs])
    compared = "all" if len(others) == len(train) else "those of the same name and a sample, in all"
    found.lines.append(f"overlap: compared {len(chosen):,} val images with {compared} {len(others):,} of train")
    return found


def real_paths(paths: Sequence[Path]) -> Iterator[str]:
    """With links of folders followed; asked once a folder."""
    folders: dict[str, str] = {}
    for path in map(str, paths):
        folder, _, name = path.rpartition("/")
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        yield f"{folders[folder]}/{name}"


def same_content(ones: Sequence[Path], others: Sequence[Path]) -> list[tuple[Path, Path]]:
    """(one, other) pairs of equal files; only files of equal size are read. What cannot be read is left out."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path, size in sizes(ones):
        by_size[size].append(path)
    suspicious = [(path, size) for path, size in sizes(others) if size in by_size]
    hashes: dict[bytes, Path] = {}
    for size in {size for _, size in suspicious}:
        hashes |= {digest(path): path for path in by_size[size]}
    pairs = [(hashes.get(digest(path)), path) for path, _ in suspicious]
    return [(one, other) for one, other in pairs if one is not None and one != other]


def sizes(paths: Iterable[Path]) -> Iterator[tuple[Path, int]]:
    for path in paths:
        try:
            yield path, path.stat().st_size
        except OSError:
            continue


def digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return os.urandom(32)  # equal to nothing
