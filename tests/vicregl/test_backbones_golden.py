"""timm's networks, with weights that come through load_weights, against the published networks' outputs."""

import pytest
import torch
from published_weights import ARGS, BACKBONES, as_full_checkpoint, golden_images, published_state

from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weight_names import published_state as exported_state
from vicregl.weights import load_weights


@pytest.fixture(scope="module", params=list(BACKBONES))
def arch(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def backbone(arch):
    return create_backbone(BackboneConfig(arch, ARGS[arch])).double().eval()


@pytest.fixture(scope="module")
def state(arch):
    return published_state(arch)


@pytest.mark.parametrize("layout", ["backbone file", "full checkpoint"])
@torch.no_grad()
def test_outputs_equal_the_published_networks(arch, backbone, state, layout, tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(state if layout == "backbone file" else as_full_checkpoint(state), path)
    for parameter in backbone.parameters():
        parameter.zero_()
    report = load_weights(backbone, path)

    golden = BACKBONES[arch]
    feature_map, pooled = backbone(golden_images(golden["seed"]))
    positions = feature_map.flatten(2).transpose(1, 2)
    assert list(positions.shape) == golden["map_shape"]
    assert backbone.channels == golden["width"]
    head = torch.tensor(golden["map_head"], dtype=torch.float64)
    torch.testing.assert_close(positions[0, : len(head), : head.shape[1]], head, rtol=1e-9, atol=1e-9)
    head = torch.tensor(golden["pooled_head"], dtype=torch.float64)
    torch.testing.assert_close(pooled[:, : head.shape[1]], head, rtol=1e-9, atol=1e-9)
    assert abs(float(positions.norm()) / golden["map_norm"] - 1) < 1e-9
    assert abs(float(pooled.norm()) / golden["pooled_norm"] - 1) < 1e-9

    assert report.tensors == len(golden["keys"])
    assert bool(report.names) == (arch == "convnext_small")
    if layout == "full checkpoint":
        assert report.prefix == "module.backbone."
        assert sorted(report.ignored) == ["module.maps_projector.0.weight", "module.projector.0.weight"]
        assert "left out 2 tensors of maps_projector, projector" in str(report)
    else:
        assert report.prefix == ""
        assert report.ignored == []
    assert f"all {report.tensors} tensors" in str(report)


def test_exported_names_are_the_published_ones(backbone, state, tmp_path) -> None:
    torch.save(state, tmp_path / "weights.pth")
    load_weights(backbone, tmp_path / "weights.pth")
    exported = exported_state(backbone)
    assert {key: value.shape for key, value in exported.items()} == {key: value.shape for key, value in state.items()}
    assert all(torch.equal(exported[key], state[key].to(exported[key].dtype)) for key in state)


@torch.no_grad()
def test_stages_end_in_the_same_map(backbone) -> None:
    images = golden_images(0)
    stages = backbone.stages(images)
    assert [stage.shape[1] for stage in stages] == backbone.stage_channels
    assert [96 // stage.shape[2] for stage in stages] == [4, 8, 16, 32]
    assert torch.equal(stages[-1], backbone(images)[0])
