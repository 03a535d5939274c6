"""Segmentation as a user runs it: mIoU against brute force, frozen means frozen, heads, precision, it repeats."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from segmentation_tools import CONFIG, HEAD, SMALL, brute_force_iou, count_opens, head_of, predict, runner_of
from torch import nn

from data.catalog import open_dataset
from data.images import normalise, read_image
from eval import command, mmseg_runner, segmentation
from eval.parent import load_parent_backbone, open_parent
from eval.predictions import load_predictions
from eval.segmentation_config import SegmentationConfig
from runtime import compat, provenance
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Run
from runtime.world import World, world_from_environment

TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "ls_init_value": None}


@pytest.mark.parametrize("taps", ["last", "all"])
def test_miou_equals_brute_force(taps, scenes, parent, evaluate, monkeypatch):
    drawn = {}
    monkeypatch.setattr(mmseg_runner, "draw_predictions", lambda _layout, predictions, _path: drawn.update(predictions))
    code, error, run = evaluate(
        segmentation.main, parent, CONFIG, *scenes, *SMALL, f"taps={taps}", "optimizer.lr=1.0", "machine.predictions=4"
    )
    assert code == 0, error
    result, state = run.result(), head_of(run)
    layout = open_dataset(configs.load(SegmentationConfig, CONFIG, scenes).data).segmentation()
    names = layout.names("val")
    images = [layout.image("val", name) for name in names]
    masks = [np.array(Image.open(layout.mask("val", name))) for name in names]
    assert any((mask == 255).any() for mask in masks)
    backbone = load_parent_backbone(open_parent(parent)).eval()
    predictions = [predict(backbone, state, image, taps) for image in images]
    expected = brute_force_iou(predictions, masks, 11)
    assert len({int(k) for p in predictions for k in np.unique(p)}) > 3  # or the comparison says little
    # An argmax may tip where two logits are equal to the last digits, so not to more than a pixel or two.
    assert [result["iou"][name] for name in layout.classes] == pytest.approx(expected, abs=0.3)
    assert result["miou"] == pytest.approx(np.mean([share for share in expected if share is not None]), abs=0.1)
    right = sum(int((p == m).sum()) for p, m in zip(predictions, masks, strict=True))
    assert result["aacc"] == pytest.approx(100 * right / sum(int((m != 255).sum()) for m in masks), abs=0.1)
    assert list(drawn) == [names[k] for k in (0, 6, 13, 19)]
    assert all((drawn[names[k]] == predictions[k]).mean() > 0.99 for k in (0, 6, 13, 19))
    kept = load_predictions(run)
    assert list(kept) == list(drawn)
    assert all(np.array_equal(kept[name], drawn[name]) for name in drawn)
    assert (result["protocol"], result["taps"]) == ("frozen linear", taps)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("taps", ["last", "all"])
def test_the_weights_are_read_once(taps, scenes, parent, evaluate):
    """As often as the file is opened for one backbone, counted by the kernel."""
    file = parent / "backbone.safetensors"
    with count_opens(file) as once:
        load_parent_backbone(open_parent(parent))
    with count_opens(file) as all_of_a_run:
        code, error, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, f"taps={taps}")
    assert code == 0, error
    assert 0 < len(once) == len(all_of_a_run)


def test_the_environment_is_read_once(scenes, parent, evaluate, monkeypatch):
    """By the command, and by the record of an attempt; to read it again would be an error here."""
    for module in (command, provenance):
        monkeypatch.setattr(module, "world_from_environment", World)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="the environment has some of torchrun's variables"):
        world_from_environment()
    code, error, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert code == 0, error


def test_network_sees_the_pixels_that_pretraining_saw(scenes, parent, tmp_path):
    """Colour order, mean and deviation, and the masks: of mmsegmentation's pipeline and of data.images."""
    runner, layout = runner_of(parent, tmp_path, scenes)
    loader = runner.build_dataloader(runner._val_dataloader)
    batch = runner.model.data_preprocessor(next(iter(loader)))
    for inputs, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
        torch.testing.assert_close(inputs, normalise(read_image(Path(sample.img_path))), rtol=1e-4, atol=1e-4)
        mask = np.array(Image.open(layout.mask("val", Path(sample.img_path).stem)))
        assert (sample.gt_sem_seg.data[0].numpy() == mask).all()


