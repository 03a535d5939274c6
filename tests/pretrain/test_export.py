"""Exported backbones: the published key layouts to the letter, and a way back that loses nothing."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from pretrain.export import main
from runtime.errors import UserError, run_command
from runtime.rundir import Identity, Run, open_run
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weight_names import published_state
from vicregl.weights import load_weights

SMALL_CONVNEXT = {"depths": [1, 2, 1, 1], "dims": [8, 12, 16, 24], "ls_init_value": None}


@pytest.fixture
def make_run(tmp_path):
    """make_run(name, args) -> a finished pretraining run with random weights, and its backbone."""

    def make(name: str, args: dict, done: bool = True, stage: str = "pretrain"):
        backbone = create_backbone(BackboneConfig(name, args))
        config = {"model": {"backbone": {"name": name, "args": args}}, "seed": 0}
        with open_run(tmp_path / "runs", Identity(stage, name, 1, config), {}) as run:
            save_file(
                {k: v.contiguous() for k, v in backbone.trunk.state_dict().items()}, run.path / "backbone.safetensors"
            )
            if done:
                run.write_result({"steps": 1})
        return run, backbone

    return make


def export(run: Run, *arguments: str) -> None:
    main([str(run.path), *arguments])


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("names", ["published", "timm"])
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet18", {}),
        ("convnext_atto", SMALL_CONVNEXT),
        ("convnext_atto", SMALL_CONVNEXT | {"ls_init_value": 1e-6}),
        ("convnext_tiny", SMALL_CONVNEXT),
    ],
)
def test_there_and_back(make_run, tmp_path, name, args, names) -> None:
    run, backbone = make_run(name, args)
    export(run, "--format", names, "--out", str(tmp_path / "file.pth"))
    other = create_backbone(BackboneConfig(name, args))
    load_weights(other, tmp_path / "file.pth")
    assert_same(other.trunk.state_dict(), backbone.trunk.state_dict())


def test_a_network_whose_keys_begin_with_encoder(make_run, tmp_path) -> None:
    """As the prefix that is taken off the files of other projects."""
    run, backbone = make_run("qwen3_vit_88m", {"embed_dim": 32, "depth": 1, "num_heads": 2})
    export(run, "--format", "timm", "--out", str(tmp_path / "file.pth"))
    assert_same(torch.load(tmp_path / "file.pth", weights_only=True), dict(backbone.trunk.state_dict()))


def test_a_resnet_loads_into_torchvision(make_run) -> None:
    """The network of other people's scripts, strictly, its classifier apart; and it computes the same."""
    from torchvision.models import resnet18

    run, backbone = make_run("resnet18", {})
    export(run)
    state = torch.load(run.path / "backbone_published.pth", weights_only=True)
    network = resnet18()
    network.fc = torch.nn.Identity()
    network.load_state_dict(state, strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), backbone.eval()(images)[1])


def test_what_cannot_be_exported_is_named(make_run, tmp_path, monkeypatch, capsys) -> None:
    def error(*argv: object) -> str:
        monkeypatch.setattr(sys, "argv", ["export", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            run_command(main)
        assert ended.value.code == 2
        return capsys.readouterr().err

    run, _ = make_run("scenes_resnet", {})
    assert "scenes_resnet" in error(run.path)
    assert not list(run.path.glob("*.pth"))
    export(run, "--format", "timm")
    assert "nowhere is not a folder" in error(run.path, "--format", "timm", "--out", tmp_path / "nowhere" / "file.pth")
    (run.path / "backbone.safetensors").unlink()
    assert "backbone.safetensors does not exist" in error(run.path, "--format", "timm")
    assert "gone is not a folder" in error(tmp_path / "gone")
    assert "is interrupted" in error(make_run("resnet18", {}, done=False)[0].path)
    assert "'linear'" in error(make_run("resnet18", {}, stage="linear")[0].path)
    changed, _ = make_run("convnext_atto", SMALL_CONVNEXT)
    document = changed.path / "run.yaml"
    document.write_text(document.read_text().replace("seed: 0", "seed: 1"))
    assert "was changed" in error(changed.path)


def test_a_convnext_of_the_second_version_has_no_published_names() -> None:
    args = {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "use_grn": True, "ls_init_value": None}
    with pytest.raises(UserError, match=r"mlp\.grn\.weight.*--format timm"):
        published_state(create_backbone(BackboneConfig("convnext_atto", args)))
