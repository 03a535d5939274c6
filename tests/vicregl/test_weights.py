"""load_weights is strict: what does not fit, or cannot be read, is an error that says so."""

import argparse
import re

import pytest
import torch
from published_weights import as_full_checkpoint
from safetensors.torch import save_file
from timm.models import eva, vision_transformer

from runtime.errors import UserError
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weight_names import published_state
from vicregl.weights import load_weights

SMALL = BackboneConfig("scenes_resnet", {"width_factor": 0.25})


@pytest.fixture
def backbone():
    return create_backbone(SMALL)


@pytest.fixture
def state():
    return {key: value.clone() for key, value in create_backbone(SMALL).trunk.state_dict().items()}


def saved(contents, path):
    torch.save(contents, path)
    return path


def error_of(backbone, path) -> str:
    before = {key: value.clone() for key, value in backbone.trunk.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(backbone, path)
    assert all(torch.equal(value, before[key]) for key, value in backbone.trunk.state_dict().items())
    return str(caught.value)


def assert_loaded(backbone, state) -> None:
    assert all(torch.equal(value, state[key]) for key, value in backbone.trunk.state_dict().items())


def test_our_own_file(backbone, state, tmp_path) -> None:
    save_file(state, tmp_path / "backbone.safetensors")
    report = load_weights(backbone, tmp_path / "backbone.safetensors")
    assert_loaded(backbone, state)
    assert report.tensors == len(state)
    assert report.values == sum(value.numel() for value in state.values())


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


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def head(name: str) -> dict:
    return {f"{name}.weight": torch.ones(3, 4), f"{name}.bias": torch.ones(3)}


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


@pytest.mark.parametrize(
    ("prefix", "more"),
    [
        ("", {}),  # DINO's published backbones
        ("teacher/backbone.", head("dino_head.mlp.0")),
        ("", {"mask_token": torch.zeros(1, 384)}),  # DINOv2's
        ("state_dict/module.base_encoder.", head("module.predictor.0")),  # MoCo 3
    ],
)
def test_vision_transformers(prefix, more, tmp_path) -> None:
    config = BackboneConfig("vit_small_patch16_224", {"depth": 2})
    torch.manual_seed(1)
    state = create_backbone(config).trunk.state_dict()
    container, _, before = prefix.rpartition("/")
    contents = prefixed(before, dict(state) | (head("head.0") if container == "state_dict" else {})) | more
    backbone = create_backbone(config)
    report = load_weights(backbone, saved({container: contents} if container else contents, tmp_path / "file.pth"))
    assert_loaded(backbone, state)
    assert (report.container, report.prefix, bool(report.ignored)) == (container, before, bool(more))


def test_dinov3_convnext(tmp_path) -> None:
    """The published names, with the last norm a second time in a list of norms."""
    config = BackboneConfig("convnext_atto")
    torch.manual_seed(1)
    other_backbone = create_backbone(config)
    for parameter in other_backbone.trunk.parameters():
        torch.nn.init.normal_(parameter)
    state = published_state(other_backbone)
    state |= {f"norms.3.{name}": state[f"norm.{name}"] for name in ("weight", "bias")}
    backbone = create_backbone(config)
    report = load_weights(backbone, saved(state, tmp_path / "file.pth"))
    assert_loaded(backbone, other_backbone.trunk.state_dict())
    assert (report.names, sorted(report.ignored)) == ("the published ConvNeXts'", ["norms.3.bias", "norms.3.weight"])


def meta_layout(state: dict, registers: str, swiglu: dict[str, str]) -> dict:
    """Meta's names for the tensors of one of timm's vision transformers, as its published files have them."""
    layout = {"mask_token": torch.zeros(1, state["cls_token"].shape[-1])}
    for key, value in state.items():
        for ours, theirs in {"reg_token": registers, "gamma_": "ls", **swiglu}.items():
            key = key.replace(ours, theirs)
        layout[f"{key}.gamma" if key.endswith((".ls1", ".ls2")) else key] = value
    return layout


@pytest.mark.parametrize(
    ("name", "bias"),
    [
        ("vit_small_patch16_dinov3", False),
        ("vit_small_patch16_dinov3_qkvb", True),
        ("vit_small_plus_patch16_dinov3", False),  # SwiGLU
    ],
)
def test_dinov3_vision_transformers(name, bias, tmp_path) -> None:
    """At full size. The file equals timm's own conversion of it; its biases of keys are masked, so they may be any."""
    torch.manual_seed(1)
    trunk = create_backbone(BackboneConfig(name)).trunk
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter)
    state = trunk.state_dict()
    layout = meta_layout(
        state, "storage_tokens", {"fc1_g": "w1", "fc1_x": "w2", **({"fc2": "w3"} if "plus" in name else {})}
    )
    for k, block in enumerate(trunk.blocks):
        width = len(block.norm1.weight)
        query, values = (layout.pop(f"blocks.{k}.attn.{n}_bias", torch.zeros(width)) for n in "qv")
        layout[f"blocks.{k}.attn.qkv.bias"] = torch.cat([query, torch.full((width,), 3.0), values])
        layout[f"blocks.{k}.attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    layout["rope_embed.periods"] = trunk.rope.periods.bfloat16()
    backbone = create_backbone(BackboneConfig(name))
    report = load_weights(backbone, saved(layout, tmp_path / "file.pth"))
    assert_loaded(backbone, state)
    assert report.names == "DINOv3's"
    assert {"mask_token", "rope_embed.periods", "blocks.0.attn.qkv.bias_mask"} <= set(report.ignored)
    assert ("blocks.0.attn.qkv.bias" in report.ignored) == (not bias)
    assert_loaded(backbone, eva.checkpoint_filter_fn(dict(layout), backbone.trunk))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"rope_embed.periods": 2 * s["rope_embed.periods"]}), "rope_embed.periods is"),
        (lambda s: s.update({"rope_embed.periods": torch.ones(3)}), "rope_embed.periods is"),
        (lambda s: s["blocks.0.attn.qkv.bias"].fill_(1.0), "qkv.bias is not 0.*vit_small_patch16_dinov3_qkvb"),
        (lambda s: s.pop("storage_tokens"), r"missing \(1\): reg_token"),
        (lambda s: s.pop("blocks.0.ls1.gamma"), r"missing \(1\): blocks.0.gamma_1"),
        (lambda s: s.update({"cls_norm.weight": torch.ones(384)}), r"unexpected \(1\): cls_norm.weight"),
    ],
)
def test_a_dinov3_file_that_does_not_fit(change, message, tmp_path) -> None:
    config = BackboneConfig("vit_small_patch16_dinov3", {"depth": 1})
    backbone = create_backbone(config)
    layout = meta_layout(backbone.trunk.state_dict(), "storage_tokens", {})
    layout |= {"rope_embed.periods": backbone.trunk.rope.periods, "blocks.0.attn.qkv.bias": torch.zeros(3 * 384)}
    load_weights(create_backbone(config), saved(layout, tmp_path / "fits.pth"))
    change(layout)
    assert re.search(message, error_of(backbone, saved(layout, tmp_path / "file.pth")))


