"""Weights of a timm tag and of a user's loader: read strictly, named by their content, with their own data config."""

import hashlib
import json
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from eval import knn
from eval.parent import choose_normalisation, load_parent_backbone, open_parent
from eval.sources import assumed_images, digest_of_tensors, tag_file
from eval.weights import import_weights, read_weights
from eval.weights_config import WeightsConfig
from runtime import PROJECT
from runtime.config import MachineConfig
from runtime.errors import UserError
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.errors import InvalidInputError

CONFIG = str(PROJECT / "eval" / "configs" / "knn_scenes.yaml")
TAG = "tf_efficientnet_lite0.in1k"  # mean and deviation 0.5, where other weights of the network have ImageNet's
LOADER = """
import torch
from torch import nn

def tiny(channels=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, channels, 3, stride=4, padding=1), nn.BatchNorm2d(channels), nn.ReLU())

def pooled():
    return nn.Sequential(tiny(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def one_size():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 8))

class Fixed(nn.Module):
    def forward(self, images):
        return images + torch.ones(1, 3, 1, 1)  # on the CPU, wherever the images are

def timms():
    import timm
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", num_classes=0)

def text():
    return "network"

def unseeded():
    return nn.Conv2d(3, 8, 3, stride=4, padding=1)

def tied():
    layer = nn.Conv2d(8, 8, 1)
    layer.load_state_dict({"weight": torch.eye(8).view(8, 8, 1, 1), "bias": torch.ones(8)})
    return nn.Sequential(tiny(), layer, layer)

def infinite():
    network = tiny()
    network[0].bias.data[0] = float("inf")
    return network

class Extra(nn.Conv2d):
    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state): ...

def extra():
    return Extra(3, 8, 3, stride=4)

def no_weights():
    return nn.AvgPool2d(4)
"""


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of the hub, without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def cached(hub) -> Path:
    """The hub's cache with a file of the tag, as it is downloaded."""
    folder = hub / f"models--timm--{TAG}"
    (folder / "snapshots" / "0123").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    torch.manual_seed(3)
    save_file(timm.create_model(TAG).state_dict(), file := folder / "snapshots" / "0123" / "model.safetensors")
    return file


@pytest.fixture
def loaders(tmp_path, monkeypatch) -> str:
    """The name of a module in the working directory."""
    name = f"loaders_{hashlib.md5(str(tmp_path).encode()).hexdigest()}"  # no module of another test
    (tmp_path / f"{name}.py").write_text(LOADER)
    monkeypatch.chdir(tmp_path)
    return name


def config(tmp_path: Path, **values) -> WeightsConfig:
    return WeightsConfig(**values, machine=MachineConfig(runs=str(tmp_path / "runs")))


def test_a_tag_is_read_from_the_cache_and_named_by_its_file(cached, tmp_path):
    parent = import_weights(config(tmp_path, timm=TAG))
    assert parent.config["weights"] == {"sha256": hashlib.sha256(cached.read_bytes()).hexdigest(), "timm": TAG}
    file = timm.create_model(TAG)
    file.load_state_dict(timm.models.load_state_dict(str(cached)))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = file.eval().forward_features(images)
        assert torch.equal(load_parent_backbone(parent).eval()(images)[0], expected)


