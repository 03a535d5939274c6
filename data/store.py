"""Decoded images by number: read from files or shards, kept in memory where they are few."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from data.images import ImageList, Pixels, shrink
from runtime.errors import UserError


@dataclass(frozen=True)
class FileSource:
    """Reads images by number from their files. Raises UserError for one that cannot be read."""

    images: ImageList
    short_side: int = 0  # pixels, as for `shrink`

    def __call__(self, number: int) -> Pixels:
        return shrink(self.images.read(number), self.short_side)


class ImageStore:
    """Decoded images by number: a small set is decoded at once and kept, a large one is read as needed.

    `source` gives the image of a number of `images`; by default it reads the file.
    """

    def __init__(
        self,
        images: ImageList,
        on_bad_image: str = "stop",
        memory_bytes: int = 1 << 30,
        source: Callable[[int], Pixels] | None = None,
    ) -> None:
        self.images = images
        self.skipped: set[int] = set()  # numbers of unreadable images, among all that were given
        self._source = source or FileSource(images)
        self._skip = on_bad_image == "skip"
        self._kept: list[Pixels] | None = None
        if decoded_bytes(images) <= memory_bytes:
            self._keep_all()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        return self._kept is not None

    def _keep_all(self) -> None:
        """Read every image now, so that a bad one stops (or is dropped) before training starts."""
        read = {number: self._try(number) for number in range(len(self))}
        kept = {number: image for number, image in read.items() if image is not None}
        self._kept = list(kept.values())
        if self.skipped:
            self.images = self.images.select(list(kept))

    def _try(self, number: int) -> Pixels | None:
        """Read an image; None, and a note of its number, if it is unreadable and such images are skipped."""
        try:
            return self._source(number)
        except UserError:
            if not self._skip:
                raise
            self.skipped.add(number)
            return None

    def read(self, index: int) -> tuple[int, Pixels]:
        """Return (number, image): the requested one, or the next readable one if bad images are skipped."""
        if self._kept is not None:
            return index, self._kept[index]
        for step in range(len(self)):
            number = (index + step) % len(self)
            if (image := self._try(number)) is not None:
                return number, image
        raise UserError(f"none of the {len(self)} images can be read; the first is {self.images.paths[0]}")


def decoded_bytes(images: ImageList, short_side: int = 0, samples: int = 64) -> float:
    """Estimate the bytes of the decoded (and reduced) images from a few headers; 0 if none can be read."""
    sizes = []
    for number in range(0, len(images), max(1, len(images) // samples)):
        with suppress(UserError):
            header = images.header(number)
            scale = min(1.0, short_side / min(header.height, header.width)) if short_side else 1.0
            sizes.append(3 * header.height * header.width * scale**2)
    # With an estimate of 0, a set without a readable header is read, and refused, at once.
    return len(images) * float(np.mean(sizes)) if sizes else 0.0
