"""Datasets by name; what is missing, empty or incomplete is reported."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from data.catalog import _OPENERS, open_dataset
from data.check import CheckConfig
from data.config import DATASETS, DataConfig, ViewsConfig
from data.loader import PretrainLoader
from runtime import config as configs
from runtime.errors import UserError


def folders(root: Path, **others: object) -> DataConfig:
    return DataConfig(name="imagefolder", root=str(root), **others)


@pytest.fixture
def tree(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "tree"))


def test_every_dataset_that_a_config_may_name_can_be_opened() -> None:
    assert list(_OPENERS) == DATASETS


def test_scenes_offers_images_and_masks(small_scenes: DataConfig) -> None:
    dataset = open_dataset(small_scenes)
    assert dataset.classes == [str(digit) for digit in range(10)]
    train, val = dataset.images("train"), dataset.images("val")
    assert (len(train), len(val)) == (60, 20)
    assert not set(train.paths) & set(val.paths)
    assert all(
        path.parent.name == dataset.classes[label] for path, label in zip(train.paths, train.labels, strict=True)
    )
    layout = dataset.segmentation()
    assert layout.classes[0] == "background"
    assert len(layout.classes) == len(layout.palette) == 11
    for split, count in (("train", 60), ("val", 20)):
        names = layout.names(split)
        assert len(names) == count
        for name in names:
            assert layout.image(split, name).is_file()
            assert layout.mask(split, name).is_file()


def test_image_folder(image_folder: Path) -> None:
    dataset = open_dataset(folders(image_folder))
    assert dataset.classes == ["class0", "class1", "class2", "class3"]
    assert dataset.images("train").labels == [label for label in range(4) for _ in range(12)]
    with pytest.raises(UserError, match="no segmentation masks"):
        dataset.segmentation()
    with pytest.raises(UserError, match="allowed: train, val"):
        dataset.images("test")


def test_the_environment_says_where_datasets_are(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path))
    (tmp_path / "imagefolder").symlink_to(image_folder)
    assert open_dataset(DataConfig(name="imagefolder")).root == tmp_path / "imagefolder"


def test_a_dataset_has_a_variable_of_its_own(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Datasets are on different disks, and a study has no paths."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path))
    monkeypatch.setenv("VICREGL_IMAGEFOLDER", str(image_folder))
    assert open_dataset(DataConfig(name="imagefolder")).root == image_folder
    with pytest.raises(UserError, match="elsewhere is not a folder"):
        open_dataset(DataConfig(name="imagefolder", root=str(tmp_path / "elsewhere")))
    monkeypatch.setenv("VICREGL_IMAGENET", str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"gone is not a folder; set data\.root or the environment's VICREGL_IMAGENET"):
        open_dataset(DataConfig(name="imagenet"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"data\.name = 'imagnet'.*scenes, imagefolder, imagenet, voc"):
        configs.load(CheckConfig, None, ["data.name=imagnet"])
    with pytest.raises(UserError, match=r"data\.on_bad_image"):
        configs.load(CheckConfig, None, ["data.on_bad_image=ignore"])


def test_missing_and_empty_folders_are_reported(tree: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"nowhere/imagenet is not a folder; set data\.root"):
        open_dataset(DataConfig(name="imagenet"))
    with pytest.raises(UserError, match="gone is not a folder"):
        open_dataset(folders(tmp_path / "gone"))
    with pytest.raises(UserError, match="expected 1000"):
        open_dataset(DataConfig(name="imagenet", root=str(tree)))
    for image in (tree / "train" / "class2").iterdir():
        image.unlink()
    with pytest.raises(UserError, match="class2 holds no image"):
        open_dataset(folders(tree)).images("train")
    shutil.rmtree(tree / "val" / "class1")
    (tree / "val" / "other").mkdir()
    with pytest.raises(UserError, match=r"1 missing \['class1'\], 1 unknown \['other'\]"):
        open_dataset(folders(tree)).images("val")
    shutil.rmtree(tree / "val")
    with pytest.raises(UserError, match="val does not exist"):
        open_dataset(folders(tree)).images("val")
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    with pytest.raises(UserError, match="train holds no class folders"):
        open_dataset(folders(tree))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A tree with everything that real image folders contain; train and val are the same."""
    root = tmp_path / "hostile"
    image = root / "elsewhere" / "image.png"
    image.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8), (9, 90, 200)).save(image)
    inside = (
        *(
            "b/2.png",
            "b/10.PNG",
            "b/deep/er/1.JPEG",
            "b/deep-er/1.jpg",
            "b/deep.png/3.bmp",
            "b/Z.webp",
            "b/.hidden.png",
        ),
        *("b/.jpg", "b/.folder/4.ppm", "B/1.tif", "B/2.TIFF", "B/only/3.pgm", "a b/é.png", ".hidden/1.png"),
        *("b/notes.txt", "b/deep/list.TXT", "b/LICENSE", "b/5.gif", "b/6.png.part", "beside.png", "beside.txt"),
    )
    for name in inside:
        file = root / "train" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, file)
    (root / "train" / "b" / "link.png").symlink_to(image)
    (root / "train" / "b" / "dangling.png").symlink_to(root / "gone.png")
    (root / "train" / "B" / "linked folder").symlink_to(image.parent)
    (root / "train" / "linked class").symlink_to(image.parent)
    (root / "train" / "b" / "empty").mkdir()
    shutil.copytree(root / "train", root / "val", symlinks=True)
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_hostile_tree_has_the_images_that_torchvision_takes(hostile: Path, split: str) -> None:
    expected = ImageFolder(hostile / split)
    dataset = open_dataset(folders(hostile))
    images = dataset.images(split)
    assert dataset.classes == expected.classes
    assert [(str(path), label) for path, label in zip(images.paths, images.labels, strict=True)] == expected.samples
    assert len(images) == 18


