"""Segmentation as a user runs it: mIoU against brute force, frozen means frozen, it repeats, it resumes."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file

from data.catalog import open_dataset
from data.images import normalise, read_image
from eval import segmentation
from eval.mmseg_config import schedule
from eval.parent import load_parent_backbone, open_parent
from eval.segmentation_config import OptimizerConfig, SegmentationConfig
from runtime import config as configs
from runtime.rundir import Identity, Run, open_run

CONFIG = "eval/configs/seg_scenes.yaml"
SMALL = ["iterations=6", "batch_size=8", "machine.val_batch_size=8", "machine.log_steps=1"]
HEAD = "decode_head."


def head_of(run: Run | Path) -> dict[str, torch.Tensor]:
    """The tensors in the run's checkpoint, which needs no class but torch's own."""
    path = run.path if isinstance(run, Run) else run
    return torch.load(path / "checkpoint.pth", weights_only=True)["state_dict"]


def predict(backbone: torch.nn.Module, state: dict[str, torch.Tensor], image: Path, taps: str) -> np.ndarray:
    """The classes of one image, (H, W), without mmsegmentation: from the backbone, the head's tensors and PIL."""
    pixels = torch.tensor(np.asarray(Image.open(image).convert("RGB")) / 255).permute(2, 0, 1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((pixels - mean[:, None, None]) / deviation[:, None, None]).float()[None]
    with torch.no_grad():
        maps = backbone.stages(x) if taps == "all" else [backbone(x)[0]]
        size = maps[0].shape[2:]
        x = torch.cat([F.interpolate(m, size, mode="bilinear", align_corners=False) for m in maps], 1)
        norm = {
            key: state[f"{HEAD}norm.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        }
        x = (x - norm["running_mean"]) / (norm["running_var"] + 1e-5).sqrt() * norm["weight"] + norm["bias"]
        weight, bias = state[f"{HEAD}conv_seg.weight"][:, :, 0, 0], state[f"{HEAD}conv_seg.bias"]
        logits = torch.einsum("kc,bchw->bkhw", weight, x) + bias[:, None, None]
        logits = F.interpolate(logits, pixels.shape[1:], mode="bilinear", align_corners=False)
    return logits[0].argmax(0).numpy()


def brute_force_iou(predictions: list[np.ndarray], masks: list[np.ndarray], classes: int) -> list[float | None]:
    """Intersection over union in percent by counting pixels one class at a time; 255 counts for nothing."""
    found: list[float | None] = []
    for k in range(classes):
        intersection = sum(int(((p == k) & (m == k)).sum()) for p, m in zip(predictions, masks, strict=True))
        union = sum(int((((p == k) | (m == k)) & (m != 255)).sum()) for p, m in zip(predictions, masks, strict=True))
        found.append(100 * intersection / union if union else None)
    return found


@pytest.mark.parametrize("taps", ["last", "all"])
def test_miou_equals_brute_force(taps, scenes, parent, evaluate):
    code, error, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL, f"taps={taps}", "optimizer.lr=1.0")
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
    assert (result["protocol"], result["taps"]) == ("frozen linear", taps)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]


def test_class_metric_equals_brute_force():
    from eval.mmseg_parts import ClassIoUMetric

    random = np.random.default_rng(0)
    masks = [random.integers(0, 5, (9, 7)) for _ in range(4)]
    predictions = [np.where(random.random(m.shape) < 0.6, m, random.integers(0, 5, m.shape)) for m in masks]
    for mask in masks:
        mask[0] = 255
    metric = ClassIoUMetric(iou_metrics=["mIoU"])
    names = [*"abcde", "never"]
    metric.dataset_meta = {"classes": names}
    for p, m in zip(predictions, masks, strict=True):
        data = {"pred_sem_seg": {"data": torch.tensor(p)[None]}, "gt_sem_seg": {"data": torch.tensor(m)[None]}}
        metric.process({}, [data])
    found = metric.evaluate(4)
    expected = brute_force_iou(predictions, masks, 6)
    assert expected[5] is None
    assert np.isnan(found["class.never"])
    assert [found[f"class.{name}"] for name in names[:5]] == pytest.approx(expected[:5])
    assert found["exact.mIoU"] == pytest.approx(np.mean(expected[:5]))
    assert found["mIoU"] == pytest.approx(np.mean(expected[:5]), abs=0.006)  # mmsegmentation rounds


def runner_of(parent: Path, tmp_path: Path, overrides: list[str]):
    config = configs.load(SegmentationConfig, CONFIG, [*overrides, *SMALL])
    layout = open_dataset(config.data).segmentation()
    opened = open_parent(parent)
    channels = segmentation.tapped_channels(config, opened)
    run = Run(tmp_path / "here")
    run.path.mkdir()
    cfg = segmentation.plain_config(config, layout, parent, channels, run.path / "mmseg", torch.device("cpu"))
    return segmentation.build_runner(cfg, run), layout


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
    in_checkpoint = [key for key in head_of(run) if key.startswith("backbone.")]
    assert bool(in_checkpoint) is finetune
    if finetune:
        assert {group["initial_lr"] for group in seen["runner"].optim_wrapper.param_groups} == {0.03, 0.03 * 0.1}


def test_a_changed_frozen_backbone_is_a_bug_that_stops(scenes, parent, tmp_path):
    runner, _ = runner_of(parent, tmp_path, scenes)
    segmentation.refuse_changed_backbone(runner, open_parent(parent))
    next(runner.model.backbone.network.buffers()).add_(1e-3)
    with pytest.raises(RuntimeError, match="changed during the evaluation"):
        segmentation.refuse_changed_backbone(runner, open_parent(parent))


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


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(scenes, tiny_scenes, parent, tmp_path, evaluate):
    """kill -9 at the fourth iteration; the second start ends bit for bit where an uninterrupted run does."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent("""
        import os, signal
        from eval import mmseg_hook, segmentation
        from runtime.errors import run_command
        after = mmseg_hook.TrainingWatch.after_train_iter
        def kill_at_4(self, runner, *rest, **named):
            if runner.iter + 1 == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            after(self, runner, *rest, **named)
        mmseg_hook.TrainingWatch.after_train_iter = kill_at_4
        run_command(segmentation.main)
        """)
    )
    options = [*scenes, *SMALL, "flip=true", "photometric_distortion=true", "machine.save_seconds=0"]
    command = [sys.executable, str(driver), str(parent), "--config", CONFIG, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "VICREGL_DATA": str(tiny_scenes)}
    killed = subprocess.run([*command, f"machine.runs={tmp_path / 'killed'}"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    ends = []
    for runs in ("killed", "whole"):
        code, error, _ = evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
        assert code == 0, error
        assert ("going on at iteration 3 of 6" in evaluate.output) is (runs == "killed")
        (run,) = (tmp_path / runs / "segmentation").iterdir()
        ends.append((head_of(run), Run(run)))
    (one, resumed), (two, whole) = ends
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert {**resumed.result(), "seconds": 0} == {**whole.result(), "seconds": 0}
    keys = ("step", "loss", "learning_rate", "pixel_accuracy")
    assert [[row[k] for k in keys] for row in resumed.metrics()] == [[row[k] for k in keys] for row in whole.metrics()]


def test_terminated_run_saves_first_and_goes_on(scenes, parent, evaluate, monkeypatch):
    from eval.mmseg_hook import TrainingWatch

    after = TrainingWatch.after_train_iter

    def terminate_at_4(self, runner, *rest, **named):
        if runner.iter + 1 == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, runner, *rest, **named)

    monkeypatch.setattr(TrainingWatch, "after_train_iter", terminate_at_4)
    code, message, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "goes on where this one stopped" in message) == (75, True)
    assert run.state() == "interrupted"
    monkeypatch.setattr(TrainingWatch, "after_train_iter", after)
    evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert "going on at iteration 4 of 6" in evaluate.output
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert run.state() == "done"


def test_killed_after_training_still_gets_its_score(scenes, parent, evaluate):
    _, _, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    before = run.result()
    (run.path / "result.json").unlink()
    code, error, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert code == 0, error
    assert {**run.result(), "seconds": 0, "loss": 0} == {**before, "seconds": 0, "loss": 0}


def test_damaged_checkpoints(scenes, make_parent, evaluate):
    parent = make_parent()
    _, _, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    (run.path / "result.json").unlink()
    checkpoint = run.path / "checkpoint.pth"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-500])
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "cannot be read" in message) == (2, True)
    assert message.count("\n") == 1
    torch.save({"state_dict": {"decode_head.other": torch.zeros(1)}, "meta": {"seconds": 0.0}}, checkpoint)
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "of another evaluation" in message) == (2, True)


def test_plain_config_is_saved_and_builds_the_same_model(scenes, parent, evaluate):
    _, _, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    from mmengine.config import Config
    from mmseg.registry import MODELS

    cfg = Config.fromfile(run.path / "mmseg_config.py")
    assert cfg.train_cfg.max_iters == 6
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == "EncoderDecoder"
    missing, unexpected = model.load_state_dict(head_of(run), strict=False)
    assert not unexpected
    assert all(key.startswith("backbone.") for key in missing)
    assert list((run.path / "mmseg").glob("*/*.log"))
    # One line now and then, and none of mmengine's.
    assert len(evaluate.output) <= 6
    assert not any("mmengine" in line for line in evaluate.output)


def test_loss_that_is_not_finite(scenes, parent, evaluate):
    code, message, run = evaluate(
        segmentation.main, parent, CONFIG, *scenes, *SMALL, "optimizer.name=sgd", "optimizer.lr=1e37"
    )
    assert code == 3
    assert "iteration" in message
    assert run.result() is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tap=all", "did you mean taps"),
        ("taps=first", "last or all"),
        ("optimizer.name=lars", "sgd or adamw"),
        ("optimizer.warmup_iterations=500", "fewer than iterations"),
        ("optimizer.end_lr=1.0", "optimizer.end_lr"),
        ("batch_size=1", "BatchNorm"),
        ("output_stride=5", "8, 16 or 32"),
        ("image_scale=[32]", "longest, shortest"),
        ("inference=tiles", "whole or slide"),
        ("iterations=many", "wrong value"),
    ],
)
def test_wrong_config_stops_before_anything_is_made(override, words, parent, evaluate, tmp_path):
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, override)
    assert code == 2
    assert words in message
    assert not (tmp_path / "runs" / "segmentation").exists()


def test_dataset_without_masks(image_folder, parent, evaluate):
    data = ["data.name=imagefolder", f"data.root={image_folder}"]
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *data)
    assert (code, "no segmentation masks" in message) == (2, True)


def test_truncated_backbone(parent, evaluate):
    file = parent / "backbone.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    code, message, _ = evaluate(segmentation.main, parent, CONFIG)
    assert (code, message.count("\n")) == (2, 1)
    assert "backbone.safetensors" in message


def test_busy_run(parent, evaluate, tmp_path):
    config = configs.load(SegmentationConfig, CONFIG)
    with open_run(tmp_path / "runs", segmentation.identity(config, open_parent(parent).hash), {}):
        code, message, _ = evaluate(segmentation.main, parent, CONFIG)
    assert (code, "is in use by process" in message) == (4, True)


def test_schedule_ends_at_its_last_rate():
    """mmengine's schedulers, stepped to the end, against the formulas."""
    from mmengine.optim import CosineAnnealingLR, LinearLR, PolyLR

    kinds = {"PolyLR": PolyLR, "CosineAnnealingLR": CosineAnnealingLR, "LinearLR": LinearLR}
    total, warmup = 50, 10
    for name in ("poly", "cosine"):
        settings = OptimizerConfig(lr=1.0, end_lr=0.01, schedule=name, warmup_iterations=warmup)
        sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        parts = [kinds[part.pop("type")](sgd, **part) for part in schedule(settings, total)]
        rates = []
        for _ in range(total):
            rates.append(sgd.param_groups[0]["lr"])
            sgd.step()
            for part in parts:
                part.step()
        assert rates[0] == pytest.approx(1e-6)
        assert rates[warmup] == pytest.approx(1.0)
        left = 1 - (30 - warmup) / (total - 1 - warmup)
        share = left**0.9 if name == "poly" else 0.5 * (1 + np.cos(np.pi * (1 - left)))
        assert rates[30] == pytest.approx(0.01 + 0.99 * share)
        assert rates[-1] == pytest.approx(0.01)


def test_identity_follows_the_config(parent):
    config = configs.load(SegmentationConfig, CONFIG)
    one = segmentation.identity(config, "0123456789")
    assert isinstance(one, Identity)
    config.machine.val_batch_size = 1
    assert segmentation.identity(config, "0123456789").hash == one.hash
    config.taps = "all"
    assert segmentation.identity(config, "0123456789").hash != one.hash


@pytest.mark.parametrize("name", ["seg_voc.yaml", "seg_scenes.yaml"])
def test_configs_are_whole(name):
    configs.load(SegmentationConfig, f"eval/configs/{name}")
    assert yaml.safe_load(Path(f"eval/configs/{name}").read_text())["taps"] == "last"