def test_a_tag_brings_its_mean_and_deviation(cached, tmp_path, evaluate, scenes):
    parent = import_weights(config(tmp_path, timm=TAG))
    quick = [*scenes, "neighbours=[3]", "interpolation=bicubic"]
    code, err, run = evaluate(knn.main, parent.run.path, CONFIG, *quick)
    assert code == 0, err
    result = run.result()
    assert (result["normalisation_mean"], result["normalisation_source"]) == ([0.5] * 3, "weights")
    assert (result["resize"], result["image_size"], result["interpolation"]) == (32, 32, "bicubic")
    assert choose_normalisation(parent, "imagenet")[0][0] == 0.485
    assert choose_normalisation(parent, [[0.1, 0.2, 0.3], [1.0, 1.0, 1.0]]) == ((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("tag", "differs"),
    [
        (TAG, ""),
        ("convnext_tiny.in12k_ft_in1k_384", "crop_mode = squash;"),
        ("vit_base_patch16_sapiens2.fb", "crop_mode = squash and 1024 x 768 pixels;"),
    ],
)
def test_images_that_timm_makes_otherwise_are_named(tag, differs):
    text = assumed_images(tag)
    assert bool(text) == bool(differs)
    assert differs in text


def test_a_tag_that_is_not_there_is_an_error_at_once(hub, tmp_path):
    with pytest.raises(UserError, match=r"resnet10t\.c3_in1k are not in timm's cache and cannot be downloaded"):
        import_weights(config(tmp_path, timm="resnet10t.c3_in1k"))
    with pytest.raises(UserError, match=r"timm has no weights 'resnet10t.c4_in1k'.*near it: resnet10t\.c3_in1k"):
        tag_file("resnet10t.c4_in1k")
    assert not (tmp_path / "runs").exists()


def test_a_file_of_another_network_under_a_tag_is_refused(cached, tmp_path):
    state = {key: value for key, value in timm.create_model(TAG).state_dict().items() if key != "conv_stem.weight"}
    save_file(state, cached)
    with pytest.raises(UserError, match=r"does not fit timm's .*conv_stem\.weight"):
        import_weights(config(tmp_path, timm=TAG))
    assert not (tmp_path / "runs").exists()


def test_a_loaders_network_is_evaluated(loaders, tmp_path, evaluate, scenes):
    parent = import_weights(config(tmp_path, loader=f"{loaders}:tiny", args={"channels": 16}))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 3, stride=4, padding=1), nn.BatchNorm2d(16), nn.ReLU()).eval()
    images = torch.randn(2, 3, 40, 32)
    with torch.no_grad():
        feature_map, pooled = load_parent_backbone(parent).eval()(images)
        assert torch.equal(feature_map, network(images))
    assert pooled.shape == (2, 16)
    assert parent.run.name.startswith("tiny-of-")
    code, err, run = evaluate(knn.main, parent.run.path, CONFIG, *scenes, "neighbours=[3]")
    assert code == 0, err
    assert run.result()["normalisation_source"] == "assumed: the file does not say which"
    again = config(tmp_path, loader=f"{loaders}:tiny", args={"channels": 8})
    assert import_weights(again).hash != parent.hash
    with pytest.raises(UserError, match="normalisation = network is not possible"):
        choose_normalisation(parent, "network")


def test_a_loader_of_a_timm_network_brings_its_mean_and_deviation(loaders, tmp_path, capsys):
    """They are of the network's weights by timm, which the loader's need not be, so they are named."""
    parent = import_weights(config(tmp_path, loader=f"{loaders}:timms"))
    assert choose_normalisation(open_parent(parent.run.path), None) == ((0.5,) * 3, (0.5,) * 3)
    assert "if its weights were trained with ImageNet's: normalisation=imagenet" in capsys.readouterr().out
    assert choose_normalisation(open_parent(parent.run.path), "imagenet")[0] == (0.485, 0.456, 0.406)
    assert capsys.readouterr().out == ""


def test_the_network_of_a_loader_must_be_the_same_each_time(loaders, tmp_path):
    file = Path(f"{loaders}.py")
    parent = import_weights(config(tmp_path, loader=f"{loaders}:tiny"))
    assert parent.config["weights"]["sha256"] == digest_of_tensors(load_parent_backbone(parent).trunk.state_dict())
    file.write_text(LOADER)
    with pytest.raises(UserError, match=r"have the SHA-256 .*; expected 0000"):
        read_weights(config(tmp_path, loader=f"{loaders}:tiny", sha256="0" * 64))


