"""The config of a segmentation: what is refused, what names a run, schedules, and the plain file that runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_tools import CONFIG, SMALL, head_of

from eval import segmentation
from eval.config import identity
from eval.mmseg_config import schedule
from eval.parent import open_parent
from eval.segmentation_config import OptimizerConfig, SegmentationConfig
from runtime import config as configs
from runtime.rundir import Identity, open_run

CONFIGS = sorted(path.name for path in Path("eval/configs").glob("seg_*.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("tap=all", "did you mean taps"),
        ("taps=first", "last or all"),
        ("optimizer.name=lars", "sgd or adamw"),
        ("optimizer.warmup_iterations=500", "fewer than iterations"),
        ("optimizer.warmup_iterations=1", "allowed: 0 for none, or 2 and more"),
        ("optimizer.end_lr=1.0", "optimizer.end_lr"),
        ("finetune=true optimizer.end_lr=0.01", "0 to 0.003, the backbone's rate"),
        ("finetune=true backbone_lr_multiplier=0.003", "lower end_lr, or raise one"),
        ("batch_size=1", "BatchNorm"),
        ("output_stride=5", "8, 16 or 32"),
        ("image_scale=[32]", "longest, shortest"),
        ("inference=tiles", "whole or slide"),
        ("inference=slide slide_stride=33", "1 to 32 pixels"),
        ("crop_width=-1", "0 for a square"),
        ("head=unet", "linear or fcn"),
        ("precision=fp16", "float32, bfloat16 or float16"),
        ("dropout=1", "0 to below 1: a share of channels, or null"),
        ("drop_path=0.1", "or set finetune = true"),
        ("optimizer.decay_start=second", "warmup_end or first_iteration"),
        ("optimizer.decay_start=first_iteration optimizer.warmup_iterations=5", "0 with a warm-up"),
        ("machine.predictions=99", "0 to 32: images, 0 for none"),
        ("data.name=ade20k data.segmentation_train=train_aug", "allowed: train for data.name=ade20k"),
        ("iterations=many", "a whole number"),
        ("normalisation=[[1,2,x],[1,2,3]]", "allowed: imagenet, network, a tag of timm's weights, [mean, deviation]"),
    ],
)
def test_wrong_config_stops_before_anything_is_made(override, words, parent, evaluate, tmp_path):
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *override.split())
    assert code == 2
    assert words in message
    assert not (tmp_path / "runs" / "segmentation").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["output_stride=8"], "'output_stride'; output_stride = 0 leaves the network as it was pretrained"),
        (["finetune=true", "drop_path=0.1"], "drop_path"),
    ],
)
def test_a_network_that_cannot_be_changed_so_is_named_before_anything_is_made(
    overrides, words, make_parent, evaluate, tmp_path
):
    name = "vit_tiny_patch16_224" if words.startswith("'output") else "vgg11"
    args = {"depth": 1, "img_size": 32} if name.startswith("vit") else {}
    code, message, _ = evaluate(segmentation.main, make_parent(name, args=args), CONFIG, *overrides)
    assert code == 2
    assert words in message
    assert not (tmp_path / "runs" / "segmentation").exists()


def test_a_backbone_whose_rate_stays_is_taken():
    """In floats 0.7 * 0.1 is a little below 0.07."""
    stays = ["finetune=true", "optimizer.lr=0.7", "backbone_lr_multiplier=0.1", "optimizer.end_lr=0.07"]
    assert configs.load(SegmentationConfig, CONFIG, stays).finetune


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
    with open_run(tmp_path / "runs", identity(config, open_parent(parent).hash), {}):
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


def test_convnext_rates_are_the_published_ones():
    """A decay that counts from the first iteration, with the warm-up as a factor: mmcv 1's `poly` with a warm-up."""
    from mmengine.optim import LinearLR, PolyLR

    config = configs.load(SegmentationConfig, "eval/configs/seg_voc_convnext.yaml")
    total, warmup, peak = config.iterations, 1500, config.optimizer.lr
    adamw = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    kinds = {"PolyLR": PolyLR, "LinearLR": LinearLR}
    parts = [kinds[part.pop("type")](adamw, **part) for part in schedule(config.optimizer, total)]
    rates = []
    for _ in range(total):
        rates.append(adamw.param_groups[0]["lr"])
        adamw.step()
        for part in parts:
            part.step()
    done = np.arange(total)
    published = peak * (1 - done / total) * (1 - np.clip(1 - done / warmup, 0, 1) * (1 - 1e-6))
    # mmengine reaches the ends of both one iteration earlier than mmcv 1 did.
    assert np.abs(rates - published).max() < 1e-3 * peak
    assert np.mean(rates) == pytest.approx(published.mean(), rel=1e-4)