def test_initialisation_leaves_the_pretrained_weights(scenes, parent, tmp_path):
    runner, _ = runner_of(parent, tmp_path, scenes)
    runner.model.init_weights()
    runner.model.train()
    network = runner.model.backbone.network
    expected = load_file(parent / "backbone.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in network.trunk.state_dict().items())
    assert not network.training
    assert runner.model.decode_head.training
    assert runner.model.decode_head.conv_seg.weight.std().item() == pytest.approx(0.01, rel=0.15)
    trained = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{HEAD}{name}" for name in ("conv_seg.weight", "conv_seg.bias", "norm.weight", "norm.bias")}


@pytest.mark.parametrize("finetune", [False, True])
def test_backbone_changes_only_when_finetuned(finetune, scenes, parent, evaluate, monkeypatch):
    seen = {}

    def keep(runner, _parent):
        seen["frozen check"] = True

    monkeypatch.setattr(segmentation, "refuse_changed_backbone", keep)
    build = segmentation.build_runner
    monkeypatch.setattr(segmentation, "build_runner", lambda *a: seen.setdefault("runner", build(*a)))
    _, error, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, f"finetune={str(finetune).lower()}")
    assert run.result() is not None, error
    expected = load_file(parent / "backbone.safetensors")
    trained = seen["runner"].model.backbone.network.trunk.state_dict()
    changed = {key for key in expected if not torch.equal(trained[key], expected[key])}
    assert changed == (set(expected) if finetune else set())
    assert ("frozen check" in seen) is not finetune
    assert run.result()["protocol"] == ("finetuned linear" if finetune else "frozen linear")
    assert run.metrics()[0]["learning_rate"] == pytest.approx(0.03)  # the head's
    in_checkpoint = [key for key in head_of(run) if key.startswith("backbone.")]
    assert bool(in_checkpoint) is finetune
    if finetune:
        assert {group["initial_lr"] for group in seen["runner"].optim_wrapper.param_groups} == {0.03, 0.03 * 0.1}


def test_a_changed_frozen_backbone_is_a_bug_that_stops(scenes, parent, tmp_path):
    runner, _ = runner_of(parent, tmp_path, scenes)
    original = load_parent_backbone(open_parent(parent))
    segmentation.refuse_changed_backbone(runner, original)
    next(runner.model.backbone.network.buffers()).add_(1e-3)
    with pytest.raises(RuntimeError, match="changed during the evaluation"):
        segmentation.refuse_changed_backbone(runner, original)


def test_a_seed_fixes_the_result_whatever_the_workers(scenes, parent, tmp_path, evaluate):
    augmented = ["image_scale=[48,40]", "flip=true", "photometric_distortion=true", "cat_max_ratio=0.75"]
    heads = []
    for workers in (0, 2):
        runs = f"machine.runs={tmp_path / f'workers{workers}'}"
        options = [*scenes, *SMALL, *augmented, f"machine.workers={workers}", runs, "machine.val_batch_size=1"]
        evaluate(segmentation.main, parent, CONFIG, *options)
        (run,) = (tmp_path / f"workers{workers}" / "segmentation").iterdir()
        heads.append((head_of(run), Run(run).result()))
    (one, result), (two, other) = heads
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert {**result, "seconds": 0} == {**other, "seconds": 0}


def test_loss_that_is_not_finite(scenes, parent, evaluate):
    code, message, run = evaluate(
        segmentation.main, parent, CONFIG, *scenes, *SMALL, "optimizer.name=sgd", "optimizer.lr=1e37"
    )
    assert code == 3
    assert "iteration" in message
    assert run.result() is None


@pytest.mark.slow
def test_fcn_head_is_a_protocol_of_its_own(scenes, parent, evaluate):
    _, error, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, "finetune=true", "head=fcn")
    assert run.result() is not None, error
    assert run.result()["protocol"] == "finetuned fcn"
    shapes = {key: tuple(value.shape) for key, value in head_of(run).items() if key.startswith(HEAD)}
    assert shapes[f"{HEAD}convs.0.conv.weight"] == (512, 128, 3, 3)
    assert shapes[f"{HEAD}conv_cat.conv.weight"] == (512, 640, 3, 3)
    assert shapes[f"{HEAD}conv_seg.weight"] == (11, 512, 1, 1)


