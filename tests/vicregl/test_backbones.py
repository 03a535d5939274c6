import pytest
import timm
import torch

from runtime.errors import UserError
from vicregl.backbones import Backbone, create_backbone, without_storage
from vicregl.config import KNOWN_BACKBONES, BackboneConfig
from vicregl.errors import InvalidInputError


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["resnet51"], "near it: .*resnet50"),
        (["resnet50.a1_in1k"], "without the tag of its weights.*resnet50"),
        (["resnet18", {"no_such": 1}], "cannot be made with args.*no_such"),
        (["resnet18", {"num_classes": 10}], "num_classes"),
        (["crossvit_tiny_240"], r"has no map.*features are list.*resnet50"),
    ],
)
def test_what_cannot_be_a_backbone(arguments, expected) -> None:
    with pytest.raises(UserError, match=expected):
        create_backbone(BackboneConfig(*arguments))


class Plain(torch.nn.Module):
    """A network of one's own, of which timm has no description."""

    num_features = 4

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 4, stride=4)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)


def test_a_network_without_timms_description() -> None:
    backbone = Backbone("plain", Plain())
    assert backbone(torch.zeros(2, 3, 32, 32))[0].shape == (2, 4, 8, 8)
    with pytest.raises(InvalidInputError, match="backbone 'bare' has no forward_features and no num_features"):
        Backbone("bare", torch.nn.Conv2d(3, 4, 4))


@pytest.mark.parametrize("name", KNOWN_BACKBONES)
def test_names_that_pass_without_asking_timm_are_networks_of_timm(name) -> None:
    assert timm.is_model(name)


@pytest.mark.parametrize(
    ("name", "args", "stages"),
    [
        ("scenes_resnet", {}, [32, 128]),
        ("resnet18", {"channels": [8, 8, 8, 16]}, [8, 8, 8, 16]),
        ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 12]}, [8, 8, 8, 12]),
        ("mobilenetv3_small_050", {}, [8, 16, 24, 288]),
        ("regnetx_002", {}, [24, 56, 152, 368]),
        ("efficientnet_b0", {}, [16, 24, 40, 112, 1280]),
    ],
)
@torch.no_grad()
def test_any_network_with_a_map(name, args, stages) -> None:
    backbone = create_backbone(BackboneConfig(name, args)).eval()
    images = torch.randn(2, 3, 64, 64)
    feature_map, pooled = backbone(images)
    assert backbone.stage_channels == stages
    assert feature_map.shape == (2, backbone.channels, *backbone.grid_size(64))
    torch.testing.assert_close(pooled, feature_map.mean(dim=(2, 3)))
    actual = backbone.stages(images)
    assert [m.shape[1] for m in actual] == stages
    assert torch.equal(actual[-1], feature_map)


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("efficientnet_b0", [2, 4, 8, 16, 32]),  # its maps are named blocks.*, as those of a ViT
        ("mixnet_s", [2, 4, 8, 16, 32]),
        ("ghostnet_050", [4, 8, 16, 32]),
        ("densenet121", [4, 8, 16, 32]),
        ("dpn48b", [4, 8, 16, 32]),
        ("resnet18", [4, 8, 16, 32]),
        ("vit_tiny_patch16_224", [16, 16, 16, 16]),
        ("convmixer_768_32", [7, 7, 7, 7]),
    ],
)
def test_no_stage_is_left_out_and_no_stem_counts(name, strides) -> None:
    """Each stride once, the stem's aside; of maps of one size, four."""
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(name))
        side = 7 * 32
        maps = backbone.stages(torch.empty(1, 3, side, side))
    assert [side // m.shape[-1] for m in maps] == strides


@pytest.mark.parametrize(
    ("name", "args", "side", "grid", "stages"),
    [
        ("vit_small_patch16_224", {"depth": 8}, 320, (20, 20), [384] * 4),
        ("vit_small_patch16_dinov3", {"depth": 8}, 320, (20, 20), [384] * 4),  # with register tokens
        ("vit_small_patch14_reg4_dinov2", {"depth": 8}, 224, (16, 16), [384] * 4),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, 320, (10, 10), [96, 192, 384, 768]),
        ("hiera_tiny_224", {}, 224, (7, 7), [96, 192, 384, 768]),
        ("mambaout_femto", {}, 96, (3, 3), [48, 96, 192, 288]),
    ],
)
@torch.no_grad()
def test_transformers_give_the_map_of_their_patches(name, args, side, grid, stages) -> None:
    backbone = create_backbone(BackboneConfig(name, args)).eval()
    images = torch.randn(2, 3, side, side)
    feature_map, pooled = backbone(images)
    assert feature_map.shape == (2, backbone.channels, *backbone.grid_size(side)) == (2, stages[-1], *grid)
    torch.testing.assert_close(pooled, feature_map.mean(dim=(2, 3)))
    maps = backbone.stages(images)
    assert [m.shape[1] for m in maps] == backbone.stage_channels == stages
    torch.testing.assert_close(maps[-1], feature_map)
    without_norm = ("hiera_tiny_224", "mambaout_femto")  # they norm what is pooled alone
    assert torch.equal(backbone.last_map(images, final_norm=False), feature_map) == (name in without_norm)


