"""The raw cache: the pixels of the files, complete after any interruption, refused if it is damaged or outdated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data import cache
from data.cache import CacheReader, cache_folder, open_source
from data.catalog import Dataset, open_dataset
from data.config import DataConfig, ViewsConfig
from data.images import read_image, shrink
from data.loader import PretrainLoader
from data.store import FileSource, ImageStore
from runtime.errors import BusyError, UserError

VIEWS = ViewsConfig(large_size=16, short_side=20)


@pytest.fixture(autouse=True)
def one_place(tmp_path: Path, folder_of_60: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of each test in a folder of its own; small chunks, so that 60 images are several."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "caches"))
    monkeypatch.setattr(cache, "_CHUNK", 8)


@pytest.fixture
def dataset(folder_of_60: DataConfig) -> Dataset:
    return open_dataset(folder_of_60)


def opened(dataset: Dataset, short_side: int = 20) -> FileSource | CacheReader:
    return open_source(dataset, short_side)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("short_side", [20, 0])
def test_it_holds_the_pixels_of_the_files(dataset: Dataset, short_side: int) -> None:
    paths = dataset.images("train").paths
    assert isinstance(opened(dataset, short_side), FileSource)
    cache.build(dataset, short_side, workers=2, skip_bad=False)
    source = opened(dataset, short_side)
    assert isinstance(source, CacheReader)
    for number, path in enumerate(paths):
        expected = shrink(read_image(path), short_side)
        assert expected.shape[0] == (short_side or 32)
        assert np.array_equal(source(number), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_with_it_gets_the_same_batches(folder_of_60: DataConfig, dataset: Dataset, workers: int) -> None:
    """Whether a machine has the cache cannot change a result."""

    def batches() -> list[list[torch.Tensor]]:
        loader = PretrainLoader(open_dataset(folder_of_60), VIEWS, lambda side: (2, 2), 10, 0, workers, memory_bytes=0)
        return [batch.tensors() for batch in loader.batches(0, 8)]

    from_files = batches()
    folder = cache.build(dataset, 20, workers=1, skip_bad=False)
    before = content(folder)
    for one, other in zip(from_files, batches(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))
    assert content(folder) == before


class BuildInterruptedError(Exception):
    pass


def interrupt_at(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a build where it would decode that image."""
    decode = FileSource.__call__

    def until(source: FileSource, asked: int) -> np.ndarray:
        if asked == number:
            raise BuildInterruptedError
        return decode(source, asked)

    monkeypatch.setattr(FileSource, "__call__", until)


@pytest.mark.parametrize("torn", ["nothing", "pixels", "index", "index ahead"])
def test_an_interrupted_build_continues(dataset: Dataset, monkeypatch: pytest.MonkeyPatch, torn: str) -> None:
    """It ends with the same bytes, whichever of the two files a crash left incomplete."""
    whole = cache.build(dataset, 20, workers=1, skip_bad=False)
    expected = content(whole)
    shutil.rmtree(whole)
    with monkeypatch.context() as patch:
        interrupt_at(29, patch)
        with pytest.raises(BuildInterruptedError):
            cache.build(dataset, 20, workers=1, skip_bad=False)
    assert len(cache.read_index(whole)) == 24
    with pytest.raises(UserError, match=r"is not finished; python -m data\.cache"):
        opened(dataset)
    if torn == "pixels":
        with open(whole / "pixels.bin", "ab") as file:
            file.write(b"half an image")
    elif torn == "index":
        with open(whole / "index.bin", "ab") as file:
            file.write(b"half a row")
    elif torn == "index ahead":
        os.truncate(whole / "pixels.bin", 20 * 20 * 3 * 20 + 7)
    asked = []
    decode = FileSource.__call__
    monkeypatch.setattr(FileSource, "__call__", lambda source, n: (asked.append(n), decode(source, n))[1])
    cache.build(dataset, 20, workers=1, skip_bad=False)
    assert content(whole) == expected
    assert min(asked) == (20 if torn == "index ahead" else 24)  # finished images are not decoded again


