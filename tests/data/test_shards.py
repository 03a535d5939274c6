"""Shards are the images of their folder: in its order, with its labels and bytes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import cache, record, shards
from data.cache import CacheReader, open_source
from data.catalog import open_dataset
from data.config import DataConfig, ViewsConfig
from data.loader import PretrainLoader
from runtime.errors import UserError
from tests.twins import FORMS, at, contents, opened, samples_of, write_parquet, write_shards, write_tar

pytestmark = pytest.mark.usefixtures("indexes")


@pytest.mark.parametrize("split", ["train", "val"])
def test_they_are_the_images_of_the_folder_in_its_order(twin: Path, image_folder: Path, split: str) -> None:
    assert contents(twin, split) == contents(image_folder, split)
    assert open_dataset(at(twin)).classes == open_dataset(at(image_folder)).classes
    names = ([path.name for path in opened(root, split).paths] for root in (twin, image_folder))
    assert next(names) == next(names)


@pytest.mark.parametrize(("workers", "memory"), [(0, 1 << 30), (0, 0), (2, 0)])
def test_a_run_with_them_gets_the_same_batches(twin: Path, image_folder: Path, workers: int, memory: int) -> None:
    """From any step on, so that a resumed run does, too."""
    views, first = ViewsConfig(large_size=16, short_side=20), 3

    def batches(root: Path, workers: int, memory: int) -> list[list[torch.Tensor]]:
        loader = PretrainLoader(open_dataset(at(root)), views, lambda side: (2, 2), 10, 0, workers, memory_bytes=memory)
        return [batch.tensors() for batch in loader.batches(first, 9)]

    pairs = zip(batches(image_folder, 0, 1 << 30), batches(twin, workers, memory), strict=True)
    assert all(torch.equal(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


def test_each_shard_is_indexed_once_and_again_when_it_changes(twin: Path, monkeypatch, capsys) -> None:
    before = contents(twin, "train")
    assert "indexing 3 shards, once" in capsys.readouterr().out
    made = []
    monkeypatch.setattr(shards, "_make", lambda shard, make=shards._make: (made.append(shard), make(shard))[1])
    assert contents(twin, "train") == before
    assert made == []
    changed = opened(twin).shards.paths[1]
    os.utime(changed, (1, 1))
    assert contents(twin, "train") == before
    assert made == [changed]
    files = list((twin.parent / "indexes" / "shards").iterdir())
    assert len([file for file in files if file.suffix == ".json"]) == 3
    assert not [file for file in files if file.suffix == ".tmp"]


@pytest.mark.parametrize("text", ["[]", "3", "{}"])
def test_an_index_that_is_damaged_is_made_again(twin: Path, text: str) -> None:
    before = contents(twin, "train")
    for index in (twin.parent / "indexes" / "shards").glob("*.json"):
        index.write_text(text)
    assert contents(twin, "train") == before


def test_an_interrupted_indexing_continues(twin: Path, monkeypatch) -> None:
    whole = contents(twin, "train")
    shutil.rmtree(twin.parent / "indexes")
    make = shards._make

    def until_the_last(shard: Path):
        if "2" in shard.stem.partition("-of-")[0]:
            raise KeyboardInterrupt
        return make(shard)

    monkeypatch.setattr(shards, "_make", until_the_last)
    with pytest.raises(KeyboardInterrupt):
        opened(twin)
    made = []
    monkeypatch.setattr(shards, "_make", lambda shard: (made.append(shard), make(shard))[1])
    assert contents(twin, "train") == whole
    assert len(made) == 1


@pytest.mark.parametrize("name", ["imagenet1k-{}-0000.tar", "data/{}-000.tar", "{}.tar"])
def test_shards_are_known_by_the_split_in_their_names(image_folder: Path, tmp_path: Path, name: str) -> None:
    for split, word in (("train", "train"), ("val", "validation")):
        write_tar(tmp_path / "named" / name.format(word), samples_of(image_folder / split))
    write_tar(tmp_path / "named" / "untrained-test-0000.tar", samples_of(image_folder / "val"))
    for split in ("train", "val"):
        assert contents(tmp_path / "named", split) == contents(image_folder, split)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", ["train_val_0.tar", "data/imagenet-validation-and-train.tar"])
def test_a_shard_named_for_both_splits_is_refused(image_folder: Path, tmp_path: Path, name: str, split: str) -> None:
    write_tar(tmp_path / "named" / name, samples_of(image_folder / "train"))
    with pytest.raises(UserError, match=r"the name of the shard .*\.tar is of train and of val; name one split"):
        opened(tmp_path / "named", split)


def test_folders_come_first(tars: Path, image_folder: Path) -> None:
    """Tars are often left beside the folders that they were unpacked to."""
    shutil.copytree(image_folder, tars, dirs_exist_ok=True)
    assert opened(tars).shards is None
    assert len(opened(tars)) == 48


def test_the_names_of_hugging_faces_imagenet_are_those_of_the_archive(image_folder: Path, tmp_path: Path) -> None:
    """With the synset at their end 10 would come before 1."""
    names = ["n01440764_10.JPEG", "n01440764_1.JPEG"]
    cells = [{"bytes": samples_of(image_folder / "train")[0][0].read_bytes(), "path": None} for _ in names]
    for cell, name in zip(cells, names, strict=True):
        cell["path"] = name.replace(".", "_n01440764.")
    for split in ("train", "val"):
        write_parquet(tmp_path / "hf" / f"{split}.parquet", [], features=False, image=cells, label=[0, 0])
    assert [path.name for path in opened(tmp_path / "hf").paths] == names[::-1]


def test_images_without_names_are_in_the_order_of_the_rows(image_folder: Path, tmp_path: Path) -> None:
    files = [file.read_bytes() for file, _ in samples_of(image_folder / "train")[:6]]
    for split in ("train", "val"):
        write_parquet(tmp_path / "plain" / f"{split}.parquet", [], features=False, image=files, label=[1, 0] * 3)
    assert contents(tmp_path / "plain", "train") == [(n, files[k]) for n in (0, 1) for k in range(6) if k % 2 == 1 - n]
    assert open_dataset(at(tmp_path / "plain")).classes == ["0", "1"]
    assert [path.name for path in opened(tmp_path / "plain").paths] == ["1", "3", "5", "0", "2", "4"]


def test_imagenet_has_its_thousand_classes(twin: Path) -> None:
    with pytest.raises(UserError, match="train holds 4 classes, expected 1000"):
        open_dataset(at(twin, "imagenet"))


def test_a_cache_of_them_gives_the_same_pixels_and_a_changed_shard_is_refused(twin: Path) -> None:
    dataset = open_dataset(at(twin))
    from_shards = open_source(dataset, 20)
    expected = [from_shards(number) for number in range(48)]
    cache.build(dataset, 20, workers=2, skip_bad=False)
    source = open_source(dataset, 20)
    assert isinstance(source, CacheReader)
    assert all(np.array_equal(source(number), pixels) for number, pixels in enumerate(expected))
    os.utime(dataset.images("train").shards.paths[0], (1, 1))
    with pytest.raises(UserError, match="made from other files"):
        open_source(open_dataset(at(twin)), 20)


@pytest.mark.parametrize("form", FORMS[:2])
def test_a_run_may_go_on_with_the_tars_of_its_folder(image_folder: Path, tmp_path: Path, form: str) -> None:
    """The record of a run's data is the same; of other images it is not."""
    twin = write_shards(image_folder, tmp_path / "twin", form)
    expected = record.digest(open_dataset(at(image_folder)), "train")
    assert record.digest(open_dataset(at(twin)), "train") == expected
    write_tar(twin / "train/000000.tar", samples_of(image_folder / "train")[3::3], form)
    assert record.digest(open_dataset(at(twin)), "train") != expected


def test_the_record_of_a_run_names_the_classes_of_the_labels(twin: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(twin))
    data = DataConfig(name="imagefolder")
    record.record_data(tmp_path, data, open_dataset(data), record.PRETRAINING)
    assert json.loads((tmp_path / record.FILE).read_text())["classes"] == [f"class{label}" for label in range(4)]


def test_an_image_is_decoded_as_from_its_file(twin: Path, image_folder: Path) -> None:
    for number in (0, 17, 47):
        pixels = opened(twin).read(number)
        assert np.array_equal(pixels, np.array(Image.open(opened(image_folder).paths[number])))
