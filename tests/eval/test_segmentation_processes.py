"""Several processes: they train to what one process trains to, score exactly what it scores, and the first alone
writes."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from segmentation_tools import CONFIG, SMALL, head_of
from torch import nn

from data.catalog import open_dataset
from eval import segmentation
from eval.mmseg_config import plain_config
from eval.parent import open_parent
from eval.segmentation_config import SegmentationConfig
from runtime import compat, import_path
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Run
from vicregl.sync_norm import SharedBatchNorm, synchronise

sys.path.insert(0, str(Path(__file__).parents[1]))
import trees

FINETUNED = ["finetune=true", "taps=all", "flip=true", "optimizer.name=sgd", "optimizer.lr=0.1"]
# One image a batch, and 19 of them: the last is of one process alone.
UNEVEN = ["data.scenes.val=19", "machine.val_batch_size=1"]


def words(parent: Path, runs: Path, options: list[str]) -> list[str]:
    return ["-m", "eval.segmentation", str(parent), "--config", CONFIG, *options, f"machine.runs={runs}"]


def environment(tiny_scenes: Path, **more: object) -> dict[str, str]:
    return (
        os.environ | {"OMP_NUM_THREADS": "1", "VICREGL_DATA": str(tiny_scenes)} | {k: str(v) for k, v in more.items()}
    )


def torchrun(tiny_scenes: Path, arguments: list[str]) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([sys.executable, *launcher, *arguments], env=environment(tiny_scenes), check=True)


def srun(port: str, tiny_scenes: Path, arguments: list[str]) -> list[int]:
    """Two tasks with the environment that srun gives them; their exit codes."""
    step = {"SLURM_JOB_ID": 1, "SLURM_STEP_ID": 0, "SLURM_NTASKS": 2, "SLURM_STEP_NUM_TASKS": 2, "SLURM_NODEID": 0}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "SLURM_STEP_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=environment(tiny_scenes, **step, **place, SLURM_PROCID=rank, SLURM_LOCALID=rank) | import_path(),
        )
        for rank in range(2)
    ]
    return [task.wait() for task in tasks]


def the_run(runs: Path) -> Run:
    (path,) = (runs / "segmentation").iterdir()
    return Run(path)


@pytest.mark.slow
def test_two_processes_equal_one(port, scenes, tiny_scenes, parent, tmp_path, evaluate):
    """Weights, statistics and losses within float tolerance; on the same weights, exactly the same scores."""
    options = [*scenes, *SMALL, *UNEVEN, *FINETUNED]
    two, one, again, srun_again = (tmp_path / name for name in ("two", "one", "again", "srun"))
    torchrun(tiny_scenes, words(parent, two, options))
    evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={one}")
    actual, expected = head_of(the_run(two)), head_of(the_run(one))
    assert set(actual) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=1e-3, atol=1e-4, msg=key)
    rows = [[row["loss"] for row in the_run(runs).metrics()] for runs in (two, one)]
    assert rows[0] == pytest.approx(rows[1], rel=1e-4)
    accuracies = [[row["pixel_accuracy"] for row in the_run(runs).metrics()] for runs in (two, one)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.1)
    result = the_run(two).result()
    for runs in (again, srun_again):
        shutil.copytree(two, runs)
        (the_run(runs).path / "result.json").unlink()
    evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={again}")
    assert srun(port, tiny_scenes, words(parent, srun_again, options)) == [0, 0]
    for runs in (again, srun_again):
        assert {**the_run(runs).result(), "seconds": 0} == {**result, "seconds": 0}
    pictures = {(the_run(runs).path / "predictions.png").read_bytes() for runs in (two, again, srun_again)}
    assert len(pictures) == 1
    kept = {(the_run(runs).path / "predictions.npz").read_bytes() for runs in (two, again, srun_again)}
    assert len(kept) == 1
    assert len(list((the_run(two).path / "mmseg").glob("*/*.log"))) == 1


@pytest.mark.slow
def test_accuracy_is_of_the_labelled_pixels_of_all_processes(ranks, parent, tmp_path, evaluate):
    """One image is labelled whole, the others in an eighth of their pixels and as another class."""
    root = tmp_path / "voc"
    trees.vocfolder_tree(root, ["sea", "land"])
    names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    for number, name in enumerate(names):
        mask = np.full((40, 56), trees.IGNORE if number else 1, np.uint8)
        mask[:5] = 0 if number else 1
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    sizes = ["crop_size=56", f"batch_size={len(names)}", "iterations=2", "machine.val_batch_size=1"]
    options = ["data.name=vocfolder", f"data.root={root}", *sizes, "machine.log_steps=1", "machine.predictions=0"]
    for code, _, errors in ranks.ended(ranks(2, *words(parent, tmp_path / "two", options))):
        assert code == 0, errors
    code, error, _ = evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={tmp_path / 'one'}")
    assert code == 0, error
    two = the_run(tmp_path / "two").metrics()
    one = the_run(tmp_path / "one").metrics()
    assert [row["pixel_accuracy"] for row in two] == pytest.approx([row["pixel_accuracy"] for row in one], abs=0.02)
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-4)


@pytest.mark.slow
def test_a_stop_of_one_process_is_everyones(port, scenes, tiny_scenes, parent, tmp_path, evaluate):
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent("""
        import os, signal
        from eval import mmseg_runner, segmentation
        from runtime.errors import run_command
        after = mmseg_runner.TrainingWatch.after_train_iter
        def stop_the_second(self, runner, *rest, **named):
            if runner.iter + 1 == 3 and os.environ["SLURM_PROCID"] == "1":
                os.kill(os.getpid(), signal.SIGUSR2)
            after(self, runner, *rest, **named)
        mmseg_runner.TrainingWatch.after_train_iter = stop_the_second
        run_command(segmentation.main)
        """)
    )
    options = [*scenes, *SMALL, "machine.predictions=0"]
    both, alone = tmp_path / "both", tmp_path / "alone"
    assert srun(port, tiny_scenes, [str(driver), *words(parent, both, options)[2:]]) == [75, 75]
    assert the_run(both).state() == "interrupted"
    for runs in (both, alone):  # one process goes on where two stopped
        code, error, _ = evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={runs}")
        assert code == 0, error
        assert ("going on at iteration 3 of 6" in evaluate.output) is (runs == both)
    for key, value in head_of(the_run(alone)).items():
        torch.testing.assert_close(head_of(the_run(both))[key], value, rtol=1e-3, atol=1e-4, msg=key)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    config = SegmentationConfig(batch_size=16)
    segmentation.refuse_impossible(config, 8, torch.device("cpu"))
    with pytest.raises(UserError, match="batch_size = 16 cannot be shared out among 3 processes; allowed: a multiple"):
        segmentation.refuse_impossible(config, 3, torch.device("cpu"))


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_shared_batchnorm_of_one_process_is_batchnorm(alone):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3), nn.ReLU())
    nn.init.uniform_(plain[1].weight)
    shared = synchronise(nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5, momentum=0.3)))
    shared.load_state_dict(plain.state_dict())
    assert isinstance(shared[1], SharedBatchNorm)
    images = torch.randn(4, 3, 9, 7)
    for training in (True, True, False):
        outputs = [network.train(training)(images) for network in (plain[:2], shared)]
        torch.testing.assert_close(outputs[1], outputs[0])
        for network, output in zip((plain, shared), outputs, strict=True):
            network.zero_grad()
            output.square().sum().backward()
        for one, two in zip(plain[:2].parameters(), shared.parameters(), strict=True):
            torch.testing.assert_close(two.grad, one.grad, rtol=1e-4, atol=1e-4)
        for key, value in plain.state_dict().items():
            torch.testing.assert_close(shared.state_dict()[key], value, msg=key)


def test_shared_batchnorm_keeps_what_timm_does_after_it(alone):
    import timm

    torch.manual_seed(0)
    plain = timm.create_model("regnety_002", num_classes=0)
    images = torch.randn(2, 3, 64, 64)
    expected = plain.train()(images)
    keys = list(plain.state_dict())
    shared = synchronise(plain)
    assert list(shared.state_dict()) == keys
    assert not any(type(module) is nn.BatchNorm2d for module in shared.modules())
    torch.testing.assert_close(shared.train()(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", ["linear", "fcn"])
def test_shared_batchnorm_leaves_names_and_values(head, scenes, parent, tmp_path):
    """So that one process can go on where several stopped."""
    compat.prepare_mmcv()
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    import eval.mmseg_parts  # noqa: F401

    init_default_scope("mmseg")
    config = configs.load(SegmentationConfig, CONFIG, [*scenes, "finetune=true", f"head={head}"])
    layout = open_dataset(config.data).segmentation()

    def built(device: str, processes: int) -> nn.Module:
        described = plain_config(config, layout, open_parent(parent), [128], tmp_path, torch.device(device), processes)
        assert described["train_dataloader"]["batch_size"] == config.batch_size // processes
        for loader in ("train_dataloader", "val_dataloader"):
            assert described[loader]["pin_memory"] == (device == "cuda")
        return MODELS.build(described["model"])

    alone = built("cpu", 1)
    for device in ("cpu", "cuda"):
        model = built(device, 2)
        norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        assert len(norms) > 5
        assert all(isinstance(norm, SharedBatchNorm) for norm in norms)
        assert list(model.state_dict()) == list(alone.state_dict())
        backbone = alone.backbone.state_dict()
        assert all(torch.equal(value, backbone[key]) for key, value in model.backbone.state_dict().items())
