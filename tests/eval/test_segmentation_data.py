"""Every dataset with masks, end to end through the Runner: mIoU equals brute force; slide inference; the picture."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from segmentation_tools import CONFIG, brute_force_iou, head_of, logits_of, predict, runner_of

from data.catalog import open_dataset
from data.config import DataConfig
from eval import segmentation
from eval.parent import load_parent_backbone, open_parent
from eval.predictions import draw_predictions, load_predictions, save_predictions, spread
from runtime import compat
from runtime.errors import UserError
from runtime.rundir import Run

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

FEW = ["iterations=4", "batch_size=2", "machine.log_steps=1", "optimizer.lr=0.3", "photometric_distortion=true"]
NAMES = ["floor", "wall", "door", "window", "lamp", "table"]
MAKE = {
    "voc": trees.voc_tree,
    "vocfolder": lambda root: trees.vocfolder_tree(root, NAMES),
    "cityscapes": lambda root: trees.cityscapes_tree(root, train_ids=False),
    "ade20k": trees.ade20k_tree,
}
OPTIONS = {"voc": ["data.segmentation_train=train_aug"], "cityscapes": ["crop_width=64"]}


@pytest.mark.parametrize("name", MAKE)
def test_miou_on_every_dataset_equals_brute_force(name, parent, evaluate, tmp_path):
    truth = MAKE[name](tmp_path / name)
    data = [f"data.name={name}", f"data.root={tmp_path / name}", *OPTIONS.get(name, [])]
    code, error, run = evaluate(segmentation.main, parent, CONFIG, *data, *FEW, "machine.val_batch_size=1")
    assert code == 0, error
    result, state = run.result(), head_of(run)
    layout = open_dataset(DataConfig(name=name, root=str(tmp_path / name))).segmentation()
    backbone = load_parent_backbone(open_parent(parent)).eval()
    predictions = [predict(backbone, state, layout.image("val", image), "last") for image in layout.names("val")]
    assert len(np.unique(predictions)) > 3
    expected = brute_force_iou(predictions, truth["val"], len(layout.classes))
    assert [result["iou"][label] for label in layout.classes] == pytest.approx(expected, abs=0.3)
    assert result["miou"] == pytest.approx(np.mean([share for share in expected if share is not None]), abs=0.1)
    counts = {"train_images": 4 if name == "vocfolder" else 6, "val_images": 4}
    assert {key: result[key] for key in counts} == counts
    with Image.open(run.path / "predictions.png") as picture:
        colours = {tuple(colour) for colour in np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()}
    shown = {tuple(layout.palette[k]) for p in predictions for k in np.unique(p)}
    assert shown <= colours


def test_training_sees_the_classes_that_were_meant(parent, tmp_path):
    """Cityscapes' label ids, mapped before the crop; a crop of 32 x 64."""
    trees.cityscapes_tree(tmp_path / "cityscapes", train_ids=False)
    data = ["data.name=cityscapes", f"data.root={tmp_path / 'cityscapes'}", "crop_width=64", "batch_size=2"]
    runner, _ = runner_of(parent, tmp_path, data)
    loader = runner.build_dataloader(runner._train_dataloader)
    batch = runner.model.data_preprocessor(next(iter(loader)), training=True)
    assert batch["inputs"].shape[2:] == (32, 64)
    seen = {int(value) for sample in batch["data_samples"] for value in sample.gt_sem_seg.data.unique()}
    assert seen - {255} <= set(range(19))
    assert len(seen) > 2


