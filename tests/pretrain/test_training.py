"""What can be said of several processes in one: which parameters are unused, and which modules are synchronised."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pretrain.training import unused_parameters
from vicregl.config import BackboneConfig, ModelConfig
from vicregl.model import VICRegLModel
from vicregl.sync_norm import synchronise


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
def test_parameters_behind_the_map_are_found(name, unused, alpha) -> None:
    model = VICRegLModel(ModelConfig(BackboneConfig(name), expander="8-8", projector="8-8"), alpha)
    before = copy.deepcopy(model.state_dict())
    assert set(unused_parameters(model, 64)) == unused
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.fixture
def group(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm2d(4), (6, 4, 3, 5)),
        (nn.BatchNorm1d(4, momentum=None), (6, 4)),
        (nn.BatchNorm1d(4, affine=False, eps=0.1), (6, 4, 3)),
        (nn.BatchNorm2d(4, track_running_stats=False), (6, 4, 2, 2)),
    ],
)
def test_the_norm_is_torch_s_own_formula(group, norm, shape) -> None:
    """Outputs, gradients and running statistics over three steps, and evaluation after them, in float64."""
    torch.manual_seed(0)
    own, plain = synchronise(copy.deepcopy(norm).double(), torch.device("cpu")), copy.deepcopy(norm).double()
    assert list(own.state_dict()) == list(plain.state_dict())
    assert type(own) is not type(plain)
    for _ in range(3):
        x = (3 * torch.randn(shape, dtype=torch.float64) + 2).requires_grad_()
        same = x.detach().clone().requires_grad_()
        weights = torch.randn(shape, dtype=torch.float64)
        (own(x) * weights).sum().backward()
        (plain(same) * weights).sum().backward()
        torch.testing.assert_close(x.grad, same.grad)
    for mine, theirs in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(own.state_dict()[key], value)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(own.eval()(x), plain.eval()(x))
    copy.deepcopy(own)


def test_half_precision_stays_what_it_was(group) -> None:
    norm = synchronise(nn.BatchNorm2d(4), torch.device("cpu"))
    x = torch.randn(8, 4, 5, 5).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x), nn.BatchNorm2d(4)(x.float()).bfloat16(), rtol=0.02, atol=0.02)
