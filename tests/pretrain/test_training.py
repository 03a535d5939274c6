"""What can be said of several processes in one: which parameters are unused."""

import copy

import pytest
import torch

from pretrain.training import unused_parameters
from vicregl.config import BackboneConfig, ModelConfig
from vicregl.model import VICRegLModel


@pytest.mark.parametrize(
    ("name", "unused"),
    [
        ("resnet18", set()),
        ("scenes_resnet", set()),
        ("convnext_atto", set()),
        ("mobilenetv3_small_050", {"backbone.trunk.conv_head.weight", "backbone.trunk.conv_head.bias"}),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_parameters_after_the_map_are_listed(name, unused, alpha) -> None:
    model = VICRegLModel(ModelConfig(BackboneConfig(name), expander="8-8", projector="8-8"), alpha)
    before = copy.deepcopy(model.state_dict())
    assert set(unused_parameters(model, 64)) == unused
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