@pytest.mark.parametrize("change", ["content", "touched", "added", "removed", "renamed"])
def test_changed_files_are_refused(folder_of_60: DataConfig, change: str) -> None:
    dataset = open_dataset(folder_of_60)
    cache.build(dataset, 20, workers=1, skip_bad=False)
    victim = dataset.images("train").paths[17]
    if change == "content":
        victim.write_bytes(dataset.images("train").paths[18].read_bytes())
    elif change == "touched":
        os.utime(victim, (1, 1))
    elif change == "added":
        shutil.copy(victim, victim.with_name("another.png"))
    elif change == "removed":
        victim.unlink()
    else:
        victim.rename(victim.with_name("zzz.png"))
    for use in (
        lambda: opened(open_dataset(folder_of_60)),
        lambda: cache.build(open_dataset(folder_of_60), 20, 1, skip_bad=False),
    ):
        with pytest.raises(UserError, match="made from other files"):
            use()


@pytest.mark.parametrize("spoil", ["first image", "any image", "index", "truncated"])
def test_damage_is_reported(folder_of_60: DataConfig, dataset: Dataset, spoil: str) -> None:
    folder = cache.build(dataset, 20, workers=1, skip_bad=False)
    file = folder / ("index.bin" if spoil == "index" else "pixels.bin")
    data = bytearray(file.read_bytes())
    data[{"first image": 5, "any image": 2 * 1200 + 5, "index": 40, "truncated": 0}[spoil]] ^= 1
    file.write_bytes(data[:-1] if spoil == "truncated" else data)
    if spoil == "any image":
        opened(dataset)  # tries the index and every other of the images
    else:
        with pytest.raises(UserError, match="is damaged"):
            opened(dataset)
    check = ["imagefolder", "--short-side", "20", "--check", f"data.root={folder_of_60.root}"]
    with pytest.raises(UserError, match=dataset.images("train").paths[2].name if spoil == "any image" else "damaged"):
        cache.main(check)


def test_the_command_makes_and_checks_it(folder_of_60: DataConfig, dataset: Dataset, capsys) -> None:
    arguments = ["imagefolder", "--short-side", "20", f"root={folder_of_60.root}"]
    with pytest.raises(UserError, match=r"short_side = 5"):
        cache.main(["imagefolder", "--short-side", "5", f"root={folder_of_60.root}"])
    cache.main(arguments)
    cache.main([*arguments, "--check"])
    assert "60 images, all checksums match" in capsys.readouterr().out
    before = content(cache_folder(dataset, 20))
    cache.main(arguments)  # again: nothing to do
    assert content(cache_folder(dataset, 20)) == before


def test_unreadable_images_stop_it_or_are_left_out(folder_of_60: DataConfig, dataset: Dataset) -> None:
    images = dataset.images("train")
    images.paths[11].write_bytes(b"no image")
    with pytest.raises(UserError, match=images.paths[11].name):
        cache.build(dataset, 20, workers=2, skip_bad=False)
    cache.build(dataset, 20, workers=2, skip_bad=True)
    source = opened(dataset)
    with pytest.raises(UserError, match=images.paths[11].name):
        source(11)
    store = ImageStore(images, "skip", 0, source)
    assert store.read(11)[0] == 12
    assert store.skipped == {11}
    loader = PretrainLoader(dataset, VIEWS, lambda side: (2, 2), 59, 0, on_bad_image="skip")
    assert loader.skipped == {11}


def test_two_builders_at_once_and_a_full_disk_are_refused(dataset: Dataset, monkeypatch) -> None:
    folder = cache_folder(dataset, 20)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
        with pytest.raises(UserError, match="GB more and the disk has 0 GB"):
            cache.build(dataset, 20, 1, skip_bad=False)
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(folder / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(BusyError, match="another process"):
            cache.build(dataset, 20, 1, skip_bad=False)
        other.communicate(b"\n")
    cache.build(dataset, 20, 1, skip_bad=False)