def test_slide_inference_is_the_mean_of_its_windows(scenes, parent, tmp_path):
    runner, _ = runner_of(parent, tmp_path, [*scenes, "inference=slide", "slide_stride=20", "taps=all"])
    model = runner.model.eval()
    torch.nn.init.normal_(model.decode_head.conv_seg.weight)
    backbone = load_parent_backbone(open_parent(parent)).eval()

    def slide(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model.slide_inference(images, [{"img_shape": images.shape[2:]}])[0]

    def window(images: torch.Tensor) -> torch.Tensor:
        return logits_of(backbone, model.state_dict(), images, "all")

    one = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(slide(one), window(one), rtol=1e-4, atol=1e-4)
    images = torch.randn(1, 3, 50, 90)
    total, count = torch.zeros(11, 50, 90), torch.zeros(50, 90)
    for top in (0, 18):  # 20 would reach beyond the edge
        for left in (0, 20, 40, 58):
            part = window(images[:, :, top : top + 32, left : left + 32])
            pad = (left, 90 - left - 32, top, 50 - top - 32)
            total, count = total + F.pad(part, pad), count + F.pad(torch.ones(32, 32), pad)
    torch.testing.assert_close(slide(images), total / count, rtol=1e-4, atol=1e-4)


def test_pictures_are_spread_over_the_list():
    assert spread(20, 4) == [0, 6, 13, 19]
    assert spread(3, 8) == [0, 1, 2]
    assert spread(1, 4) == [0]


def test_kept_predictions_are_lossless_and_repeat(tmp_path):
    """Under names that are paths, or those of numpy's own arguments."""
    random = np.random.default_rng(0)
    kept = {name: random.integers(0, 256, (5, 7)).astype(np.uint8) for name in ("a/b", "file", "names", "0")}
    runs = [Run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        run.path.mkdir()
        save_predictions(run, kept)
    assert (
        runs[0].path.joinpath("predictions.npz").read_bytes() == runs[1].path.joinpath("predictions.npz").read_bytes()
    )
    loaded = load_predictions(runs[0])
    assert list(loaded) == list(kept)
    assert all(np.array_equal(loaded[name], kept[name]) and loaded[name].dtype == np.uint8 for name in kept)


def test_a_run_without_predictions_says_how_to_make_them(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(
        UserError, match=r"has no predictions\.npz.*delete .*result\.json and give the run's command again"
    ):
        load_predictions(run)
    save_predictions(run, {"a": np.zeros((40, 50), np.uint8)})
    whole = (tmp_path / "predictions.npz").read_bytes()
    for damaged in (whole[:-20], whole[:100] + b"x" * 40 + whole[140:], b"", b"no archive"):
        (tmp_path / "predictions.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"predictions\.npz is damaged"):
            load_predictions(run)


def test_picture_of_many_classes_and_of_an_image_without_labels(tmp_path):
    truth = trees.ade20k_tree(tmp_path / "ade20k")
    layout = open_dataset(DataConfig(name="ade20k", root=str(tmp_path / "ade20k"))).segmentation()
    first, second = layout.names("val")[:2]
    Image.new("L", (56, 40)).save(layout.mask("val", second))
    many = np.arange(40 * 56).reshape(40, 56) % 150
    draw_predictions(layout, {first: truth["val"][0], second: many.astype(np.uint8)}, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 600


def test_classes_and_colours_are_those_of_mmsegmentation(tmp_path):
    compat.prepare_mmcv()
    from mmseg.datasets import ADE20KDataset, CityscapesDataset
    from mmseg.datasets.transforms import LoadAnnotations

    trees.cityscapes_tree(tmp_path / "cityscapes", train_ids=True)
    trees.ade20k_tree(tmp_path / "ade20k")
    for name, published in (("cityscapes", CityscapesDataset), ("ade20k", ADE20KDataset)):
        layout = open_dataset(DataConfig(name=name, root=str(tmp_path / name))).segmentation()
        assert layout.classes == [label.strip() for label in published.METAINFO["classes"]]
        assert layout.palette == [list(colour) for colour in published.METAINFO["palette"]]
    for name in layout.names("val"):  # ADE20K's, with mmsegmentation's own reading of the unlabelled 0
        path = layout.mask("val", name)
        item = {"seg_map_path": str(path), "reduce_zero_label": True, "label_map": None, "seg_fields": []}
        assert (LoadAnnotations()(item)["gt_seg_map"] == layout.read_mask(path)).all()


def test_class_metric_equals_brute_force():
    from eval.mmseg_runner import ClassIoUMetric

    random = np.random.default_rng(0)
    masks = [random.integers(0, 5, (9, 7)) for _ in range(4)]
    predictions = [np.where(random.random(m.shape) < 0.6, m, random.integers(0, 5, m.shape)) for m in masks]
    for mask in masks:
        mask[0] = 255
    metric = ClassIoUMetric(iou_metrics=["mIoU"])
    names = [*"abcde", "never"]
    metric.dataset_meta = {"classes": names}
    for p, m in zip(predictions, masks, strict=True):
        data = {"pred_sem_seg": {"data": torch.tensor(p)[None]}, "gt_sem_seg": {"data": torch.tensor(m)[None]}}
        metric.process({}, [data])
    metrics = metric.evaluate(4)
    expected = brute_force_iou(predictions, masks, 6)
    assert expected[5] is None
    assert np.isnan(metrics["class.never"])
    assert [metrics[f"class.{name}"] for name in names[:5]] == pytest.approx(expected[:5])
    assert metrics["exact.mIoU"] == pytest.approx(np.mean(expected[:5]))
    assert metrics["mIoU"] == pytest.approx(np.mean(expected[:5]), abs=0.006)  # mmsegmentation rounds
