"""Shards that are damaged, missing or of another kind are refused by name, when they are opened and by data.check."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from data import check, shards
from data.catalog import open_dataset
from runtime.errors import UserError
from tests.twins import FORMS, add, at, contents, opened, samples_of, write_parquet, write_shards, write_tar

pytestmark = pytest.mark.usefixtures("indexes")


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
