"""Shards are the images of their folder: in its order, with its labels and bytes; damage is reported by name."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import cache, check, record, shards
from data.cache import CacheReader, open_source
from data.catalog import open_dataset
from data.config import DataConfig, ViewsConfig
from data.loader import PretrainLoader
from runtime.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from twins import FORMS, add, samples_of, write_parquet, write_shards, write_tar


def at(root: Path, name: str = "imagefolder") -> DataConfig:
    return DataConfig(name=name, root=str(root))


def opened(root: Path, split: str = "train"):
    return open_dataset(at(root)).images(split)


def contents(root: Path, split: str) -> list[tuple[int, bytes]]:
    images = opened(root, split)
    return [(images.labels[number], images.content(number)) for number in range(len(images))]


@pytest.fixture(autouse=True)
def _indexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "indexes"))


@pytest.fixture(params=FORMS)
def twin(request, image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "twin", request.param)


@pytest.fixture
def tars(image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "tars", "tar")


@pytest.fixture
def tables(image_folder: Path, tmp_path: Path) -> Path:
    return write_shards(image_folder, tmp_path / "tables", "parquet")


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


def run_check(root: Path, tmp_path: Path, *arguments: str) -> None:
    check.main(["imagefolder", f"data.root={root}", "--out", str(tmp_path / "sheet.png"), *arguments])


def test_check_passes_and_counts(twin: Path, tmp_path: Path, capsys) -> None:
    run_check(twin, tmp_path)
    out = capsys.readouterr().out
    assert "train: 48 images in 4 classes, 12 to 12 (median 12) a class" in out
    assert "train: in 3 shards from " in out
    assert "label 0 is class class0" in out
    assert "no problem found" in out


@pytest.mark.parametrize("form", FORMS)
def test_check_names_a_bad_image_and_one_that_is_in_both_splits(image_folder: Path, tmp_path: Path, form: str) -> None:
    tree = Path(shutil.copytree(image_folder, tmp_path / "tree"))
    (tree / "train/class1/3.png").write_bytes(b"no image")
    shutil.copy(tree / "train/class2/5.png", tree / "val/class2/0.png")
    twin = write_shards(tree, tmp_path / "twin", form)
    with pytest.raises(UserError, match=r"(?s)1 unreadable of 48 .*3\.png.*1 val images .*0\.png = .*5\.png") as caught:
        run_check(twin, tmp_path)
    assert str(twin) in str(caught.value)


def start_of(shard: Path, member: int) -> int:
    with tarfile.open(shard) as tar:
        return tar.getmembers()[member].offset


def damage(shard: Path, kind: str) -> None:
    content = bytearray(shard.read_bytes())
    if kind in ("header", "cut off between members"):
        start = start_of(shard, 6)
        content[start] ^= 255
        content = content if kind == "header" else content[:start]
    if kind == "hole":
        content[start_of(shard, 6) : start_of(shard, 8)] = bytes(start_of(shard, 8) - start_of(shard, 6))
    if kind == "zeros to its end":  # as a download that was stopped leaves a file of the full size
        content[start_of(shard, 6) :] = bytes(1 << 21)
    content *= 2 if kind == "joined" else 1
    shard.write_bytes(content[: {"cut off": 5000, "empty": 0}.get(kind)])


TAR_DAMAGES = ["header", "cut off", "cut off between members", "empty", "hole", "zeros to its end", "joined"]


@pytest.mark.parametrize("kind", TAR_DAMAGES)
def test_a_broken_tar_is_named(tars: Path, kind: str) -> None:
    """Without a check Python's tarfile ends at damage, and the images after it would be missing silently."""
    damage(tars / "train/000001.tar", kind)
    with pytest.raises(UserError, match=r"shard .*train/000001\.tar.*opy it again"):
        opened(tars)


