"""A part of the training images, from a text file: one file name or path under train/ a line.

The published 1 % and 10 % lists of ImageNet have names as n01440764_10026.JPEG; n01440764/n01440764_10026.JPEG is read
as well, with train/ before it or not. Nothing is guessed: a line without its image, or two lines of one image, stop.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.images import ImageList
from eval.splits import subset
from runtime.errors import UserError

SHOWN = 3  # examples in a message


def read_lines(path: str | Path) -> list[str]:
    """The lines of a list; UserError where there is none, or one stands twice."""
    file = Path(path).expanduser()
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"config: subset = {path} cannot be read ({error}); expected a text file with an image a line"
        ) from error
    lines = [line for line in lines if line]
    if not lines:
        raise UserError(f"config: subset = {path} is empty; expected an image a line, as n01440764_10026.JPEG")
    if len(set(lines)) < len(lines):
        twice = [line for line, count in Counter(lines).items() if count > 1]
        raise UserError(f"subset {path}: {len(twice)} lines stand more than once, as {twice[:SHOWN]}; remove them")
    return lines


def digest(path: str | Path) -> str:
    """SHA-256 of the sorted lines: what of a list, wherever it lies, decides a result."""
    return hashlib.sha256("\n".join(sorted(read_lines(path))).encode()).hexdigest()


@dataclass(frozen=True)
class Subset:
    """The images of a list, in the order of the dataset."""

    name: str
    images: ImageList
    per_class: list[int]  # images of each class that has any

    def described(self) -> dict[str, object]:
        """For result.json."""
        return {
            "subset": self.name,
            "subset_images": len(self.images),
            "subset_classes": len(self.per_class),
            "subset_images_per_class": [min(self.per_class), max(self.per_class)],
        }


def take_subset(path: str | Path, train: ImageList, classes: Sequence[str], folder: Path) -> Subset:
    """The images of train, which lie in `folder`, that the list at `path` names.

    UserError for a line that names none, or more than one.
    """
    lines = read_lines(path)
    wanted = {_inside_train(line): line for line in lines}
    found: dict[str, list[int]] = {}
    names = [str(image)[len(f"{folder}/") :] for image in train.paths]
    for index, under in enumerate(names):
        for name in {under, under.rpartition("/")[2]}:
            if name in wanted:
                found.setdefault(name, []).append(index)
    _refuse_unclear(str(path), names, wanted, found, len(lines))
    numbers = sorted(index for indices in found.values() for index in indices)
    chosen = subset(train, numbers)
    counts = [0] * len(classes)
    for label in chosen.labels or []:
        counts[label] += 1
    return Subset(Path(path).stem, chosen, [count for count in counts if count])


def _inside_train(line: str) -> str:
    return line.removeprefix("./").removeprefix("train/")


def _refuse_unclear(
    path: str, names: Sequence[str], wanted: dict[str, str], found: dict[str, list[int]], lines: int
) -> None:
    unknown = [line for name, line in wanted.items() if name not in found]
    if unknown:
        raise UserError(
            f"subset {path}: {len(unknown)} of {lines} lines name no training image, as {unknown[:SHOWN]}; "
            f"expected names as {names[0].rpartition('/')[2]} or {names[0]}"
        )
    several = [name for name, indices in found.items() if len(indices) > 1]
    if several:
        first = [names[i] for i in found[several[0]][:2]]
        raise UserError(
            f"subset {path}: {len(several)} lines fit several images, as {several[0]!r}: {first}; "
            "write the path under train/"
        )
    if len({index for indices in found.values() for index in indices}) < lines:
        raise UserError(f"subset {path}: some lines name the same image by different paths; name each once")