def test_bfloat16_trains_to_nearly_the_same(scenes, parent, evaluate):
    losses, heads = [], []
    for precision in ("float32", "bfloat16"):
        _, error, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, f"precision={precision}")
        assert run.result() is not None, error
        losses.append([row["loss"] for row in run.metrics()])
        heads.append(head_of(run))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {value.dtype for key, value in heads[1].items() if "tracked" not in key} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_trains_to_nearly_the_same(precision, scenes, parent, tmp_path, evaluate, monkeypatch):
    compat.prepare_mmcv()
    from eval.mmseg_parts import LinearHead

    # The runner initialises where the model is, and a GPU draws other numbers.
    monkeypatch.setattr(LinearHead, "init_weights", lambda head: nn.init.zeros_(head.conv_seg.weight))
    losses = []
    for device, kind in (("cpu", "float32"), ("cuda", precision)):
        runs = tmp_path / device
        options = ["finetune=true", f"machine.device={device}", f"precision={kind}", f"machine.runs={runs}"]
        code, error, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, *options)
        assert code == 0, error
        (run,) = (runs / "segmentation").iterdir()
        losses.append([row["loss"] for row in Run(run).metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_float16_needs_a_gpu(scenes, parent, evaluate):
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, "precision=float16", "machine.device=cpu")
    assert (code, "allowed: float32 or bfloat16" in message) == (2, True)


@pytest.mark.parametrize(
    ("name", "stride", "last", "stages"),
    [
        ("resnet18", 0, (512, 2), [(64, 16), (128, 8), (256, 4), (512, 2)]),
        ("resnet50", 8, (2048, 8), [(256, 16), (512, 8), (1024, 8), (2048, 8)]),
        ("convnext_atto", 0, (320, 2), [(40, 16), (80, 8), (160, 4), (320, 2)]),
        ("regnety_002", 0, (368, 2), [(24, 16), (56, 8), (152, 4), (368, 2)]),
    ],
)
def test_taps_of_any_backbone(name, stride, last, stages, make_parent):
    """(channels, side) of the maps of 64 pixels; dilating leaves weights and channels."""
    from eval.mmseg_parts import PretrainedBackbone

    parent = make_parent(name)
    for taps, expected in (("last", [last]), ("all", stages)):
        backbone = PretrainedBackbone(str(parent), taps, finetune=False, output_stride=stride)
        maps = backbone(torch.randn(1, 3, 64, 64))
        assert [(m.shape[1], m.shape[2]) for m in maps] == expected
        network = load_parent_backbone(open_parent(parent))
        assert segmentation.tapped_channels(SegmentationConfig(taps=taps), network) == [
            channels for channels, _ in expected
        ]


def test_final_norm_is_that_of_the_last_map_alone(make_parent):
    """Without it, the maps are those of the network's own stages, one after the other, as published."""
    compat.prepare_mmcv()
    from eval.mmseg_parts import PretrainedBackbone

    parent, images = str(make_parent("convnext_atto", args=TINY_CONVNEXT)), torch.randn(2, 3, 64, 64)
    for taps in ("last", "all"):
        normed, raw = (PretrainedBackbone(parent, taps, False, final_norm=norm) for norm in (True, False))
        maps = [raw.network.trunk.stem(images)]
        for stage in raw.network.trunk.stages:
            maps.append(stage(maps[-1]))
        expected = maps[1:] if taps == "all" else maps[-1:]
        for actual, one in zip(raw(images), expected, strict=True):
            torch.testing.assert_close(actual, one)
        torch.testing.assert_close(normed(images)[-1], raw.network.trunk.head.norm(maps[-1]))
        for actual, one in zip(normed(images)[:-1], expected[:-1], strict=True):
            torch.testing.assert_close(actual, one)


@pytest.mark.parametrize(("pretrained", "drop_path", "expected"), [(0.0, 0.1, 0.1), (0.3, None, 0.3), (0.3, 0.1, 0.1)])
def test_drop_path_of_finetuning(pretrained, drop_path, expected, make_parent):
    compat.prepare_mmcv()
    from eval.mmseg_parts import PretrainedBackbone

    parent = make_parent("convnext_atto", args=TINY_CONVNEXT | {"drop_path_rate": pretrained})
    backbone = PretrainedBackbone(str(parent), "all", True, drop_path=drop_path)
    rates = [module.drop_prob for module in backbone.modules() if type(module).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(expected)
    backbone.train()
    torch.manual_seed(0)
    few = [backbone(torch.ones(64, 3, 32, 32))[-1][row] for row in range(64)]
    assert len({tuple(one.detach().flatten().tolist()) for one in few}) > 1  # equal images, other paths


@pytest.mark.parametrize(
    ("head", "dropout", "expected"), [("linear", None, 0), ("linear", 0.1, 0.1), ("fcn", None, 0.1), ("fcn", 0.2, 0.2)]
)
def test_dropout_of_a_head(head, dropout, expected, scenes, parent, tmp_path):
    chosen = [] if dropout is None else [f"dropout={dropout}"]
    runner, _ = runner_of(parent, tmp_path, [*scenes, f"head={head}", *chosen])
    layer = runner.model.decode_head.dropout
    assert (layer.p if layer is not None else 0) == expected
