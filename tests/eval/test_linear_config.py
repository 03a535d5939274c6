"""The config of linear classification names its runs, and what cannot be classified is refused."""

import csv
from pathlib import Path

import pytest

from data.catalog import open_dataset
from data.images import ImageList
from eval.config import KnnConfig, LinearConfig, identity
from eval.splits import Splits, refuse_unusable
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Identity

CONFIG = "eval/configs/linear_scenes.yaml"


def test_unlabelled_dataset(parent):
    with pytest.raises(UserError, match="no class labels"):
        refuse_unusable("voc", ImageList([Path("a")], None), ImageList([Path("b")], None))


def test_image_in_both_splits():
    with pytest.raises(UserError, match="both in train and val"):
        refuse_unusable("x", ImageList([Path("a"), Path("b")], [0, 1]), ImageList([Path("b")], [1]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_digit_that_labels_a_held_out_scene_is_in_a_training_scene(seed, tiny_scenes, monkeypatch):
    """By the images' names in the dataset's own manifest; of the 500 images, most are still used."""
    monkeypatch.setenv("VICREGL_DATA", str(tiny_scenes))
    config = configs.load(LinearConfig, CONFIG, ["data.scenes.train=500", "data.scenes.val=20", f"seed={seed}"])
    splits = Splits.open(config.data, config.held_out, config.seed)
    with open(open_dataset(config.data).root / "manifest.csv", newline="", encoding="utf-8") as file:
        digits = {row["image"]: [row["digit"], *row["distractors"].split()] for row in csv.DictReader(file)}
    kept, held_out = ([digits[path.stem] for path in part.paths] for part in (splits.train, splits.held_out))
    assert not {digit for image in kept for digit in image} & {image[0] for image in held_out}
    assert splits.held_out_by == "source"
    assert 30 < len(held_out) < 80
    assert 380 < len(kept) < 450


def test_photographs_are_held_out_by_image(image_folder):
    config = configs.load(LinearConfig, CONFIG, ["data.name=imagefolder", f"data.root={image_folder}"])
    splits = Splits.open(config.data, config.held_out, config.seed)
    assert (splits.held_out_by, len(splits.held_out), len(splits.train)) == ("image", 4, 44)


def test_only_runs_that_hold_scenes_out_have_another_format():
    """What the same config measures has changed for those alone; runs of ImageNet stay done."""
    imagenet = configs.load(LinearConfig, "eval/configs/linear_imagenet.yaml")
    scenes = configs.load(LinearConfig, CONFIG)
    none = configs.load(LinearConfig, CONFIG, ["held_out=0", "learning_rates=[1.0]"])
    assert [identity(config, "0123456789").format for config in (imagenet, scenes, none)] == [1, 2, 1]
    votes = [configs.load(KnnConfig, "eval/configs/knn_scenes.yaml", [f"k={k}"]) for k in ("null", 5)]
    assert [identity(config, "0123456789").format for config in votes] == [2, 1]


def test_identity_tells_parents_and_configs_apart():
    config = configs.load(LinearConfig, CONFIG)
    one = identity(config, "0123456789")
    assert isinstance(one, Identity)
    assert one.hash != identity(config, "9876543210").hash
    busier = config.replace(machine=config.machine.replace(workers=7))
    assert one.hash == identity(busier, "0123456789").hash
    longer = config.replace(epochs=config.epochs + 1)
    assert one.hash != identity(longer, "0123456789").hash


def test_published_config_is_whole():
    config = configs.load(LinearConfig, "eval/configs/linear_imagenet.yaml")
    assert (config.mode, config.epochs, config.image_size) == ("augmented", 100, 224)
    assert {0.02, 0.3} <= set(config.learning_rates)  # the published ones, of ResNets and of ConvNeXts
