"""Published protocols train and score as plain mmsegmentation does; scores equal a confusion matrix made by hand."""

import copy
import math
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eval import segmentation
from runtime import compat

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "ls_init_value": None}
SMALLER = ["image_scale=[256,64]", "crop_size=64", "slide_stride=43", "batch_size=4", "data.segmentation_train=train"]
HERE = ["machine.workers=0", "machine.log_steps=1", "machine.predictions=0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "network", "args", "iterations", "warmup"),
    [("seg_voc", "resnet50", {}, 4, 0), ("seg_voc_convnext", "convnext_atto", TINY_CONVNEXT, 12, 5)],
)
def test_training_equals_plain_mmsegmentation(
    config, network, args, iterations, warmup, make_parent, evaluate, monkeypatch, tmp_path
):
    compat.prepare_mmcv()
    from plain_mmsegmentation import CONVNEXT, RESNET, Watch, groups, plain_runner

    from eval.mmseg_runner import TrainingWatch

    root, parent, first = tmp_path / "voc", make_parent(network, args=args), {}
    trees.voc_tree(root)
    begin = TrainingWatch.before_train

    def keep(self, runner):
        first["head"] = copy.deepcopy(runner.model.decode_head.state_dict())
        first["groups"] = groups(runner)
        begin(self, runner)

    monkeypatch.setattr(TrainingWatch, "before_train", keep)
    options = [*SMALLER, *HERE, f"data.root={root}", f"iterations={iterations}"]
    options.append(f"optimizer.warmup_iterations={warmup}")
    code, error, run = evaluate(segmentation.main, parent, f"eval/configs/{config}.yaml", *options)
    assert code == 0, error

    watch = Watch(load_file(parent / "backbone.safetensors"), first["head"])
    kind = RESNET if network == "resnet50" else CONVNEXT
    runner = plain_runner(kind, root, tmp_path / "plain", iterations, warmup)
    runner.register_hook(watch)
    runner.train()
    assert first["groups"] == watch.groups
    rows = [(row["loss"], row["pixel_accuracy"], row["learning_rate"]) for row in run.metrics()]
    for (loss, accuracy, rate), (plain_loss, plain_accuracy, plain_rate) in zip(rows, watch.rows, strict=True):
        assert rate == pytest.approx(plain_rate, rel=1e-9, abs=1e-18)
        assert loss == pytest.approx(plain_loss, rel=1e-5)
        assert accuracy == pytest.approx(plain_accuracy, abs=0.02)  # a pixel of 16,384, where two logits are equal
    assert len({loss for loss, *_ in rows}) == iterations
    scores = {"mIoU": "miou", "mAcc": "macc", "aAcc": "aacc"}
    for plain_name, name in scores.items():  # mmsegmentation rounds to two digits
        assert run.result()[name] == pytest.approx(watch.metrics[plain_name], abs=0.02)


def test_scores_of_a_confusion_matrix_made_by_hand():
    """Rows are labels, columns predictions; the fourth class is nowhere, and 255 is ignored."""
    compat.prepare_mmcv()
    from eval.mmseg_runner import ClassIoUMetric

    counts = [[5, 1, 2, 0], [2, 6, 0, 0], [0, 3, 1, 0], [0, 0, 0, 0]]
    pairs = [(label, guess) for label in range(4) for guess in range(4) for _ in range(counts[label][guess])]
    label, guess = torch.tensor([*pairs, (255, 0), (255, 1), (255, 2), (255, 3)]).T.reshape(2, 2, 3, 4)  # two images
    metric = ClassIoUMetric(iou_metrics=["mIoU"], ignore_index=255)
    metric.dataset_meta = {"classes": ["a", "b", "c", "d"]}
    for one, other in zip(label, guess, strict=True):
        metric.process({}, [{"pred_sem_seg": {"data": other[None]}, "gt_sem_seg": {"data": one[None]}}])
    scores = metric.evaluate(size=2)
    # Right / (labelled or predicted): 5 of 10, 6 of 12, 1 of 6. Right / labelled: 5 of 8, 6 of 8, 1 of 4; 12 of 20.
    assert scores["exact.mIoU"] == pytest.approx(100 * (5 / 10 + 6 / 12 + 1 / 6) / 3)
    assert scores["exact.mAcc"] == pytest.approx(100 * (5 / 8 + 6 / 8 + 1 / 4) / 3)
    assert scores["exact.aAcc"] == pytest.approx(100 * 12 / 20)
    assert [scores[f"class.{name}"] for name in "abc"] == pytest.approx([50, 50, 100 / 6])
    assert math.isnan(scores["class.d"])