@pytest.mark.parametrize("kind", ["cut off", "empty"])
def test_a_broken_parquet_is_named(tables: Path, kind: str) -> None:
    damage(tables / "data/train-00001-of-00003.parquet", kind)
    with pytest.raises(UserError, match=r"cannot read the shard .*train-00001-of-00003\.parquet.*Copy it again"):
        opened(tables)
    assert not list((tables.parent / "indexes/shards").glob("train-00001*"))


def test_a_missing_shard_is_noticed_where_names_have_the_number(tables: Path) -> None:
    (tables / "data/train-00001-of-00003.parquet").unlink()
    with pytest.raises(UserError, match=r"holds 2 shards whose names promise 3; missing are 1, as number \[1\]"):
        opened(tables)


def test_two_sets_and_a_missing_split_are_refused(tars: Path, tables: Path) -> None:
    shutil.copytree(tables / "data", tars / "data")
    with pytest.raises(UserError, match=r"several sets of train shards: 3 \.tar files in .* and 3 \.parquet files"):
        opened(tars)
    shutil.rmtree(tars / "data")
    shutil.rmtree(tars / "val")
    with pytest.raises(UserError, match=r"holds no shards of val; expected val/\*\.tar or val/\*\.parquet"):
        opened(tars, "val")
    shutil.rmtree(tars / "train")
    (tars / "train").mkdir()
    with pytest.raises(UserError, match=r"train holds no class folders; expected one folder a class.*or shards"):
        opened(tars)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.png": b"", "b.txt": b"3"}, r"no class number of the image a; expected 0, 1, \.\.\. in a\.cls"),
        ({"a.png": b"", "a.cls": b"tench"}, "no class number of the image a"),
        ({"a.png": b"", "a.cls": b"-1"}, "no class number of the image a"),
        ({"a.png": b"", "a.json": b'{"class": 1}'}, "as label in a.json"),
        ({"a.png": b"", "a.json": b'{"label": 0.7}'}, "no class number of the image a"),
        ({"a.png": b"", "a.json": b'{"label": Infinity}'}, "no class number of the image a"),
        ({"a.png": b"", "a.jpg": b"", "a.cls": b"0"}, "two images of the name a"),
        ({"a.cls": b"0"}, "hold no image"),
        ({"a.png": b"", "a.cls": b"1"}, r"1 of 2 classes have no image \['0'\]"),
        ({"a.png": b"", "a.cls": b"7000000000"}, "labels are of no class"),
        ({f"{key}.{end}": b'{"filename": "x/1.png", "label": 0}' for key in "ab" for end in ("png", "json")}, "twice"),
    ],
)
def test_a_tar_without_what_it_needs(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    (tmp_path / "bad/train").mkdir(parents=True)
    with tarfile.open(tmp_path / "bad/train/0.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "bad")


def test_a_link_in_a_tar_is_no_image_that_is_left_out(image_folder: Path, tmp_path: Path) -> None:
    """As tar itself stores files that are linked to one another."""
    folder = Path(shutil.copytree(image_folder / "train/class0", tmp_path / "tree/class0"))
    os.link(folder / "0.png", folder / "linked.png")
    (tmp_path / "linked").mkdir()
    with tarfile.open(tmp_path / "linked/train.tar", "w") as tar:
        tar.add(folder, "class0")
    with pytest.raises(UserError, match="holds the link class0/"):
        opened(tmp_path / "linked")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": [0, None]}, "row 1 of the shard .* has the label None"),
        ({"label": [0, -1]}, "row 1 of the shard .* has the label -1"),
        ({"image": [b"", None]}, "row 1 of the shard .* holds no image"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 2}, r"row 0 of the shard .* holds only the path a\.png"),
        ({"label": ["tench", "goldfish"]}, "row 0 of the shard .* has the label 'tench'"),
    ],
)
def test_a_parquet_without_what_it_needs(tmp_path: Path, changes: dict[str, list], message: str) -> None:
    columns = {"image": [b"", b""], "label": [0, 1]} | changes
    write_parquet(tmp_path / "bad/train.parquet", [], features=False, **columns)
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "bad")


