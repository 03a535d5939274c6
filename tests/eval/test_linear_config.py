"""The config of linear classification names its runs, and what cannot be classified is refused."""

from pathlib import Path

import pytest

from data.images import ImageList
from eval.linear_config import LinearConfig, identity
from eval.linear_splits import refuse_unusable
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