@pytest.mark.parametrize(
    ("name", "args", "names"),
    [
        ("vit_small_patch14_reg4_dinov2", {}, "DINOv2's"),
        ("vit_small_patch14_dinov2", {}, ""),
        ("vit_giant_patch14_reg4_dinov2", {"depth": 1}, "DINOv2's"),  # SwiGLU
        ("vit_giant_patch14_dinov2", {"depth": 1}, "DINOv2's"),
    ],
)
def test_dinov2_vision_transformers(name, args, names, tmp_path) -> None:
    """With registers, the class token of the file still lacks its position embedding."""
    torch.manual_seed(1)
    state = create_backbone(BackboneConfig(name, args)).trunk.state_dict()
    layout = meta_layout(state, "register_tokens", {"fc1": "w12", "fc2": "w3"} if "giant" in name else {})
    if "reg4" in name:
        position = torch.full((1, 1, state["cls_token"].shape[-1]), 0.5)
        layout |= {"cls_token": state["cls_token"] - position}
        layout["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    backbone = create_backbone(BackboneConfig(name, args))
    report = load_weights(backbone, saved(layout, tmp_path / "file.pth"))
    for key, value in backbone.trunk.state_dict().items():
        torch.testing.assert_close(value, state[key], msg=key)
    assert (report.names, report.ignored) == (names, ["mask_token"])
    assert_loaded(backbone, vision_transformer.checkpoint_filter_fn(dict(layout), backbone.trunk))
    del layout["blocks.0.ls1.gamma"]
    assert "missing (1): blocks.0.ls1.gamma" in error_of(backbone, saved(layout, tmp_path / "other.pth"))


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
