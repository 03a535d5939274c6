import pytest
import torch
from torch import nn

from runtime.errors import UserError
from vicregl.config import BackboneConfig, ModelConfig
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

SMALL = BackboneConfig("scenes_resnet", {"width_factor": 0.25})


def config(**changed) -> ModelConfig:
    return ModelConfig(**{"backbone": SMALL, "expander": "24-40", "projector": "12-12-10"} | changed)


def views(batch: int = 4) -> list[torch.Tensor]:
    return [torch.randn(batch, 3, side, side) for side in (32, 32, 16)]


def test_shapes() -> None:
    output = VICRegLModel(config(), alpha=0.5)(views())
    assert [tuple(z.shape) for z in output.embeddings] == [(4, 40)] * 3
    assert [tuple(m.shape) for m in output.maps] == [(4, 64, 10), (4, 64, 10), (4, 16, 10)]
    assert [tuple(p.shape) for p in output.pooled] == [(4, 32)] * 3
    assert [tuple(f.shape) for f in output.features] == [(4, 64, 32), (4, 64, 32), (4, 16, 32)]
    assert not any(t.requires_grad for t in (*output.pooled, *output.features))


def test_maps_are_row_by_row() -> None:
    """Position p is row p // W, column p % W, as the locations flatten."""
    model = VICRegLModel(config(), alpha=0.5).eval()
    images = views()[0]
    output, feature_map = model([images, images]), model.backbone(images)[0]
    torch.testing.assert_close(output.features[0][:, 8 * 3 + 5], feature_map[:, :, 3, 5])
    torch.testing.assert_close(output.maps[0][:, 8 * 3 + 5], model.projector(feature_map[:, :, 3, 5]))


CONVNEXT = BackboneConfig("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 16], "ls_init_value": None})


def calls_of(model: VICRegLModel) -> list[tuple[int, ...]]:
    """The shapes that the backbone is called with from now on."""
    shapes: list[tuple[int, ...]] = []
    stem = next(module for module in model.backbone.modules() if isinstance(module, nn.Conv2d))
    stem.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    return shapes


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stages", [[-1], [-2, -1]])
def test_views_of_one_size_are_one_call_without_batch_statistics(alpha, stages) -> None:
    torch.manual_seed(0)
    model = VICRegLModel(config(backbone=CONVNEXT, projector_norm="layer", local_stages=stages), alpha).double()
    images = [torch.randn(3, 3, side, side, dtype=torch.float64) for side in (64, 32, 64, 32, 32)]
    shapes = calls_of(model)
    actual = model(images)
    assert shapes == [(6, 3, 64, 64), (9, 3, 32, 32)]
    singly = [model([view]) for view in images]
    for k, view in enumerate(singly):
        for name in ("embeddings", "pooled", "features"):
            for one in getattr(view, name):
                torch.testing.assert_close(getattr(actual, name)[k], one, rtol=1e-12, atol=1e-12)
        for stage, one in enumerate(view.maps):
            same = actual.maps[stage][k] if model.stages else actual.maps[k]
            torch.testing.assert_close(same, one[0] if model.stages else one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changed", [{}, {"backbone": CONVNEXT}])
def test_batch_statistics_are_of_one_view(changed) -> None:
    """Of the backbone's norms, or of the heads' alone."""
    model = VICRegLModel(config(**changed), alpha=0.5)
    shapes = calls_of(model)
    model([torch.randn(3, 3, 64, 64) for _ in range(2)])
    assert shapes == [(3, 3, 64, 64)] * 2


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("stages", [[-1], [-2, -1], [0]])
def test_the_unused_half_is_not_made(alpha, stages) -> None:
    model = VICRegLModel(config(local_stages=stages), alpha)
    assert (model.expander is None) == (alpha == 0)
    assert (model.projector is None) == (alpha == 1)
    output = model(views())
    assert len(output.embeddings) == (0 if alpha == 0 else 3)
    assert (len(output.maps) == 0) == (alpha == 1)
    locations = [torch.rand(4, s, s, 2) * 32 for s in (8, 8, 4)]
    losses = VICRegLCriterion(alpha=alpha, num_matches=(5, 2))(output.embeddings, output.maps, locations)
    losses["loss"].backward()
    heads = [head for head in (model.expander, model.projector) if head is not None]
    assert all(p.grad is not None and p.grad.isfinite().all() for head in heads for p in head.parameters())


def test_several_stages() -> None:
    output = VICRegLModel(config(local_stages=[0, 1]), alpha=0.5)(views())
    assert [tuple(m.shape) for m in output.maps[0]] == [(4, 16, 16, 10), (4, 16, 16, 10), (4, 8, 8, 10)]
    assert [tuple(m.shape) for m in output.maps[1]] == [(4, 8, 8, 10), (4, 8, 8, 10), (4, 4, 4, 10)]


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_heads(norm, kind) -> None:
    model = VICRegLModel(config(projector_norm=norm), alpha=0.5)
    linear = [m for m in model.projector.modules() if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features, m.bias is not None) for m in linear] == [
        (32, 12, True),
        (12, 12, True),
        (12, 10, False),
    ]
    assert sum(isinstance(m, kind) for m in model.projector.modules()) == 2
    assert sum(isinstance(m, kind) for m in model.expander.modules()) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"expander": "8-"},
        {"projector": "0-4"},
        {"projector_norm": "group"},
        {"local_stages": []},
        {"local_stages": [5]},
        {"local_stages": [-1, -1]},
        {"local_stages": [-1, 1]},
    ],
)
def test_impossible_configs(changed) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(changed))} = "):
        VICRegLModel(config(**changed), alpha=0.5)
