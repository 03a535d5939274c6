"""load_weights is strict: what does not fit, or cannot be read, is an error that says so."""

import argparse

import pytest
import torch
from published_weights import as_full_checkpoint
from safetensors.torch import save_file
from weight_files import assert_loaded, error_of, head, prefixed, saved

from runtime.errors import UserError
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weights import load_weights

SMALL = BackboneConfig("scenes_resnet", {"width_factor": 0.25})


@pytest.fixture
def backbone():
    return create_backbone(SMALL)


@pytest.fixture
def state():
    return {key: value.clone() for key, value in create_backbone(SMALL).trunk.state_dict().items()}


def test_our_own_file(backbone, state, tmp_path) -> None:
    save_file(state, tmp_path / "backbone.safetensors")
    report = load_weights(backbone, tmp_path / "backbone.safetensors")
    assert_loaded(backbone, state)
    assert report.tensors == len(state)
    assert report.values == sum(value.numel() for value in state.values())


@pytest.mark.parametrize("own", ["module.", "encoder.", "backbone.", "trunk."])
@pytest.mark.parametrize("before", ["", "module.", "backbone.trunk."])
def test_a_network_whose_own_keys_begin_as_a_prefix_does(own, before, tmp_path) -> None:
    """As that of a module with `self.encoder` and `self.neck`."""
    trunk = torch.nn.ModuleDict({own[:-1]: torch.nn.Linear(3, 4), "neck": torch.nn.Linear(4, 2)})
    state = {key: value.clone() for key, value in trunk.state_dict().items()}
    torch.nn.init.zeros_(trunk["neck"].weight)
    path = saved(prefixed(before, state), tmp_path / "file.pth")
    assert load_weights(argparse.Namespace(trunk=trunk), path).prefix == before
    assert_loaded(argparse.Namespace(trunk=trunk), state)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone.", "backbone.trunk."])
@pytest.mark.parametrize("container", [None, "model", "state_dict", "backbone"])
def test_every_layout(backbone, state, prefix, container, tmp_path) -> None:
    contents = {prefix + key: value for key, value in state.items()}
    path = saved(contents if container is None else {container: contents, "epoch": 1}, tmp_path / "file.pth")
    assert load_weights(backbone, path).prefix == prefix
    assert_loaded(backbone, state)


class Trap:
    """Its unpickling would make a file."""

    def __init__(self, path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_objects_beside_the_weights_are_neither_needed_nor_run(backbone, state, tmp_path) -> None:
    contents = as_full_checkpoint(state) | {
        "args": argparse.Namespace(lr=0.1),
        "filter": test_our_own_file,  # the published LARS state holds functions
        "trap": Trap(tmp_path / "sprung"),
    }
    load_weights(backbone, saved(contents, tmp_path / "full.pth"))
    assert_loaded(backbone, state)
    assert not (tmp_path / "sprung").exists()


def test_missing_and_unexpected_keys_are_listed(backbone, state, tmp_path) -> None:
    state["stages.9.weight"] = state.pop("stem.conv.weight")
    message = error_of(backbone, saved(state, tmp_path / "file.pth"))
    assert "missing (1): stem.conv.weight" in message
    assert "unexpected (1): stages.9.weight" in message


def test_long_lists_are_cut(backbone, tmp_path) -> None:
    message = error_of(backbone, saved({"a": torch.zeros(1)}, tmp_path / "file.pth"))
    assert "0 of" in message
    assert "more;" in message


def test_another_width(backbone, tmp_path) -> None:
    other = create_backbone(BackboneConfig("scenes_resnet", {"width_factor": 0.5}))
    message = error_of(backbone, saved(other.trunk.state_dict(), tmp_path / "file.pth"))
    assert "stem.conv.weight (16, 3, 3, 3) instead of (8, 3, 3, 3)" in message


def test_values_that_are_not_finite(backbone, state, tmp_path) -> None:
    state["stem.conv.weight"][0] = float("nan")
    assert "not finite (1): stem.conv.weight" in error_of(backbone, saved(state, tmp_path / "file.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_file_that_was_cut_off(backbone, state, suffix, share, tmp_path) -> None:
    path = tmp_path / f"file{suffix}"
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    message = error_of(backbone, path)
    assert "cannot be read" in message
    assert path.name in message


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_that_is_no_checkpoint(backbone, suffix, tmp_path) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_text("<html>404 not found</html>\n" * 20)
    assert "cannot be read" in error_of(backbone, path)


@pytest.mark.parametrize("contents", [{"epoch": 3}, [1, 2], {"model": {"lr": 0.1}}, {}, torch.zeros(2)])
def test_a_checkpoint_without_a_state_dict(backbone, contents, tmp_path) -> None:
    assert "no state dict" in error_of(backbone, saved(contents, tmp_path / "file.pth"))


def test_a_missing_file_and_a_folder(backbone, tmp_path) -> None:
    assert "does not exist" in error_of(backbone, tmp_path / "none.pth")
    assert "does not exist" in error_of(backbone, tmp_path)


def test_a_missing_layer_scale_comes_with_a_remedy(tmp_path) -> None:
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}
    without = create_backbone(BackboneConfig("convnext_tiny", args | {"ls_init_value": None}))
    path = saved(without.trunk.state_dict(), tmp_path / "file.pth")
    message = error_of(create_backbone(BackboneConfig("convnext_tiny", args)), path)
    assert "ls_init_value: null" in message


def test_unknown_keys_of_a_published_convnext_do_not_vanish(tmp_path) -> None:
    """timm's own filter drops some in silence."""
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "ls_init_value": None}
    backbone = create_backbone(BackboneConfig("convnext_tiny", args))
    path = saved(
        {"downsample_layers.0.0.weight": torch.zeros(8, 3, 4, 4), "norms.0.weight": torch.zeros(8)}, tmp_path / "f.pth"
    )
    message = error_of(backbone, path)
    assert "unexpected (1): norms.0.weight" in message
    assert "stem.0.bias" in message


RESNET = BackboneConfig("resnet18")
PARTS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}  # of nn.Sequential