def test_identity_follows_the_config(parent):
    config = configs.load(SegmentationConfig, CONFIG)
    one = identity(config, "0123456789")
    assert isinstance(one, Identity)
    smaller = config.replace(machine=config.machine.replace(val_batch_size=1))
    assert identity(smaller, "0123456789").hash == one.hash
    assert identity(config.replace(taps="all"), "0123456789").hash != one.hash


def test_fields_added_later_leave_the_names_of_former_runs():
    config = configs.load(SegmentationConfig, CONFIG)
    values = identity(config, "0123456789").config
    assert not {"head", "precision", "crop_width", "dropout", "final_norm", "drop_path"} & set(values)
    assert "decay_start" not in values["optimizer"]
    assert identity(config.replace(head="fcn"), "0123456789").config["head"] == "fcn"


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_open_with_their_command_and_load(name):
    configs.load(SegmentationConfig, f"eval/configs/{name}")
    _, _, text = Path(f"eval/configs/{name}").read_text().partition("\n")  # the first line names the schema
    assert text.startswith("# python -m eval.segmentation runs/pretrain/<run> --config eval/configs/" + name)
    assert "mIoU" in text


@pytest.mark.parametrize(
    ("data", "crop", "scale", "iterations"),
    [
        ("voc", (512, 512), [2048, 512], 40000),
        ("cityscapes", (512, 1024), [2048, 1024], 40000),
        ("ade20k", (512, 512), [2048, 512], 160000),
    ],
)
def test_published_schedules(data, crop, scale, iterations):
    """As the published protocol says: ResNets by SGD on the last map, ConvNeXts by AdamW on four stages."""
    resnet, convnext, finetuned = (
        configs.load(SegmentationConfig, f"eval/configs/seg_{data}{kind}.yaml")
        for kind in ("", "_convnext", "_finetuned")
    )
    for config in (resnet, convnext, finetuned):
        assert (config.data.name, config.crop, config.image_scale, config.iterations) == (data, crop, scale, iterations)
        assert config.batch_size == 16
    sgd = {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "power": 0.9, "end_lr": 1e-4, "warmup_iterations": 0}
    assert vars(resnet.optimizer).items() >= sgd.items()
    assert (resnet.dropout, convnext.dropout) == (0.1, 0)
    assert (convnext.final_norm, convnext.drop_path) == (False, None)
    assert (resnet.taps, resnet.output_stride, resnet.inference, resnet.optimizer.name) == ("last", 8, "whole", "sgd")
    assert (convnext.taps, convnext.output_stride) == ("all", 0)
    assert (convnext.inference, convnext.slide_stride) == ("slide", 341)
    expected = {"name": "adamw", "lr": 1e-4, "weight_decay": 0.05, "warmup_iterations": 1500, "power": 1, "end_lr": 0}
    expected["decay_start"] = "first_iteration"
    assert vars(convnext.optimizer).items() >= expected.items()
    assert (finetuned.finetune, finetuned.head, finetuned.protocol) == (True, "fcn", "finetuned fcn")
    assert not resnet.finetune
    assert not convnext.finetune


@pytest.mark.parametrize("data", ["voc", "ade20k"])
def test_convnext_xlarge_has_its_own_rate(data):
    others, xlarge = (
        identity(configs.load(SegmentationConfig, f"eval/configs/seg_{data}_{kind}.yaml"), "").config
        for kind in ("convnext", "convnext_xlarge")
    )
    assert others["optimizer"].pop("lr") == 1e-4
    assert xlarge["optimizer"].pop("lr") == 8e-5
    assert xlarge == others


def test_finetuned_convnexts_have_the_published_drop_path():
    config = configs.load(SegmentationConfig, "eval/configs/seg_voc_convnext_finetuned.yaml")
    assert (config.finetune, config.drop_path, config.protocol) == (True, 0.1, "finetuned linear")


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
