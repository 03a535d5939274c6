"""Datasets by name; what is missing, empty or half-made is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import VOC_CLASSES, DataConfig, open_dataset
from runtime.errors import UserError


def folders(root: Path, **others: object) -> DataConfig:
    return DataConfig(name="imagefolder", root=str(root), **others)


@pytest.fixture
def tree(image_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(image_folder, tmp_path / "tree"))


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
            assert (layout.root / layout.image_dir / f"{name}{layout.img_suffix}").is_file()
            assert (layout.root / layout.mask_dir / f"{name}{layout.mask_suffix}").is_file()


def test_image_folder(image_folder: Path) -> None:
    dataset = open_dataset(folders(image_folder))
    assert dataset.classes == ["class0", "class1", "class2", "class3"]
    assert dataset.images("train").labels == [label for label in range(4) for _ in range(12)]
    with pytest.raises(UserError, match="no segmentation masks"):
        dataset.segmentation()
    with pytest.raises(UserError, match="allowed: train, val"):
        dataset.images("test")


def test_the_environment_tells_where_datasets_lie(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path))
    (tmp_path / "imagefolder").symlink_to(image_folder)
    assert open_dataset(DataConfig(name="imagefolder")).root == tmp_path / "imagefolder"


def test_a_dataset_has_a_variable_of_its_own(image_folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Datasets lie on different disks, and a path has no place in a study."""
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
        open_dataset(DataConfig(name="imagnet"))
    with pytest.raises(UserError, match=r"data\.on_bad_image"):
        open_dataset(DataConfig(on_bad_image="ignore"))


def test_missing_and_empty_folders_are_told(tree: Path, tmp_path: Path, monkeypatch) -> None:
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
def voc(tmp_path: Path) -> Path:
    """VOC's layout with three images; the third is only in train_aug, with its mask among SBD's."""
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (20, 10)).save(root / "JPEGImages" / f"{name}.jpg")
        masks = ["SegmentationClassAug"] if name == "c" else ["SegmentationClass", "SegmentationClassAug"]
        for folder in masks:
            Image.fromarray(np.zeros((10, 20), np.uint8)).save(root / folder / f"{name}.png")
    for split, names in (("train", "a\n"), ("val", "b\n"), ("train_aug", "a\nc\n")):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text(names)
    return tmp_path


def test_voc(voc: Path) -> None:
    dataset = open_dataset(DataConfig(name="voc", root=str(voc)))
    assert [path.name for path in dataset.images("train").paths] == ["a.jpg"]
    assert dataset.images("train").labels is None
    layout = dataset.segmentation()
    assert layout.classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    assert layout.palette[:3] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert layout.palette[20] == [0, 64, 128]  # tvmonitor
    augmented = open_dataset(DataConfig(name="voc", root=str(voc), segmentation_train="train_aug")).segmentation()
    assert augmented.names("train") == ["a", "c"]
    assert (augmented.train_mask_dir, augmented.mask_dir) == ("SegmentationClassAug", "SegmentationClass")


def test_half_unpacked_voc_is_told(voc: Path) -> None:
    root = voc / "VOCdevkit" / "VOC2012"
    config = DataConfig(name="voc", root=str(voc), segmentation_train="train_aug")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("a\nb\nc\n")
    with pytest.raises(UserError, match="1 images are listed in both train and val, as b"):
        open_dataset(config)
    (root / "SegmentationClassAug/c.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 train files are missing in SegmentationClassAug, the first is c\.png"):
        open_dataset(config)
    shutil.rmtree(root / "JPEGImages")
    with pytest.raises(UserError, match="JPEGImages is missing"):
        open_dataset(config)