def test_files_that_are_left_out_are_counted(hostile: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = (
        "files left out: 6 (2 ending in .txt, 1 beside the class folders, 1 ending in .gif, 1 ending in .part, "
        "1 without a suffix)"
    )
    images = open_dataset(folders(hostile)).images("train")
    assert images.describe_left_out() == note
    (hostile / "train" / "b" / "dangling.png").unlink()
    PretrainLoader(open_dataset(folders(hostile)), ViewsConfig(large_size=8), lambda side: (2, 2), 4, seed=0)
    assert capsys.readouterr().out == f"{hostile / 'train'}: {note}\n"


def test_nothing_is_printed_for_a_plain_tree(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert open_dataset(folders(tree)).images("train").describe_left_out() is None
    PretrainLoader(open_dataset(folders(tree)), ViewsConfig(large_size=8), lambda side: (2, 2), 4, seed=0)
    assert capsys.readouterr().out == ""


def test_an_empty_class_stops_unless_it_is_hidden(tree: Path) -> None:
    """torchvision stops at .ipynb_checkpoints, too; nobody intends it as a class."""
    for split in ("train", "val"):
        (tree / split / ".ipynb_checkpoints").mkdir()
    assert len(open_dataset(folders(tree)).images("train")) == 48
    (tree / "train" / "empty").mkdir()
    (tree / "val" / "empty").mkdir()
    (tree / "val" / "empty" / "notes.txt").touch()
    for split in ("train", "val"):
        with pytest.raises(UserError, match=rf"{split}/empty holds no image; allowed: .*\.pgm"):
            open_dataset(folders(tree)).images(split)


@pytest.mark.parametrize("target", ["train/class1", "train/class1/sub", "train", "."])
def test_a_link_that_leads_in_a_circle_is_named(tree: Path, target: str) -> None:
    (tree / "train" / "class1" / "sub").mkdir()
    (tree / "train" / "class1" / "sub" / "loop").symlink_to(tree / target)
    with pytest.raises(UserError, match="loop is a link to a folder that contains it"):
        open_dataset(folders(tree)).images("train")
