"""A cache of a dataset's training images: decoded and reduced once, then read through a memory map.

    python -m data.cache imagenet --short-side 256 data.root=/path/to/imagenet --workers 8
    python -m data.cache imagenet --short-side 256 data.root=/path/to/imagenet --check  # every checksum

Pretraining with `views.short_side=256` uses it in place of the files: the same pixels, hence the same run. Linear and
kNN evaluations use a cache of unreduced images (--short-side 0) for train. It is in $VICREGL_DATA/raw (or
data/cache/raw) and takes 3 bytes a pixel: about 330 GB for ImageNet at 256. An interrupted build continues where it
stopped. A cache whose source files have changed is refused. Its folder contains

    pixels.bin   the images one after another, (H, W, 3) uint8
    index.bin    one row an image, little-endian int64: offset, height, width, CRC-32; written after the pixels
    source.json  what it was made from: dataset, root, short side, number and digest of the files
    done.json    bytes, and the index's checksum; written last, so its presence means complete
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from data.catalog import Dataset, open_dataset
from data.config import DataConfig, check_short_side, data_root
from data.images import Pixels
from data.store import FileSource, ImageStore, decoded_bytes
from runtime import config as configs
from runtime import files
from runtime.console import make_parser
from runtime.device import available_cores
from runtime.errors import BusyError, UserError, run_command
from runtime.progress import describe_seconds

FORMAT = 1
Index = npt.NDArray[np.int64]  # (images, 4): offset, height, width, checksum
ROW_BYTES = 32
_SPOT_CHECKS = 32  # images whose checksums are verified each time a cache is opened
_CHUNK = 64  # images between two syncs to the disk: at most these are decoded again after an interruption


def cache_folder(dataset: Dataset, short_side: int) -> Path:
    root = configs.identity_hash(str(dataset.root.resolve()))
    return data_root() / "raw" / f"{dataset.name}-{short_side}-{root}"


def open_source(dataset: Dataset, short_side: int) -> FileSource | CacheReader:
    """Return a reader of the training images: of their cache if there is one, else of the files.

    Raises UserError for a cache that is incomplete or damaged, or whose files have changed.
    """
    if cache_folder(dataset, short_side).is_dir():
        return CacheReader(dataset, short_side)
    return FileSource(dataset.images("train"), short_side)


def open_store(dataset: Dataset, short_side: int, on_bad_image: str, memory_bytes: int = 1 << 30) -> ImageStore:
    """Return the training images, from `open_source`."""
    return ImageStore(dataset.images("train"), on_bad_image, memory_bytes, open_source(dataset, short_side))


def open_unreduced(dataset: Dataset) -> CacheReader | None:
    """Return the cache of unreduced training images, whose pixels are those of the files; None if there is none.

    Raises as `open_source`.
    """
    return CacheReader(dataset, 0) if cache_folder(dataset, 0).is_dir() else None


class CacheReader:
    """Reads images by number from a complete cache."""

    def __init__(self, dataset: Dataset, short_side: int) -> None:
        self.folder = cache_folder(dataset, short_side)
        self.paths = dataset.images("train").paths
        self._pixels: Pixels | None = None
        repeat = f"python -m data.cache {dataset.name} --short-side {short_side} data.root={dataset.root} makes it"
        done = files.read_json_object(self.folder / "done.json")
        if done is None:
            raise UserError(f"the cache {self.folder} is not finished; {repeat}")
        refuse_other_source(self.folder, describe_source(dataset, short_side))
        self.index = read_index(self.folder)
        complete = zlib.crc32(self.index.tobytes()) == done["index_checksum"]
        if not complete or (self.folder / "pixels.bin").stat().st_size != done["bytes"]:
            raise UserError(f"the cache {self.folder} is damaged; remove the folder, and {repeat}")
        for number in np.linspace(0, len(self.index) - 1, _SPOT_CHECKS).astype(int).tolist():
            self.check(number)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pixels": None}  # each worker maps the file itself

    def __call__(self, number: int) -> Pixels:
        offset, height, width, _ = self.index[number].tolist()
        if height == 0:
            raise UserError(f"the image {self.paths[number]} could not be decoded when {self.folder} was made")
        if self._pixels is None:
            # "c": writable in memory, as torch requires of arrays, but never in the file
            self._pixels = np.asarray(np.memmap(self.folder / "pixels.bin", np.uint8, mode="c"))
        return self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)

    def select(self, paths: Sequence[Path]) -> CachedPart | None:
        """Return a reader of these training images, by their number in `paths`; None for images of another split."""
        numbers = {path: number for number, path in enumerate(self.paths)}
        return CachedPart(self, [numbers[path] for path in paths]) if numbers.keys() >= set(paths) else None

    def check(self, number: int) -> None:
        """Raise UserError if the pixels of an image are not those that were written."""
        if self.index[number, 1] and checksum(self(number)) != self.index[number, 3]:
            raise UserError(
                f"the cache {self.folder} is damaged: the pixels of {self.paths[number]} have another checksum; "
                "remove the folder and make it again"
            )


@dataclass(frozen=True)
class CachedPart:
    """Reads some of a cache's images."""

    cache: CacheReader
    numbers: list[int]

    def __call__(self, number: int) -> Pixels:
        return self.cache(self.numbers[number])


