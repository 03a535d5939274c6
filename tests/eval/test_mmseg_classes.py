"""Datasets of mmsegmentation's own classes: what arrives is what the files have, with and without reduce_zero_label."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image
from segmentation_tools import CONFIG, brute_force_iou, head_of, predict, runner_of

from data.catalog import open_dataset
from data.config import DataConfig, MmsegConfig, MmsegSplit
from eval import segmentation
from eval.parent import load_parent_backbone, open_parent
from eval.segmentation_config import SegmentationConfig
from runtime import compat
from runtime import config as configs

compat.prepare_mmcv()
from mmseg.datasets import COCOStuffDataset, PascalContextDataset59  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees  # noqa: E402

SPLITS = ("train", "val")
# mmsegmentation's configs name these folders. 0 is ignored in the masks of Context alone, and 255 in both.
COCO = {split: MmsegSplit(img_path=f"images/{split}2017", seg_map_path=f"annotations/{split}2017") for split in SPLITS}
CONTEXT = {
    split: MmsegSplit(
        img_path="JPEGImages",
        seg_map_path="SegmentationClassContext",
        ann_file=f"ImageSets/SegmentationContext/{split}.txt",
    )
    for split in SPLITS
}
CASES: dict[str, tuple[Any, dict[str, MmsegSplit], str]] = {
    "COCOStuffDataset": (COCOStuffDataset, COCO, "_labelTrainIds.png"),
    "PascalContextDataset59": (PascalContextDataset59, CONTEXT, ".png"),
}


def write_tree(root: Path, name: str) -> dict[str, dict[str, np.ndarray]]:
    """Write six training and four validation images; return the numbers in their masks, by split and name."""
    kind, files, suffix = CASES[name]
    top = len(kind.METAINFO["classes"]) + (1 if name == "PascalContextDataset59" else 0)
    random = np.random.default_rng(3)
    written: dict[str, dict[str, np.ndarray]] = {}
    for split, count in zip(SPLITS, (6, 4), strict=True):
        part = files[split]
        written[split] = {f"2008_{split}{k}": trees.blocks(random, (40, 56), top) for k in range(count)}
        for folder in (part.img_path, part.seg_map_path, Path(part.ann_file).parent):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for image, mask in written[split].items():
            mask[:6, :9], mask[-5:] = 0, 255
            trees.picture(random, mask).save(root / part.img_path / f"{image}.jpg")
            Image.fromarray(mask).save(root / part.seg_map_path / f"{image}{suffix}")
        if part.ann_file:
            (root / part.ann_file).write_text("".join(f"{image}\n" for image in written[split]))
    return written


def as_classes(name: str, mask: np.ndarray) -> np.ndarray:
    """One pixel after the other: the class of a number in a mask, 255 for ignored ones."""
    if name == "COCOStuffDataset":
        return mask
    return np.array([[255 if v in (0, 255) else v - 1 for v in row] for row in mask.tolist()], np.uint8)


def data_of(root: Path, name: str) -> DataConfig:
    return DataConfig(name=f"mmseg:{name}", root=str(root), mmseg=MmsegConfig(**CASES[name][1]))


def overrides(data: DataConfig) -> list[str]:
    parts = [(split, *item) for split in SPLITS for item in getattr(data.mmseg, split)]
    return [f"data.name={data.name}", f"data.root={data.root}", *(f"data.mmseg.{s}.{k}={v}" for s, k, v in parts if v)]


@pytest.mark.parametrize("name", CASES)
def test_masks_are_read_as_mmsegmentation_reads_them(name: str, tmp_path: Path) -> None:
    written = write_tree(tmp_path, name)
    kind, files, _ = CASES[name]
    layout = open_dataset(data_of(tmp_path, name)).segmentation()
    assert layout.classes == list(kind.METAINFO["classes"])
    assert layout.palette == [list(colour) for colour in kind.METAINFO["palette"]]
    init_default_scope("mmseg")
    for split in SPLITS:
        part = files[split]
        theirs = kind(
            data_root=str(tmp_path),
            data_prefix={"img_path": part.img_path, "seg_map_path": part.seg_map_path},
            ann_file=part.ann_file,
            pipeline=[{"type": "LoadImageFromFile"}, {"type": "LoadAnnotations"}],
        )
        assert layout.names(split) == list(written[split])
        for k, (image, mask) in enumerate(written[split].items()):
            item = theirs[k]
            assert item["img_path"] == str(layout.image(split, image))
            labels = layout.read_mask(layout.mask(split, image))
            assert np.array_equal(labels, as_classes(name, mask))
            assert np.array_equal(labels, item["gt_seg_map"])
            assert layout.labels.fault(labels) == ""


@pytest.mark.parametrize("name", CASES)
def test_labels_that_arrive_in_training_are_the_files(name: str, parent: Path, tmp_path: Path) -> None:
    """Whole, unchanged images in the batches of the real Runner."""
    written = write_tree(tmp_path, name)
    plain = ["image_scale=null", "crop_size=56", "cat_max_ratio=1", "flip=false", "photometric_distortion=false"]
    runner, _ = runner_of(parent, tmp_path, [*overrides(data_of(tmp_path, name)), *plain])
    seen: dict[str, np.ndarray] = {}
    for batch in runner.build_dataloader(runner._train_dataloader):
        seen |= {Path(one.img_path).stem: one.gt_sem_seg.data[0].numpy() for one in batch["data_samples"]}
        if seen.keys() == written["train"].keys():
            break
    for image, mask in written["train"].items():
        assert np.array_equal(seen[image], as_classes(name, mask))
        assert (seen[image][:6, :9] == (0 if name == "COCOStuffDataset" else 255)).all()


@pytest.mark.parametrize("name", CASES)
def test_two_iterations_and_their_score(name: str, parent: Path, evaluate, tmp_path: Path) -> None:
    written = write_tree(tmp_path / "data", name)
    data = data_of(tmp_path / "data", name)
    few = ["iterations=2", "batch_size=2", "optimizer.lr=0.3", "machine.val_batch_size=1"]
    code, error, run = evaluate(segmentation.main, parent, CONFIG, *overrides(data), *few)
    assert code == 0, error
    assert run.name.startswith(f"mmseg_{name}-frozen-last-of-")
    layout, backbone = open_dataset(data).segmentation(), load_parent_backbone(open_parent(parent)).eval()
    images = [layout.image("val", image) for image in layout.names("val")]
    predictions = [predict(backbone, head_of(run), image, "last") for image in images]
    truth = [as_classes(name, mask) for mask in written["val"].values()]
    expected = brute_force_iou(predictions, truth, len(layout.classes))
    assert any(expected)
    assert [run.result()["iou"][label] for label in layout.classes] == pytest.approx(expected, abs=0.3)


def test_a_wrong_class_or_file_is_named_before_anything_is_made(parent: Path, evaluate, tmp_path: Path) -> None:
    write_tree(tmp_path / "data", "COCOStuffDataset")
    data = overrides(data_of(tmp_path / "data", "COCOStuffDataset"))
    for change, words in (
        ("data.name=mmseg:CocoStuffDataset", "did you mean COCOStuffDataset? allowed: ADE20KDataset, BDD100KDataset"),
        ("data.name=mmseg:NYUDataset", "no such class"),  # depths, not classes
        ("data.name=mmseg-COCO", "allowed: scenes, imagefolder, imagenet, voc, vocfolder, cityscapes, ade20k, mmseg:<"),
        ("data.mmseg.val.img_path=images/gone", "images/gone is missing"),
        ("data.mmseg.val.img_path=''", "allowed: img_path and seg_map_path"),
        ("data.mmseg.val.ann_file=gone.txt", "gone.txt is missing"),
        ("data.name=voc", "allowed: nothing for data.name=voc"),
    ):
        code, error, run = evaluate(segmentation.main, parent, CONFIG, *data, change)
        assert (code, run) == (2, None), change
        assert words in error, error


def test_reduce_zero_label_of_the_config_wins(tmp_path: Path) -> None:
    """COCO-Stuff 10k has the class of 164k, and other numbers in its masks."""
    write_tree(tmp_path, "COCOStuffDataset")
    data = data_of(tmp_path, "COCOStuffDataset")
    reduced = data.replace(mmseg=data.mmseg.replace(reduce_zero_label=True))
    values = open_dataset(reduced).segmentation().labels.values
    assert values is not None
    assert (values[0], values[1], values[171], values[172], values[255]) == (255, 0, 170, 172, 255)
    assert open_dataset(data).segmentation().labels.values is None


def test_the_recipe_names_the_class(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = configs.load(SegmentationConfig, "eval/configs/seg_cocostuff.yaml")
    assert config.data.mmseg == MmsegConfig(**COCO)
    write_tree(tmp_path, "COCOStuffDataset")
    monkeypatch.setenv("VICREGL_MMSEG_COCOSTUFFDATASET", str(tmp_path))
    assert len(open_dataset(config.data).segmentation().classes) == 171