def test_a_loaders_layers_may_be_tied(loaders, tmp_path):
    parent = import_weights(config(tmp_path, loader=f"{loaders}:tied"))
    images = torch.randn(2, 3, 32, 32)
    tiny = load_parent_backbone(import_weights(config(tmp_path, loader=f"{loaders}:tiny"))).eval()
    torch.testing.assert_close(load_parent_backbone(parent).eval()(images)[0], tiny(images)[0] + 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("pooled", r"returned \(1, 8\); expected a map \(B, C, h, w\)"),
        ("one_size", r"raised RuntimeError for images \(1, 3, 224, 224\)"),
        ("Fixed", "gives no map on the device of its images"),
        ("text", "returned str; expected an nn.Module"),
        ("missing", "cannot be imported"),
        ("unseeded", "returned other weights when it was called again"),
        ("infinite", "has values of 0.bias that are not finite"),
        ("extra", r"holds _extra_state \(dict\); expected tensors alone"),
        ("no_weights", "holds nothing; expected tensors alone"),
    ],
)
def test_a_loader_that_gives_no_map_or_no_weights_is_refused(loaders, tmp_path, function, message):
    with pytest.raises(UserError, match=message):
        import_weights(config(tmp_path, loader=f"{loaders}:{function}"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one of file"),
        ({"timm": TAG, "loader": "a:b"}, "one of file"),
        ({"file": "a.pth"}, "arch"),
        ({"timm": TAG, "arch": "resnet50"}, "arch"),
        ({"timm": TAG, "prefix": "net."}, "for a file alone"),
    ],
)
def test_weights_come_from_one_place(values, message):
    with pytest.raises((UserError, InvalidInputError, ValueError), match=message):
        WeightsConfig(**values)


def test_a_file_is_checked_without_its_network_being_made(tmp_path):
    """As strictly as it is loaded, on the meta device."""
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save(state, tmp_path / "model.pth")
    backbone, report = read_weights(config(tmp_path, file=str(tmp_path / "model.pth"), arch="resnet18"), "meta")
    assert {tensor.device.type for tensor in backbone.trunk.state_dict().values()} == {"meta"}
    assert report.tensors == len(state)
    torch.save(state | {"conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"shape \(1\): conv1.weight \(64, 3, 3, 3\) instead of \(64, 3, 7, 7\)"):
        read_weights(config(tmp_path, file=str(tmp_path / "model.pth"), arch="resnet18"), "meta")


def test_the_result_of_an_import_says_what_matched(cached, tmp_path):
    run = import_weights(config(tmp_path, timm=TAG)).run
    result = json.loads((run.path / "result.json").read_text())
    assert (result["file"], result["normalisation"]) == (TAG, [[0.5] * 3, [0.5] * 3])
    assert result["assumed_images"] == ""
    assert result["tensors"] == len(timm.create_model(TAG, num_classes=0).state_dict())


def test_positions_that_are_compared_are_compared_without_the_weights_too(tmp_path):
    """A file of DINOv3's names holds the periods of its positions; the network on the meta device has no values."""
    args = {"depth": 1}
    trunk = create_backbone(BackboneConfig("vit_small_patch16_dinov3", args)).trunk
    names = {f"blocks.0.gamma_{k}": f"blocks.0.ls{k}.gamma" for k in (1, 2)} | {"reg_token": "storage_tokens"}
    layout = {names.get(key, key): value for key, value in trunk.state_dict().items()}
    layout |= {"blocks.0.attn.qkv.bias": torch.zeros(3 * 384), "rope_embed.periods": trunk.rope.periods}
    torch.save(layout, tmp_path / "file.pth")
    row = {"file": str(tmp_path / "file.pth"), "arch": "vit_small_patch16_dinov3", "args": args}
    assert read_weights(config(tmp_path, **row), "meta")[1].names == "DINOv3's"
    torch.save(layout | {"rope_embed.periods": 2 * trunk.rope.periods}, tmp_path / "file.pth")
    with pytest.raises(UserError, match=r"rope_embed\.periods is"):
        read_weights(config(tmp_path, **row), "meta")
