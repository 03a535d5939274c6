"""A raw copy of a dataset's training images: decoded and reduced once, then read through a memory map.

    python -m data.cache imagenet --short-side 256 root=/path/to/imagenet --workers 8
    python -m data.cache imagenet --short-side 256 root=/path/to/imagenet --check    # every byte against its checksum

Pretraining with `views.short_side=256` finds it and reads it instead of the files: the same pixels, hence the same run.
It lies in $VICREGL_DATA/raw (or data/cache/raw) and takes 3 bytes a pixel: about 330 GB for ImageNet at 256. A build
that was interrupted goes on where it stopped. A cache whose source files changed is refused.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from data.catalog import Dataset, open_dataset
from data.config import DataConfig, check_short_side
from data.images import FileSource, ImageList, Pixels, decoded_bytes
from data.raw import (
    ROW_BYTES,
    CachedSource,
    Index,
    cache_folder,
    checksum,
    describe,
    read_index,
    refuse_another_source,
)
from runtime import config as configs
from runtime import files
from runtime.errors import BusyError, UserError, run_command
from runtime.progress import describe_seconds

_CHUNK = 64  # images between two syncs to the disk: at most these are decoded again after an interruption


def build(dataset: Dataset, short_side: int, workers: int, skip_bad: bool) -> Path:
    """Make the cache, or go on with it. Returns its folder.

    Raises UserError for an unreadable image (unless they are skipped), changed files and a disk that is too small;
    BusyError where another process makes it.
    """
    images = dataset.images("train")
    folder = cache_folder(dataset, short_side)
    files.make_folder(folder, "keep caches elsewhere: VICREGL_DATA=FOLDER in the environment")
    with files.lock(folder / "lock", wait=False) as held:
        if not held:
            raise BusyError(f"{folder} is being made by another process; wait for it")
        source = describe(dataset, images, short_side)
        if (folder / "source.json").exists():
            refuse_another_source(folder, source)
        else:
            files.write_json(folder / "source.json", source)
        if not (folder / "done.json").exists():
            _write_images(folder, images, FileSource(images.paths, short_side), workers, skip_bad)
            size = (folder / "pixels.bin").stat().st_size
            index_checksum = zlib.crc32(read_index(folder).tobytes())
            files.write_json(folder / "done.json", {"bytes": size, "index_checksum": index_checksum})
    return folder


def _write_images(folder: Path, images: ImageList, source: FileSource, workers: int, skip_bad: bool) -> None:
    index = recover(folder)
    end = _end(index)
    _refuse_a_small_disk(folder, images, source.short_side, len(index))

    def decode(number: int) -> Pixels:
        try:
            return np.ascontiguousarray(source(number))
        except UserError as error:
            if not skip_bad:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            return np.empty((0, 0, 3), np.uint8)

    progress = _Progress(len(index), len(images))
    with (
        open(folder / "pixels.bin", "ab") as pixel_file,
        open(folder / "index.bin", "ab") as index_file,
        ThreadPoolExecutor(workers) as pool,
    ):
        for start in range(len(index), len(images), _CHUNK):
            numbers = range(start, min(start + _CHUNK, len(images)))
            rows = []
            for image in pool.map(decode, numbers):
                rows.append((end, *image.shape[:2], checksum(image)))
                end += image.nbytes
                pixel_file.write(image.data)
            _sync(pixel_file)
            index_file.write(np.array(rows, "<i8").tobytes())
            _sync(index_file)
            progress.tell(numbers.stop, end)


def recover(folder: Path) -> Index:
    """The images that an interrupted build has finished; what was half written after them is cut off."""
    index, pixels = read_index(folder), folder / "pixels.bin"
    size = pixels.stat().st_size if pixels.exists() else 0
    index = index[index[:, 0] + index[:, 1] * index[:, 2] * 3 <= size]  # after a power failure rows may be ahead
    if pixels.exists():
        os.truncate(pixels, _end(index))
    if (folder / "index.bin").exists():
        os.truncate(folder / "index.bin", len(index) * ROW_BYTES)
    return index


def _end(index: Index) -> int:
    return int(index[-1, 0] + index[-1, 1] * index[-1, 2] * 3) if len(index) else 0


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _refuse_a_small_disk(folder: Path, images: ImageList, short_side: int, done: int) -> None:
    needed = decoded_bytes(images.paths, short_side) * (1 - done / len(images))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder} will need about {needed / 1e9:.0f} GB more and the disk has {free / 1e9:.0f} GB free; "
            "set VICREGL_DATA to a larger disk, or choose a smaller --short-side"
        )


class _Progress:
    """A printed line every ten seconds and at the end."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.total = done, total
        self.started = self.printed = time.monotonic()

    def tell(self, done: int, size: int) -> None:
        now = time.monotonic()
        if now - self.printed < 10 and done < self.total:
            return
        self.printed = now
        rate = (done - self.first) / max(now - self.started, 1e-9)
        left = describe_seconds((self.total - done) / rate)
        print(f"{done}/{self.total} images, {size / 1e9:.1f} GB, {rate:.0f} images/s, {left} left", flush=True)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m data.cache", description="Keep a dataset's images decoded.")
    parser.add_argument("dataset", help="a name, as data.name of a config")
    parser.add_argument("--short-side", type=int, required=True, help="pixels, as views.short_side; 0: as they are")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads")
    parser.add_argument("--on-bad-image", choices=("stop", "skip"), default="stop")
    parser.add_argument("--check", action="store_true", help="read a finished cache against its checksums")
    parser.add_argument("overrides", nargs="*", help="key=value of the dataset, as root=/path")
    arguments = parser.parse_intermixed_args(argv)
    check_short_side(arguments.short_side)
    config = configs.load(DataConfig, None, [f"name={arguments.dataset}", *arguments.overrides])
    dataset = open_dataset(config)
    if arguments.check:
        cached = CachedSource(
            cache_folder(dataset, arguments.short_side), dataset, dataset.images("train"), arguments.short_side
        )
        for number in range(len(cached.index)):
            cached.check(number)
        print(f"{cached.folder}: {len(cached.index)} images as they were written")
        return
    folder = build(dataset, arguments.short_side, arguments.workers, arguments.on_bad_image == "skip")
    print(f"{folder} is whole; pretraining with views.short_side={arguments.short_side} reads it")


if __name__ == "__main__":
    run_command(main)
