"""Datasets with masks: trees as in the archives, read as the right classes; damage is reported."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import open_dataset
from data.config import DataConfig
from data.layout import SegmentationLayout, files_in
from data.segmentation_sets import VOC_CLASSES
from runtime.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees


def layout_of(name: str, root: Path, **others: str) -> SegmentationLayout:
    return open_dataset(DataConfig(name=name, root=str(root), **others)).segmentation()


def assert_reads(layout: SegmentationLayout, truth: trees.Truth) -> None:
    for split, masks in truth.items():
        names = layout.names(split)
        assert len(names) == len(masks)
        for name, mask in zip(names, masks, strict=True):
            assert (layout.read_mask(layout.mask(split, name)) == mask).all()
            with Image.open(layout.image(split, name)) as image:
                assert image.size == mask.shape[::-1]


def test_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    truth = trees.voc_tree(root)
    config = DataConfig(name="voc", root=str(tmp_path), segmentation_train="train_aug")
    dataset = open_dataset(config)
    layout = dataset.segmentation()
    assert layout.classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 21
    assert layout.palette[:3] == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert layout.palette[20] == [0, 64, 128]  # tvmonitor
    assert_reads(layout, truth)
    assert dataset.images("val").labels is None
    assert [path.stem for path in dataset.images("train").paths] == layout.names("train")
    assert_reads(layout_of("voc", root), {**truth, "train": truth["train"][:-2]})


def test_folder_in_the_layout_of_voc(tmp_path: Path) -> None:
    truth = trees.vocfolder_tree(tmp_path, ["floor", "wall", "door", "window", "a b"])
    layout = layout_of("vocfolder", tmp_path)
    assert layout.classes == ["floor", "wall", "door", "window", "a b"]
    assert layout.img_suffix == ".png"
    assert_reads(layout, {**truth, "train": truth["train"][:-2]})
    (tmp_path / "classes.txt").write_text("floor\nfloor\n")
    with pytest.raises(UserError, match=r"classes\.txt names 2 classes; expected 2 to 255, each once"):
        layout_of("vocfolder", tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"classes\.txt is missing"):
        layout_of("vocfolder", tmp_path)


@pytest.mark.parametrize("train_ids", [False, True])
def test_cityscapes(train_ids: bool, tmp_path: Path) -> None:
    truth = trees.cityscapes_tree(tmp_path, train_ids)
    layout = layout_of("cityscapes", tmp_path)
    assert len(layout.classes) == 19
    assert ("TrainIds" in layout.mask_suffix) is train_ids
    assert_reads(layout, truth)
    (tmp_path / f"gtFine/val/aachen/aachen_000000_000019{layout.mask_suffix}").unlink()
    with pytest.raises(
        UserError, match="1 of 4 val files are missing in gtFine/val, the first is aachen/aachen_000000"
    ):
        layout_of("cityscapes", tmp_path)


def test_cityscapes_without_masks(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path, train_ids=False)
    for mask in tmp_path.glob("gtFine/*/*/*labelIds.png"):
        mask.unlink()
    with pytest.raises(UserError, match=r"none ends in _gtFine_labelIds\.png or _gtFine_labelTrainIds\.png"):
        layout_of("cityscapes", tmp_path)
    shutil.rmtree(tmp_path / "gtFine")
    with pytest.raises(UserError, match="gtFine/train is missing; unpack gtFine_trainvaltest"):
        layout_of("cityscapes", tmp_path)


def test_ade20k(tmp_path: Path) -> None:
    truth = trees.ade20k_tree(tmp_path / "ADEChallengeData2016")
    layout = layout_of("ade20k", tmp_path)
    assert len(layout.classes) == 150
    assert_reads(layout, truth)
    shutil.rmtree(tmp_path / "ADEChallengeData2016/annotations/validation")
    with pytest.raises(UserError, match="annotations/validation is missing"):
        layout_of("ade20k", tmp_path)


def test_a_training_list_of_another_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"segmentation_train = 'train_aug'.*allowed: train for data\.name=cityscapes"):
        DataConfig(name="cityscapes", segmentation_train="train_aug").check()


def test_an_incomplete_voc_is_reported(tmp_path: Path) -> None:
    trees.voc_tree(tmp_path)
    config = DataConfig(name="voc", root=str(tmp_path), segmentation_train="train_aug")
    lists = tmp_path / "ImageSets/Segmentation"
    own = (lists / "train.txt").read_text()
    (lists / "train_aug.txt").write_text(f"{own}2007_train5\n2007_val1\n")
    shutil.copy(tmp_path / "SegmentationClass/2007_val1.png", tmp_path / "SegmentationClassAug")
    with pytest.raises(UserError, match="1 images are listed in both train and val, as 2007_val1"):
        open_dataset(config)
    (tmp_path / "SegmentationClassAug/2007_train5.png").unlink()
    with pytest.raises(
        UserError, match=r"1 of 6 train files are missing in SegmentationClassAug, the first is 2007_tr"
    ):
        open_dataset(config)
    (lists / "val.txt").write_text("")
    with pytest.raises(UserError, match=r"no val images in ImageSets/Segmentation/val\.txt"):
        open_dataset(DataConfig(name="voc", root=str(tmp_path)))
    shutil.rmtree(tmp_path / "JPEGImages")
    with pytest.raises(UserError, match="JPEGImages is missing"):
        open_dataset(config)


def test_lists_of_sbd(tmp_path: Path) -> None:
    """train_aug.txt names every training image, aug.txt those beyond train.txt; where both are, they must agree."""
    truth = trees.voc_tree(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    whole, own = (lists / "train_aug.txt").read_text(), (lists / "train.txt").read_text()

    def layout() -> SegmentationLayout:
        return layout_of("voc", tmp_path, segmentation_train="train_aug")

    assert_reads(layout(), truth)
    (lists / "aug.txt").write_text(whole.removeprefix(own))
    assert_reads(layout(), truth)
    (lists / "train_aug.txt").rename(lists / "trainaug.txt")  # what voc_aug.py of mmsegmentation writes
    assert_reads(layout(), truth)
    (lists / "trainaug.txt").unlink()
    assert_reads(layout(), truth)
    folders = [layout().mask("train", name).parent.name for name in layout().names("train")]
    assert folders == ["SegmentationClass"] * 4 + ["SegmentationClassAug"] * 2
    (lists / "train_aug.txt").write_text(whole.removesuffix("2007_train5\n"))
    with pytest.raises(UserError, match=r"aug\.txt and train_aug\.txt disagree on 1 training images, as 2007_train5"):
        layout()
    (lists / "aug.txt").unlink()
    (lists / "train_aug.txt").write_text(whole.removeprefix("2007_train0\n"))
    with pytest.raises(UserError, match=r"train_aug\.txt and train\.txt disagree on 1 training images, as 2007_train0"):
        layout()
    (lists / "train_aug.txt").unlink()
    with pytest.raises(UserError, match=r"no list of SBD's images; expected train_aug\.txt .* or aug\.txt"):
        layout()


def test_a_folder_that_links_back_to_itself_is_refused(tmp_path: Path) -> None:
    trees.cityscapes_tree(tmp_path, train_ids=False)
    images = tmp_path / "leftImg8bit/train"
    (tmp_path / "elsewhere").symlink_to(images / "aachen")  # a link is no loop
    (tmp_path / "leftImg8bit/train/linked").symlink_to(tmp_path / "leftImg8bit/val/bochum")
    assert len(files_in(images)) == 8
    for target in (images, tmp_path / "leftImg8bit", Path("loop")):
        (images / "aachen/loop").symlink_to(target)
        if target.is_absolute():
            with pytest.raises(UserError, match=r"aachen/loop.* is a link to a folder that contains it"):
                files_in(images)
        else:
            assert len(files_in(images)) == 9  # a link to itself is no folder
        (images / "aachen/loop").unlink()


def test_a_coloured_mask_is_refused(tmp_path: Path) -> None:
    trees.voc_tree(tmp_path)
    layout = layout_of("voc", tmp_path)
    path = layout.mask("val", layout.names("val")[0])
    Image.fromarray(np.zeros((40, 56, 3), np.uint8)).save(path)
    with pytest.raises(UserError, match="mode RGB, and a mask is expected"):
        layout.read_mask(path)
