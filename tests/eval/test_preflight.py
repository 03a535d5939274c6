"""The check of a dataset before an evaluation: notes are printed, problems stop it before anything is made."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.catalog import open_dataset
from data.config import DataConfig
from data.transforms import LabelledDataset, eval_transform
from eval import dense_knn, knn, linear, segmentation
from eval.features import ImageBatches
from runtime.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

CONFIGS = {linear: "linear_scenes", knn: "knn_scenes", segmentation: "seg_scenes"}


@pytest.fixture
def tree(image_folder, tmp_path) -> Path:
    """A copy of the ImageFolder of 48 + 16 images that a test may damage."""
    return Path(shutil.copytree(image_folder, tmp_path / "tree"))


def test_files_that_are_left_out_are_noted(tree, parent, evaluate):
    for split in ("train", "val"):
        (tree / split / "class1" / "a.txt").touch()
    data = ["data.name=imagefolder", f"data.root={tree}", "image_size=8", "resize=8", "neighbours=[3]"]
    assert evaluate(knn.main, parent, "eval/configs/knn_scenes.yaml", *data)[0] == 0
    expected = [f"{split}: files left out: 1 (1 ending in .txt)" for split in ("train", "val")]
    assert [line for line in evaluate.output if "left out" in line] == expected


@pytest.mark.parametrize("stage", CONFIGS, ids=lambda stage: stage.__name__)
def test_an_evaluation_of_a_damaged_dataset_makes_nothing(stage, tree, parent, evaluate, tmp_path):
    damaged = tree / "val" / "class1" / "3.png"
    damaged.write_bytes(b"cut off")
    data, words = ["data.name=imagefolder", f"data.root={tree}"], str(damaged)
    if stage is segmentation:
        trees.vocfolder_tree(tmp_path / "voc", ["floor", "wall", "door"])
        data, words = ["data.name=vocfolder", f"data.root={tmp_path / 'voc'}"], "no class"
        layout = open_dataset(DataConfig(name="vocfolder", root=str(tmp_path / "voc"))).segmentation()
        mask = layout.mask("val", layout.names("val")[0])
        Image.fromarray(np.full_like(np.array(Image.open(mask)), 200)).save(mask)
    code, error, run = evaluate(stage.main, parent, f"eval/configs/{CONFIGS[stage]}.yaml", *data)
    assert (code, run) == (2, None)
    assert words in error
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pretrain"]


BEIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


@pytest.mark.parametrize(
    ("stage", "config", "sizes", "words"),
    [
        (knn, "knn_scenes", ["resize=48", "image_size=48"], "image_size = 48"),
        (dense_knn, "dense_knn_scenes", ["image_size=48"], "image_size = 48"),
        (linear, "linear_scenes", ["resize=48", "image_size=48"], "image_size = 48"),
        (segmentation, "seg_scenes", ["crop_size=48"], "crop_size = 48"),
        (segmentation, "seg_scenes", ["crop_width=48"], "crop_width = 48"),
    ],
)
def test_a_size_that_the_network_does_not_take_makes_nothing(
    stage, config, sizes, words, make_parent, evaluate, scenes, tmp_path
):
    parent = make_parent("beitv2_base_patch16_224", args=BEIT)
    code, error, _ = evaluate(stage.main, parent, f"eval/configs/{config}.yaml", *scenes, *sizes)
    assert (code, error.count("\n")) == (2, 1), error
    assert all(part in error for part in (words, "beitv2_base_patch16_224", "48 pixels", "--arch-arg img_size")), error
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["pretrain"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["image_scale=null"], ("inference = 'whole' of the validation image", "40 x 56 pixels")),
        (["image_scale=[46,32]"], ("inference = 'whole'", "32 x 45 pixels")),
        (["image_scale=[28,28]", "inference=slide", "slide_stride=16"], ("inference = 'slide'", "20 x 28 pixels")),
        (["image_scale=null", "inference=slide", "slide_stride=16"], None),
    ],
)
def test_validation_images_that_the_network_does_not_take_make_nothing(options, words, make_parent, evaluate, tmp_path):
    """They are seen after the training, which would be lost. Images of 40 x 56 pixels; a window is 32 x 32 at most."""
    trees.vocfolder_tree(tmp_path / "voc", ["floor", "wall", "door"])
    data = ["data.name=vocfolder", f"data.root={tmp_path / 'voc'}", "iterations=2", "batch_size=2"]
    parent = make_parent("beitv2_base_patch16_224", args=BEIT)
    code, error, run = evaluate(segmentation.main, parent, "eval/configs/seg_scenes.yaml", *data, *options)
    if words is None:
        assert (code, run.state()) == (0, "done"), error
        return
    assert (code, error.count("\n"), run) == (2, 1, None), error
    assert all(part in error for part in (*words, "beitv2_base_patch16_224", "choose slide")), error


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_is_damaged_later_is_named(workers, tree):
    """Of a set too large to be read at once; a worker's error arrives without its traceback."""
    images = open_dataset(DataConfig(name="imagefolder", root=str(tree))).images("val")
    dataset = LabelledDataset(images, eval_transform(8, 8), memory_bytes=0)
    images.paths[-1].write_bytes(images.paths[-1].read_bytes()[:60])
    with pytest.raises(UserError) as caught:
        list(ImageBatches(dataset, 2).of_epoch(0, 0, workers))
    assert str(images.paths[-1]) in str(caught.value)
    assert "Traceback" not in str(caught.value)
