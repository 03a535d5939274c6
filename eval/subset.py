"""A part of the training images, from a text file: one file name or path under train/ a line.

The published 1 % and 10 % lists of ImageNet have names as n01440764_10026.JPEG; n01440764/n01440764_10026.JPEG is read
as well, with train/ before it or not. Nothing is guessed: a line without its image, or two lines of one image, stop the
evaluation. Names of images in shards are compared without suffixes: who makes shards may write .jpg for .JPEG.
Light: a config's identity has the digest of its list.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    from data.images import ImageList

MAX_EXAMPLES = 3  # in a message


def read_lines(path: str | Path) -> list[str]:
    """Read the lines of a list; UserError where there is none, or one is repeated."""
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
    if repeated := [line for line, count in Counter(lines).items() if count > 1]:
        raise UserError(f"subset {path}: {len(repeated)} lines are repeated, as {repeated[:MAX_EXAMPLES]}; remove them")
    return lines


def digest(path: str | Path) -> str:
    """Return the SHA-256 of the sorted lines: all of a list that decides a result."""
    return hashlib.sha256("\n".join(sorted(read_lines(path))).encode()).hexdigest()


@dataclass(frozen=True)
class Subset:
    """The images of a list, in the order of the dataset."""

    name: str
    images: ImageList
    per_class: list[int]  # images of each class that has any

    def describe(self) -> dict[str, object]:
        """Return the entries of result.json."""
        return {
            "subset": self.name,
            "subset_images": len(self.images),
            "subset_classes": len(self.per_class),
            "subset_images_per_class": [min(self.per_class), max(self.per_class)],
        }


def select_subset(path: str | Path, train: ImageList, folder: Path) -> Subset:
    """Select the images of train, which are in `folder`, that the list at `path` names.

    UserError for a line that names none, or more than one.
    """
    listed = read_lines(path)

    def key(name: str) -> str:
        return name if train.shards is None else os.path.splitext(name)[0]

    lines = {key(line.removeprefix("./").removeprefix("train/")): line for line in listed}
    matches: dict[str, list[int]] = {}
    names = train.names(folder)
    for index, under_train in enumerate(names):
        for name in {key(under_train), key(under_train.rpartition("/")[2])} & lines.keys():
            matches.setdefault(name, []).append(index)
    _require_one_image_each(str(path), names, lines, matches, len(listed))
    images = train.select(sorted(index for indices in matches.values() for index in indices))
    return Subset(Path(path).stem, images, list(Counter(images.labels or []).values()))


def _require_one_image_each(
    path: str, names: Sequence[str], lines: dict[str, str], matches: dict[str, list[int]], count: int
) -> None:
    """UserError unless the `count` lines and their images are pairs; `lines` and `matches` are by name under train/."""
    if unknown := [line for name, line in lines.items() if name not in matches]:
        raise UserError(
            f"subset {path}: {len(unknown)} of {count} lines name no training image, as {unknown[:MAX_EXAMPLES]}; "
            f"expected names as {names[0].rpartition('/')[2]} or {names[0]}"
        )
    if ambiguous := [name for name, indices in matches.items() if len(indices) > 1]:
        images = [names[index] for index in matches[ambiguous[0]][:2]]
        raise UserError(
            f"subset {path}: {len(ambiguous)} lines fit several images, as {ambiguous[0]!r}: {images}; "
            "write the path under train/"
        )
    if len({index for indices in matches.values() for index in indices}) < count:
        raise UserError(f"subset {path}: some lines name the same image by different paths; name each once")