def describe_source(dataset: Dataset, short_side: int) -> dict[str, Any]:
    """Return source.json; its digest is over the name, size and modification time of every file (or shard)."""
    images, digest = dataset.images("train"), hashlib.sha256()
    paths = images.paths if images.shards is None else images.shards.paths
    parts = [paths[start : start + 1000] for start in range(0, len(paths), 1000)]
    with ThreadPoolExecutor(16) as pool:  # a network file system is slow for one request, but takes many at once
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


def refuse_other_source(folder: Path, source: dict[str, Any]) -> None:
    """Raise UserError if a cache was made from other files than there are now."""
    made_from = files.read_json_object(folder / "source.json") or {}
    changed = [f"{key} was {made_from.get(key)!r}" for key in source if made_from.get(key) != source[key]]
    if changed:
        raise UserError(
            f"the cache {folder} was made from other files than {source['root']} has now ({', '.join(changed)}); "
            "remove the folder and make it again"
        )


def read_index(folder: Path) -> Index:
    """Return the complete rows of index.bin."""
    content = (folder / "index.bin").read_bytes() if (folder / "index.bin").exists() else b""
    return np.frombuffer(content[: len(content) // ROW_BYTES * ROW_BYTES], "<i8").reshape(-1, 4)


def checksum(image: Pixels) -> int:
    return zlib.crc32(np.ascontiguousarray(image).data)


def build(dataset: Dataset, short_side: int, workers: int, skip_bad: bool) -> Path:
    """Make the cache, or continue an interrupted build, and return its folder.

    Raises UserError for an unreadable image (unless they are skipped), for changed files and for a disk that is too
    small; BusyError if another process is making it.
    """
    folder = cache_folder(dataset, short_side)
    files.make_folder(folder, "keep caches elsewhere: VICREGL_DATA=FOLDER in the environment")
    with files.lock(folder / "lock", wait=False) as held:
        if not held:
            raise BusyError(f"{folder} is being made by another process; wait for it")
        source = describe_source(dataset, short_side)
        if (folder / "source.json").exists():
            refuse_other_source(folder, source)
        else:
            files.write_json(folder / "source.json", source)
        if not (folder / "done.json").exists():
            _write_images(folder, FileSource(dataset.images("train"), short_side), workers, skip_bad)
            size = (folder / "pixels.bin").stat().st_size
            index_checksum = zlib.crc32(read_index(folder).tobytes())
            files.write_json(folder / "done.json", {"bytes": size, "index_checksum": index_checksum})
    return folder


def _write_images(folder: Path, source: FileSource, workers: int, skip_bad: bool) -> None:
    index, count = _drop_incomplete(folder), len(source.images)
    end, first, started = _end(index), len(index), time.monotonic()
    printed = started
    _refuse_small_disk(folder, source, 1 - first / count)

    def decode(number: int) -> Pixels:
        try:
            return np.ascontiguousarray(source(number))
        except UserError as error:
            if not skip_bad:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            return np.empty((0, 0, 3), np.uint8)

    with (
        open(folder / "pixels.bin", "ab") as pixel_file,
        open(folder / "index.bin", "ab") as index_file,
        ThreadPoolExecutor(workers) as pool,
    ):
        for start in range(first, count, _CHUNK):
            stop, rows = min(start + _CHUNK, count), []
            for image in pool.map(decode, range(start, stop)):
                rows.append((end, *image.shape[:2], checksum(image)))
                end += image.nbytes
                pixel_file.write(image.data)
            _sync(pixel_file)  # before the index, whose rows must never refer to pixels that a crash has lost
            index_file.write(np.array(rows, "<i8").tobytes())
            _sync(index_file)
            if (now := time.monotonic()) - printed > 10 or stop == count:
                printed, rate = now, (stop - first) / max(now - started, 1e-9)
                left = describe_seconds((count - stop) / rate)
                print(f"{stop}/{count} images, {end / 1e9:.1f} GB, {rate:.0f} images/s, {left} left", flush=True)


def _drop_incomplete(folder: Path) -> Index:
    """Cut off what an interrupted build wrote only in part; return the index of what is complete."""
    index, pixels = read_index(folder), folder / "pixels.bin"
    size = pixels.stat().st_size if pixels.exists() else 0
    index = index[index[:, 0] + index[:, 1] * index[:, 2] * 3 <= size]  # some disks lose pixels that were synced
    if pixels.exists():
        os.truncate(pixels, _end(index))
    if (folder / "index.bin").exists():
        os.truncate(folder / "index.bin", len(index) * ROW_BYTES)
    return index


def _end(index: Index) -> int:
    """Return the offset after the last image."""
    return int(index[-1, 0] + index[-1, 1] * index[-1, 2] * 3) if len(index) else 0


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _refuse_small_disk(folder: Path, source: FileSource, share: float) -> None:
    needed = decoded_bytes(source.images, source.short_side) * share
    advice = "set VICREGL_DATA to a larger disk, or choose a smaller --short-side"
    files.require_space(folder, needed, "the cache", advice)


def main(argv: Sequence[str]) -> None:
    parser = make_parser("data.cache", __doc__)
    parser.add_argument("dataset", help="a name, as data.name in a config")
    parser.add_argument("--short-side", type=int, required=True, help="pixels, as views.short_side; 0: unchanged")
    parser.add_argument("--workers", type=int, default=available_cores(), help="threads")
    parser.add_argument("--on-bad-image", choices=("stop", "skip"), default="stop")
    parser.add_argument("--check", action="store_true", help="verify every checksum of a finished cache")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value of the dataset, as data.root=/path")
    arguments = configs.parse_command(parser, argv)
    check_short_side(arguments.short_side)
    changes = [override.removeprefix("data.") for override in arguments.overrides]
    config = configs.load(DataConfig, None, [f"name={arguments.dataset}", *changes])
    dataset = open_dataset(config)
    if arguments.check:
        cache = CacheReader(dataset, arguments.short_side)
        for number in range(len(cache.index)):
            cache.check(number)
        print(f"{cache.folder}: {len(cache.index)} images, all checksums match")
        return
    folder = build(dataset, arguments.short_side, arguments.workers, arguments.on_bad_image == "skip")
    print(f"{folder} is complete; pretraining with views.short_side={arguments.short_side} reads it")


if __name__ == "__main__":
    run_command(main)
