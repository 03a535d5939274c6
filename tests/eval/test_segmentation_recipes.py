"""The published recipes with their own networks at their own sizes: two iterations of two images, and one scored."""

import sys
from pathlib import Path

import pytest
import torch
from segmentation_tools import head_of

from eval import segmentation

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

TWO = ["batch_size=2", "iterations=2", "machine.workers=0", "machine.log_steps=1", "machine.predictions=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "network", "channels"),
    [("seg_voc", "resnet50", 2048), ("seg_voc_convnext", "convnext_small", 96 + 192 + 384 + 768)],
)
def test_recipe_at_full_size(recipe, network, channels, make_parent, evaluate, tmp_path):
    root = tmp_path / "data"
    trees.voc_tree(root, shape=(376, 504))
    (root / "ImageSets/Segmentation/val.txt").write_text("2007_val0\n")
    options = [*TWO, "optimizer.warmup_iterations=0", f"data.root={root}"]
    code, error, run = evaluate(segmentation.main, make_parent(network), f"eval/configs/{recipe}.yaml", *options)
    assert code == 0, error
    state = head_of(run)
    assert tuple(state["decode_head.conv_seg.weight"].shape) == (21, channels, 1, 1)
    assert all(torch.isfinite(value).all() for value in state.values())
    assert len({row["loss"] for row in run.metrics()}) == 2
    assert run.result()["val_images"] == 1
    assert (run.path / "predictions.png").is_file()
