"""Files of vision transformers and of DINOv2 and DINOv3, whose names are not timm's; made at full size."""

import re

import pytest
import torch
from timm.models import eva, vision_transformer
from weight_files import assert_loaded, error_of, head, prefixed, saved

from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.weight_names import published_state
from vicregl.weights import load_weights


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
    heads = {"num_heads": 12} if "base_encoder" in prefix else {}
    config = BackboneConfig("vit_small_patch16_224", {"depth": 2} | heads)
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