def other(state: dict) -> dict:
    """A state dict of the same names whose values are not those to be loaded."""
    return {key: torch.full_like(value, 7) for key, value in state.items()}


# How each project's checkpoint holds the backbone's tensors; everything else in it must be left out.
LAYOUTS = {
    "torchvision": lambda s: s | head("fc"),
    "MoCo 2": lambda s: {
        "state_dict": prefixed("module.encoder_q.", s | head("fc.0") | head("fc.2"))
        | prefixed("module.encoder_k.", other(s) | head("fc.0"))
        | {"module.queue": torch.ones(4, 4), "module.queue_ptr": torch.zeros(1, dtype=torch.long)},
        "arch": "resnet18",
        "optimizer": {"state": {}, "param_groups": []},
    },
    "MoCo 3": lambda s: {
        "state_dict": prefixed("module.base_encoder.", s | head("fc.0"))
        | prefixed("module.momentum_encoder.", other(s))
        | prefixed("module.", head("predictor.0"))
    },
    "SimSiam": lambda s: {
        "state_dict": prefixed("module.encoder.", s | head("fc.0")) | prefixed("module.", head("predictor.0"))
    },
    "BYOL": lambda s: {
        "model": prefixed("module.online_network.encoder.", s)
        | prefixed("module.online_network.", head("projector.0"))
        | prefixed("module.target_network.encoder.", other(s))
        | prefixed("module.", head("predictor.0"))
    },
    "DINO, whole": lambda s: {
        "student": prefixed("module.backbone.", other(s)) | prefixed("module.", head("head.mlp.0")),
        "teacher": prefixed("backbone.", s) | head("head.mlp.0"),
        "epoch": 3,
    },
    "SwAV": lambda s: prefixed("module.", s | head("projection_head.0") | {"prototypes.weight": torch.ones(3, 4)}),
    "solo-learn": lambda s: {
        "state_dict": prefixed("backbone.", s) | prefixed("momentum_backbone.", other(s)) | head("projector.0")
    },
    "lightly": lambda s: {
        "state_dict": {f"backbone.{PARTS[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in s.items()}
        | prefixed("backbone_momentum.", other(s))
        | head("projection_head.layers.0")
    },
}


@pytest.mark.parametrize("project", LAYOUTS)
def test_other_projects_checkpoints(project, tmp_path) -> None:
    """At the full size of a ResNet-18: every tensor is loaded, and no other network's."""
    torch.manual_seed(1)
    state = create_backbone(RESNET).trunk.state_dict()
    backbone = create_backbone(RESNET)
    report = load_weights(backbone, saved(LAYOUTS[project](dict(state)), tmp_path / "file.pth"))
    assert_loaded(backbone, state)
    assert report.tensors == len(state)
    assert report.beside == (["student"] if project == "DINO, whole" else [])
    assert ("from 'teacher' (beside it: student)" in str(report)) == (project == "DINO, whole")
    assert "left out" in str(report) or project == "solo-learn" or not report.ignored


def test_moco_3s_vit_needs_its_number_of_heads(tmp_path) -> None:
    """It has 12, timm's network 6: the tensors are the same, so only its prefix tells it."""
    args = {"depth": 1}
    with_6, with_12 = (
        create_backbone(BackboneConfig("vit_small_patch16_224", args | more)) for more in ({}, {"num_heads": 12})
    )
    state = dict(with_12.trunk.state_dict())
    file = saved({"state_dict": prefixed("module.base_encoder.", state | head("head.0"))}, tmp_path / "vit-s.pth.tar")
    assert "has 6" in (message := error_of(with_6, file))
    assert "num_heads: 12" in message
    load_weights(with_12, file)
    load_weights(with_6, saved(state, tmp_path / "plain.pth"))  # of anyone else's training
    base = create_backbone(BackboneConfig("vit_tiny_patch16_224", args))
    load_weights(base, saved(prefixed("module.base_encoder.", base.trunk.state_dict()), tmp_path / "base.pth"))


def test_a_norm_of_the_head_is_no_head(backbone, state, tmp_path) -> None:
    """head.norm is part of a ConvNeXt's features: where the network has none, the file is of another one."""
    path = saved(state | head("head.norm") | head("head.fc"), tmp_path / "file.pth")
    assert "unexpected (2): head.norm.weight, head.norm.bias" in error_of(backbone, path)


def test_an_unknown_project_needs_its_prefix_and_what_to_ignore(backbone, state, tmp_path) -> None:
    contents = prefixed("net.visual.", state | head("pooler")) | prefixed("net.text.", head("layer"))
    path = saved(contents, tmp_path / "file.pth")
    assert "give prefix and ignore" in error_of(backbone, path)
    with pytest.raises(UserError, match=r"unexpected \(2\): pooler"):
        load_weights(backbone, path, prefix="net.visual.")
    report = load_weights(backbone, path, prefix="net.visual.", ignore=["pooler."])
    assert_loaded(backbone, state)
    assert (report.prefix, len(report.ignored)) == ("net.visual.", 4)
    with pytest.raises(UserError, match=r"no key begins with 'visual\.'"):
        load_weights(backbone, path, prefix="visual.")