def test_a_parquet_of_other_columns_and_pyarrow_missing(tables: Path, tmp_path: Path, monkeypatch) -> None:
    pyarrow, parquet = sys.modules["pyarrow"], sys.modules["pyarrow.parquet"]  # `tables` has imported them
    (tmp_path / "texts").mkdir()
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "texts/train.parquet")
    with pytest.raises(UserError, match=r"has the columns \['text'\]; expected one of image, img"):
        opened(tmp_path / "texts")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="pip install pyarrow"):
        opened(tables)


def test_a_column_of_nested_features_is_passed_over(tables: Path) -> None:
    """The library `datasets` describes it by a mapping without a type."""
    parquet = sys.modules["pyarrow.parquet"]
    for shard in (tables / "data").glob("*.parquet"):
        table = parquet.read_table(shard)
        described = json.loads(table.schema.metadata[b"huggingface"])
        described["info"]["features"]["box"] = {"left": {"dtype": "int32", "_type": "Value"}}
        table = table.append_column("box", [[{"left": 1}] * len(table)])
        parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(described)}), shard)
    assert open_dataset(at(tables)).classes == [f"class{label}" for label in range(4)]


@pytest.mark.parametrize("indexed", [False, True])
def test_a_shard_that_is_a_link_to_nothing_is_named(twin: Path, indexed: bool) -> None:
    """As in Hugging Face's cache, whose files are links."""
    first = shards.find_shards(twin, "train")[0]
    first.symlink_to(first.rename(twin / "moved"))
    if indexed:
        opened(twin)
    (twin / "moved").unlink()
    with pytest.raises(UserError, match=rf"cannot read the shard {first}: No such file.*Copy it again"):
        opened(twin)


def test_splits_of_other_classes(image_folder: Path, tars: Path) -> None:
    shutil.rmtree(tars / "val")
    fewer = [sample for sample in samples_of(image_folder / "val") if sample[1] != 3]
    write_tar(tars / "val/0.tar", fewer)
    with pytest.raises(UserError, match=r"val shards .*1 of 4 classes have no image \['class3'\]"):
        opened(tars, "val")
    write_tar(tars / "val/0.tar", [(file, 3 - label) for file, label in samples_of(image_folder / "val")])
    with pytest.raises(UserError, match=r"val shards .* name the classes \['class3'.*and train \['class0'"):
        opened(tars, "val")


def test_a_small_disk_is_refused_before_images_are_copied(tables: Path, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    with pytest.raises(UserError, match=r"copying the images out of parquet needs .*set VICREGL_DATA to a larger disk"):
        opened(tables)


def test_files_of_a_tar_that_are_left_out_are_counted(image_folder: Path, tars: Path) -> None:
    with tarfile.open(tars / "train/000000.tar", "a") as tar:
        for name in ("class0/0.txt", "class0/a.mask.png", "lost.cls", "LICENSE", "._0.png"):
            add(tar, name, b"1")
    note = "files left out: 5 (2 without a suffix, 1 ending in .mask.png, 1 ending in .txt, 1 labels without an image)"
    assert opened(tars).describe_left_out() == note
    assert contents(tars, "train") == contents(image_folder, "train")


def test_a_shard_that_shrinks_during_a_run_is_named(twin: Path) -> None:
    images = opened(twin)
    held = images.shards.files[images.shards.places[0, 0]]
    os.truncate(held, 10)
    with pytest.raises(UserError, match=r"cannot read the image .*0\.png: .* was cut off since it was indexed"):
        images.read(0)
    held.unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*0\.png: No such file"):
        images.read(0)


def test_an_image_is_decoded_as_from_its_file(twin: Path, image_folder: Path) -> None:
    for number in (0, 17, 47):
        pixels = opened(twin).read(number)
        assert np.array_equal(pixels, np.array(Image.open(opened(image_folder).paths[number])))
