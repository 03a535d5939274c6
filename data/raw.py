"""Reads the raw copies of datasets that data.cache makes.

A folder of it holds
    pixels.bin   the images, one after the other, (H, W, 3) uint8
    index.bin    a row an image, little-endian int64: offset, height, width, CRC-32; written after the pixels
    source.json  what it is made from: dataset, root, short side, number and digest of the files
    done.json    bytes, and the index's checksum; written last, so that its presence means whole
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data.catalog import Dataset
from data.images import FileSource, ImageList, Pixels
from data.place import data_root
from runtime import config as configs
from runtime import files
from runtime.errors import UserError

FORMAT = 1
Index = npt.NDArray[np.int64]  # (images, 4): offset, height, width, checksum
ROW_BYTES = 32
_SPOT_CHECKS = 32  # images whose checksums are tried whenever a cache is opened


def cache_folder(dataset: Dataset, short_side: int) -> Path:
    """Where the cache of a dataset's training images at that size lies, or would."""
    root = configs.identity_hash(str(dataset.root.resolve()))
    return data_root() / "raw" / f"{dataset.name}-{short_side}-{root}"


def open_source(dataset: Dataset, images: ImageList, short_side: int) -> FileSource | CachedSource:
    """Where to read a dataset's training images: its cache, if one was made, else the files.

    Raises UserError for a cache that is not finished, damaged, or of files that have changed.
    """
    folder = cache_folder(dataset, short_side)
    return (
        CachedSource(folder, dataset, images, short_side) if folder.is_dir() else FileSource(images.paths, short_side)
    )


class CachedSource:
    """The image of a number, from the cache."""

    def __init__(self, folder: Path, dataset: Dataset, images: ImageList, short_side: int) -> None:
        self.folder = folder
        self.paths = images.paths
        self._pixels: Pixels | None = None
        done = files.read_json(folder / "done.json")
        if done is None:
            raise UserError(f"the cache {folder} is not finished; {_repeat(dataset, short_side)}")
        refuse_another_source(folder, describe(dataset, images, short_side))
        self.index = read_index(folder)
        index_is_whole = zlib.crc32(self.index.tobytes()) == done["index_checksum"]
        if not index_is_whole or (folder / "pixels.bin").stat().st_size != done["bytes"]:
            raise UserError(f"the cache {folder} is damaged; remove the folder, and {_repeat(dataset, short_side)}")
        for number in np.linspace(0, len(self.index) - 1, _SPOT_CHECKS).astype(int).tolist():
            self.check(number)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # a worker maps the file itself

    def __call__(self, number: int) -> Pixels:
        offset, height, width, _ = self.index[number].tolist()
        if height == 0:
            raise UserError(f"the image {self.paths[number]} could not be decoded when {self.folder} was made")
        if self._pixels is None:
            # "c": writable in memory, as torch wants its arrays, never in the file
            self._pixels = np.asarray(np.memmap(self.folder / "pixels.bin", np.uint8, mode="c"))
        return self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)

    def check(self, number: int) -> None:
        """Raises UserError where the pixels of an image are not those that were written."""
        if self.index[number, 1] and checksum(self(number)) != self.index[number, 3]:
            raise UserError(
                f"the cache {self.folder} is damaged: the pixels of {self.paths[number]} have another checksum; "
                "remove the folder and make it again"
            )


def _repeat(dataset: Dataset, short_side: int) -> str:
    return f"python -m data.cache {dataset.name} --short-side {short_side} root={dataset.root} makes it"


def describe(dataset: Dataset, images: ImageList, short_side: int) -> dict[str, Any]:
    """source.json: the digest is of the name, size and time of change of every file."""
    digest = hashlib.sha256()
    parts = [images.paths[start : start + 1000] for start in range(0, len(images), 1000)]
    with ThreadPoolExecutor(16) as pool:  # a network file system answers one question slowly and many at once
        for lines in pool.map(lambda part: _stamp(part, dataset.root), parts):
            digest.update(lines)
    return {
        "format": FORMAT,
        "dataset": dataset.name,
        "root": str(dataset.root.resolve()),
        "short_side": short_side,
        "images": len(images),
        "digest": digest.hexdigest(),
    }


def _stamp(paths: Sequence[Path], root: Path) -> bytes:
    lines = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error
        lines.append(f"{path.relative_to(root)}\t{status.st_size}\t{status.st_mtime_ns}\n")
    return "".join(lines).encode()


def refuse_another_source(folder: Path, source: dict[str, Any]) -> None:
    """Raises UserError where a cache was made from other files than there are now."""
    made_from = files.read_json(folder / "source.json") or {}
    if made_from == source:
        return
    changed = ", ".join(f"{key} was {made_from.get(key)!r}" for key in source if made_from.get(key) != source[key])
    raise UserError(
        f"the cache {folder} was made from other files than {source['root']} holds now ({changed}); "
        "remove the folder and make it again"
    )


def read_index(folder: Path) -> Index:
    """The whole rows of index.bin."""
    content = (folder / "index.bin").read_bytes() if (folder / "index.bin").exists() else b""
    return np.frombuffer(content[: len(content) // ROW_BYTES * ROW_BYTES], "<i8").reshape(-1, 4)


def checksum(image: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)
