"""How features are computed: precision and layout are named and stay near the reference, chunks fit the memory."""

from __future__ import annotations

import pytest
import torch

from eval import dense_knn, features, knn, linear, segmentation
from eval.config import DenseKnnConfig, KnnConfig, LinearConfig, identity
from eval.features import PooledFeatures, choose_chunk
from eval.parent import load_parent_backbone, open_parent
from eval.segmentation_config import SegmentationConfig
from runtime.config import ComputeConfig
from runtime.device import choose_convolutions, free_bytes

CPU = torch.device("cpu")
GIGABYTE = 1 << 30


@pytest.mark.parametrize(
    ("schema", "protocol"),
    [
        (LinearConfig, "linear"),
        (KnnConfig, "knn"),
        (DenseKnnConfig, "dense kNN"),
        (SegmentationConfig, "frozen linear"),
    ],
)
def test_what_differs_from_the_reference_is_in_the_name_and_in_the_identity(schema, protocol):
    reference, quick = schema(), schema(precision="bfloat16", channels_last=True)
    assert reference.protocol == protocol
    assert schema(precision="bfloat16").protocol == f"{protocol}, bfloat16"
    assert quick.protocol == f"{protocol}, bfloat16, channels last"
    assert not {"precision", "channels_last"} & identity(reference, "0123456789").config.keys()
    assert identity(quick, "0123456789").config["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"channels_last": True}, 1e-5),
        ({"precision": "bfloat16"}, 0.05),
        ({"precision": "bfloat16", "channels_last": True}, 0.05),
    ],
)
def test_features_are_float32_and_near_the_reference(options, tolerance, parent):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = PooledFeatures(load_parent_backbone(open_parent(parent)), CPU)(images)
    passes = PooledFeatures(load_parent_backbone(open_parent(parent)), CPU, ComputeConfig(**options))
    found = passes(images)
    assert found.dtype == passes.maps(images).dtype == torch.float32
    assert (found - expected).norm() < tolerance * expected.norm()
    if "precision" in options:
        assert not torch.equal(found, expected)
    if "channels_last" in options:
        weights = [p for p in passes.backbone.parameters() if p.dim() == 4 and p.shape[2] > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


STAGES = [
    (knn, "knn_scenes", ["neighbours=[3]", "image_size=16", "resize=16"], "knn, bfloat16"),
    (linear, "linear_scenes", ["epochs=2", "image_size=16", "resize=16"], "linear cached, bfloat16"),
    (linear, "finetune_scenes", ["epochs=2", "image_size=16", "resize=16"], "finetuned, bfloat16"),
]


@pytest.mark.parametrize(("stage", "config", "options", "protocol"), STAGES, ids=[config for _, config, *_ in STAGES])
def test_bfloat16_is_a_run_of_its_own(stage, config, options, protocol, image_folder, parent, evaluate):
    data = ["data.name=imagefolder", f"data.root={image_folder}", "held_out=0.2", *options]
    runs = []
    for precision in ("float32", "bfloat16"):
        code, error, run = evaluate(stage.main, parent, f"eval/configs/{config}.yaml", *data, f"precision={precision}")
        assert code == 0, error
        runs.append(run)
    assert runs[0].name != runs[1].name
    assert runs[1].result()["protocol"] == protocol
    assert runs[1].result()["top1"] == pytest.approx(runs[0].result()["top1"], abs=30)
    losses = [[row["loss"] for row in run.metrics()] for run in runs]
    assert losses[0] != losses[1] or stage is knn
    for row, same in zip(*losses, strict=True):
        assert row == pytest.approx(same, rel=0.1)


def test_a_segmentation_in_channels_last_trains_to_the_same(scenes, parent, evaluate):
    options = ["iterations=4", "batch_size=2", "crop_size=32", "machine.log_steps=1", "machine.predictions=0"]
    losses = []
    for layout in ("false", "true"):
        config, changes = "eval/configs/seg_scenes.yaml", [*scenes, *options, f"channels_last={layout}"]
        code, error, run = evaluate(segmentation.main, parent, config, *changes)
        assert code == 0, error
        losses.append([row["loss"] for row in run.metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert run.result()["protocol"] == "frozen linear, channels last"


def test_chunks_are_a_quarter_of_what_is_free_on_a_gpu(monkeypatch):
    gpu = torch.device("cuda", 0)
    for free, chunk in ((40 * GIGABYTE, 8 * GIGABYTE), (33 * GIGABYTE, 8 * GIGABYTE), (4 * GIGABYTE, GIGABYTE)):
        monkeypatch.setattr(features, "free_bytes", lambda device, free=free: free)
        assert choose_chunk(gpu) == chunk
    assert choose_chunk(gpu, 100) == choose_chunk(CPU, 100) == 100 << 20
    assert choose_chunk(CPU) == 256 << 20


@pytest.mark.gpu
def test_free_memory_counts_what_torch_keeps():
    before = free_bytes(torch.device("cuda"))
    torch.empty(1 << 28, dtype=torch.uint8, device="cuda")  # freed, and kept
    assert free_bytes(torch.device("cuda")) == pytest.approx(before, rel=0.05)


@pytest.fixture
def cudnn(monkeypatch):
    for name in ("benchmark", "deterministic"):
        monkeypatch.setattr(torch.backends.cudnn, name, False)
    return torch.backends.cudnn


def test_convolutions_are_timed_on_gpus_unless_bits_have_to_repeat(cudnn):
    for device, deterministic, expected in (
        ("cuda", False, (True, False)),
        ("cuda", True, (False, True)),
        ("cpu", False, (False, False)),
    ):
        choose_convolutions(torch.device(device), deterministic)
        assert (cudnn.benchmark, cudnn.deterministic) == expected


def test_every_stage_chooses_its_convolutions(scenes, parent, evaluate, monkeypatch):
    chosen = []
    for stage in (linear, knn, dense_knn, segmentation):
        record = lambda device, deterministic=False, stage=stage: chosen.append((stage.__name__, deterministic))  # noqa: E731
        monkeypatch.setattr(stage, "choose_convolutions", record)
    small = ["machine.predictions=0", "iterations=2", "batch_size=2", "crop_size=32"]
    for stage, config, options in (
        (linear, "linear", ["epochs=1"]),
        (linear, "finetune", ["epochs=1"]),
        (knn, "knn", ["neighbours=[3]"]),
        (dense_knn, "dense_knn", ["neighbours=[3]", "memory=500"]),
        (segmentation, "seg", small),
    ):
        code, error, _ = evaluate(stage.main, parent, f"eval/configs/{config}_scenes.yaml", *scenes, *options)
        assert code == 0, error
    names = ["eval.linear", "eval.linear", "eval.knn", "eval.dense_knn", "eval.segmentation"]
    assert chosen == list(zip(names, [False, True, False, False, True], strict=True))
