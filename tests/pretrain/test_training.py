"""What can be said before a training: which parameters are unused, and that its network can be made."""

import copy

import pytest
import torch
from timm.models import ResNet, register_model
from timm.models.resnet import BasicBlock

from pretrain.config import PretrainConfig
from pretrain.training import preflight, unused_parameters
from runtime import config as configs
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


@register_model
def resnet_of_values(pretrained: bool = False, **kwargs) -> ResNet:
    rates = [rate.item() for rate in torch.linspace(0, 0.1, 2)]
    network = ResNet(BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8), drop_path_rate=rates[-1], **kwargs)
    network.pretrained_cfg = {"input_size": (3, 32, 32)}
    return network


def test_a_network_that_the_meta_device_cannot_make_passes_the_preflight(arguments, tmp_path) -> None:
    """Its constructor computes with values."""
    overrides = [word for word in arguments(tmp_path)[2:] if not word.startswith("--")]
    overrides.append("model.backbone.name=resnet_of_values")
    config = configs.load(PretrainConfig, "pretrain/configs/quickstart.yaml", overrides)
    assert len(preflight(config).images("train")) == 48


def test_views_that_the_map_does_not_cover_exactly_are_warned_of(arguments, tmp_path, capsys) -> None:
    overrides = [word for word in arguments(tmp_path)[2:] if not word.startswith("--")]
    for side in (32, 30):
        changed = [*overrides, f"views.large_size={side}"]
        preflight(configs.load(PretrainConfig, "pretrain/configs/quickstart.yaml", changed))
        warned = capsys.readouterr().err
        assert warned.startswith("warning: locations of views.large_size = 30 are not exact: 8 cells") == (side == 30)