@torch.no_grad()
def test_a_vits_map_is_timms_normed_patch_tokens() -> None:
    """Row by row, without the class token; another size takes resized position embeddings, its own size none."""
    backbone = create_backbone(BackboneConfig("vit_small_patch16_224", {"depth": 6})).eval()
    plain = timm.create_model("vit_small_patch16_224", num_classes=0, depth=6).eval()
    plain.load_state_dict(backbone.trunk.state_dict())
    images = torch.randn(2, 3, 224, 224)
    tokens = plain.forward_features(images)[:, 1:]
    torch.testing.assert_close(backbone(images)[0].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize(
    ("name", "args", "side", "tokens"),
    [
        ("vit_small_patch16_224", {"depth": 4}, (224, 224), 1),
        ("vit_small_patch16_224", {"depth": 4}, (320, 192), 1),
        ("vit_small_patch14_reg4_dinov2", {"depth": 4}, (518, 518), 5),
        ("vit_small_patch16_dinov3", {"depth": 4}, (320, 192), 5),
        ("deit_tiny_distilled_patch16_224", {"depth": 4}, (224, 224), 2),
    ],
)
@torch.no_grad()
def test_class_and_register_tokens_stay_out_of_the_map(name, args, side, tokens) -> None:
    """The map is timm's patch tokens row by row, at sizes that are not square too; the class token is timm's first."""
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig(name, args)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, *side)
    all_tokens = backbone.trunk.forward_features(images)
    patch = backbone.trunk.patch_embed.patch_size[0]
    feature_map, pooled = backbone(images)
    assert feature_map.shape[2:] == (side[0] // patch, side[1] // patch)
    torch.testing.assert_close(feature_map.flatten(2).transpose(1, 2), all_tokens[:, tokens:])
    same_map, class_token = backbone.map_and_class_token(images)
    assert torch.equal(same_map, feature_map)
    torch.testing.assert_close(class_token, all_tokens[:, 0])
    assert not torch.allclose(class_token, pooled, atol=0.1)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("beit_base_patch16_224", {"img_size": 64}),
        ("beitv2_base_patch16_224", {"img_size": 64}),
        ("eva02_tiny_patch14_224", {}),
        ("vit_tiny_patch16_224", {"fc_norm": True}),
        ("vit_tiny_patch16_224", {}),
    ],
)
@torch.no_grad()
def test_a_norm_after_the_pooling_norms_the_tokens(name, args) -> None:
    """The truth is timm's head, which norms what it pools: one token, whichever is put first."""
    torch.manual_seed(0)
    backbone = create_backbone(BackboneConfig(name, {"depth": 5, "embed_dim": 48, "num_heads": 4} | args)).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    images = torch.randn(2, 3, *(2 * [4 * backbone.trunk.patch_embed.patch_size[0]]))
    tokens = backbone.trunk.forward_features(images)
    backbone.trunk.reset_classifier(0, "token")
    expected = [backbone.trunk.forward_head(tokens[:, k:], pre_logits=True) for k in range(tokens.shape[1])]
    feature_map, pooled = backbone(images)
    torch.testing.assert_close(feature_map.flatten(2), torch.stack(expected[1:], dim=2))
    torch.testing.assert_close(pooled, torch.stack(expected[1:]).mean(dim=0))
    same_map, class_token = backbone.map_and_class_token(images)
    assert torch.equal(same_map, feature_map)
    torch.testing.assert_close(class_token, expected[0])
    assert torch.equal(backbone.stages(images)[-1], feature_map)
    assert not torch.allclose(backbone.last_map(images, final_norm=False), feature_map, atol=0.1)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("vit_tiny_patch16_224", {"depth": 4}),
        ("vit_small_patch16_dinov3", {"depth": 4}),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}),
    ],
)
@torch.no_grad()
def test_images_that_are_no_whole_number_of_patches(name, args) -> None:
    """As the whole images of VOC, which segmentation scores: they are enlarged, by less than a patch."""
    backbone = create_backbone(BackboneConfig(name, args)).eval()
    images = torch.randn(1, 3, 250, 333)
    patch = backbone.trunk.patch_embed.patch_size[0]
    whole = [-(-side // patch) * patch for side in (250, 333)]
    enlarged = torch.nn.functional.interpolate(images, whole, mode="bilinear")
    assert torch.equal(backbone.last_map(images), backbone.last_map(enlarged))
    assert all(torch.equal(a, b) for a, b in zip(backbone.stages(images), backbone.stages(enlarged), strict=True))


@pytest.mark.parametrize(
    ("name", "args"),
    [("scenes_resnet", {}), ("hiera_tiny_224", {}), ("vit_betwixt_patch16_reg4_gap_256", {"depth": 4})],
)
def test_networks_without_a_class_token_say_so(name, args) -> None:
    """The last has registers alone."""
    backbone = create_backbone(BackboneConfig(name, args))
    assert not backbone.has_class_token
    with pytest.raises(UserError, match="has no class token"):
        backbone.map_and_class_token(torch.zeros(1, 3, 64, 64))


@torch.no_grad()
def test_dinov3s_convnext() -> None:
    backbone = create_backbone(BackboneConfig("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16]})).eval()
    feature_map, pooled = backbone(torch.randn(2, 3, 96, 160))
    assert feature_map.shape == (2, 16, 3, 5)
    torch.testing.assert_close(pooled, feature_map.mean(dim=(2, 3)))


def test_the_scenes_network() -> None:
    backbone = create_backbone(BackboneConfig("scenes_resnet"))
    assert backbone.grid_size(32) == (8, 8)
    assert backbone.channels == 128
    assert [tuple(m.shape) for m in backbone.stages(torch.zeros(2, 3, 32, 32))] == [(2, 32, 16, 16), (2, 128, 8, 8)]


@pytest.mark.parametrize(
    ("name", "side"),
    [("beitv2_base_patch16_224", 256), ("levit_128s", 96), ("coatnet_nano_rw_224", 96), ("maxvit_tiny_rw_224", 96)],
)
def test_a_size_that_the_network_does_not_take_is_named(name, side) -> None:
    with torch.device("meta"):
        backbone = create_backbone(BackboneConfig(name))
    with pytest.raises(UserError, match=rf"backbone '{name}' takes no images of {side} x {side} pixels: \S") as caught:
        backbone.grid_size(side)
    assert "\n" not in str(caught.value)
    assert backbone.grid_size(224)


@pytest.mark.parametrize(
    ("name", "args", "exact", "inexact"),
    [
        ("resnet18", {}, (64, 224), {100: "4 cells, 32 pixels apart, are taken to share 100 pixels; 128 fits"}),
        ("resnet18", {"output_stride": 8}, (64, 104), {100: "104 fits"}),
        ("convnext_atto", {}, (96, 224), {112: "128 fits", 127: "128 fits"}),
        ("vit_tiny_patch16_224", {}, (96, 100), {}),  # images are enlarged to whole patches
        ("scenes_resnet", {}, (16, 32), {30: "32 fits"}),
        ("pvt_v2_b0", {}, (96,), {}),  # its patches overlap: no image is enlarged
        ("efficientvit_m0", {}, (256,), {}),  # its patch is one number
        ("inception_v4", {}, (), {288: "7 cells, 32 pixels apart, are taken to share 288 pixels"}),  # no padding
    ],
)
def test_a_side_that_the_cells_do_not_cover_is_named(name, args, exact, inexact) -> None:
    """The centres of ConvNeXt's cells in 127 pixels are 14.5, 49.4 and 78.9, and not 21.2, 63.5 and 105.8."""
    backbone = without_storage(lambda: create_backbone(BackboneConfig(name, args)))
    assert [backbone.misfit(side) for side in exact] == [""] * len(exact)
    for side, text in inexact.items():
        assert backbone.misfit(side).endswith(text)


def test_an_assertion_of_the_network_without_a_word_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"'output_stride': 8\}: AssertionError"):
        create_backbone(BackboneConfig("vgg11", {"output_stride": 8}))


def test_the_grid_of_an_image_that_is_not_square() -> None:
    backbone = create_backbone(BackboneConfig("beit_base_patch16_224", {"depth": 1, "img_size": (32, 64)}))
    assert backbone.grid_size(32, 64) == (2, 4)
    with pytest.raises(UserError, match="no images of 64 x 32 pixels"):
        backbone.grid_size(64, 32)


def test_networks_that_compute_with_values_are_made_with_storage() -> None:
    """As those with `[rate.item() for rate in torch.linspace(...)]`, which the meta device cannot do."""

    def make() -> torch.nn.Module:
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        return torch.nn.Linear(len(rates), 1)

    def wrapped() -> torch.nn.Module:
        try:
            return make()
        except RuntimeError as error:
            raise InvalidInputError("cannot be made") from error

    for each in (make, wrapped):
        assert without_storage(each).weight.device.type == "cpu"
    assert without_storage(lambda: torch.nn.Linear(3, 1)).weight.device.type == "meta"
    with pytest.raises(InvalidInputError, match="no_such"):
        without_storage(lambda: create_backbone(BackboneConfig("resnet18", {"no_such": 1})))


def test_grid_size_leaves_the_network_as_it_was() -> None:
    backbone = create_backbone(BackboneConfig("scenes_resnet"))
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    assert backbone.grid_size(30) == (8, 8)
    assert backbone.grid_size(96) == (24, 24)
    assert backbone.training
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
