"""Evaluations score on a GPU what they score on the CPU: features, linear heads, kNN of images and of positions."""

import pytest
import torch

from eval import dense_knn, knn, linear
from eval.features import PooledFeatures
from eval.parent import load_parent_backbone, open_parent
from runtime.rundir import Run

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PER_IMAGE = 5.0  # points of top-1: of 20 images


@pytest.fixture(autouse=True)
def _float32(monkeypatch):
    """Without TF32, which torch allows convolutions and rounds to three digits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["scenes_resnet", "convnext_atto"])
def test_features_are_those_of_a_plain_call(make_parent, device, name):
    parent = open_parent(make_parent(name))
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, pooled = load_parent_backbone(parent).eval()(images)
    features = PooledFeatures(load_parent_backbone(parent), torch.device(device))
    for found, expected in ((features.maps(images), maps), (features(images), pooled)):
        assert (found.device.type, found.dtype) == (device, torch.float32)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("stage", "config", "score", "tolerance", "options"),
    [
        (linear, "linear", "top1", PER_IMAGE, ["mode=cached", "epochs=3"]),
        (linear, "linear", "top1", PER_IMAGE, ["mode=augmented", "epochs=2", "machine.workers=1"]),
        (knn, "knn", "top1", PER_IMAGE, ["neighbours=[3]", "machine.workers=1"]),
        (dense_knn, "dense_knn", "miou", 1.0, ["neighbours=[3]", "memory=500", "machine.workers=1"]),
    ],
    ids=["cached heads", "heads on crops", "kNN", "dense kNN"],
)
def test_scores_are_those_of_the_cpu(
    scenes, parent, evaluate, tmp_path, device, stage, config, score, tolerance, options
):
    results = []
    for where in ("cpu", device):
        chosen = [*options, f"machine.device={where}", f"machine.runs={tmp_path}/of-{where}-{len(results)}"]
        code, error, _ = evaluate(stage.main, parent, f"eval/configs/{config}_scenes.yaml", *scenes, *chosen)
        assert code == 0, error
        (folder,) = (tmp_path / f"of-{where}-{len(results)}" / config).iterdir()
        results.append(Run(folder).result())
    assert results[1][score] == pytest.approx(results[0][score], abs=tolerance)
    assert results[1].keys() == results[0].keys()
