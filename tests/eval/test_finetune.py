"""Finetuning: it equals a plain loop, it repeats, it resumes, and it never mixes with the frozen protocols."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file

from eval import linear
from eval.config import LinearConfig
from eval.features import PooledFeatures
from eval.parent import load_parent_backbone, open_parent
from runtime import config as configs
from runtime.errors import UserError
from runtime.rundir import Run

CONFIG = "eval/configs/finetune_scenes.yaml"
SMALL = ["image_size=16", "resize=16", "epochs=3", "batch_size=16", "held_out=0.2"]


@pytest.fixture
def folder(image_folder) -> list[str]:
    return ["data.name=imagefolder", f"data.root={image_folder}", *SMALL]


def checkpoint(runs) -> dict:
    (file,) = (runs / "linear").glob("*/checkpoint.pt")
    return torch.load(file, weights_only=True)


def test_backbone_and_head_learn_and_the_parent_stays(folder, parent, evaluate, tmp_path):
    before = load_file(parent / "backbone.safetensors")
    code, error, run = evaluate(linear.main, parent, CONFIG, *folder, "epochs=20", "crop_scale=[0.9,1.0]")
    assert code == 0, error
    result = run.result()
    assert (result["protocol"], result["train_images"], result["held_out_images"]) == ("finetuned", 40, 8)
    assert result["held_out_top1_each"][0] > 60  # chance is 25; the colours of val are others
    assert "finetuned-of-" in run.name
    trained = checkpoint(tmp_path / "runs")["backbone"]
    changed = [key for key, value in before.items() if not torch.equal(trained[f"trunk.{key}"], value)]
    assert set(changed) == set(before)  # running statistics and counts as well
    after = load_file(parent / "backbone.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_equals_a_plain_loop(folder, parent, evaluate, tmp_path, monkeypatch):
    """The same batches through an ordinary network with its classifier inside, one optimiser, two groups."""
    batches = []
    step = linear.LinearTraining.train_step
    monkeypatch.setattr(
        linear.LinearTraining, "train_step", lambda self, *batch: batches.append(batch) or step(self, *batch)
    )
    config = configs.load(LinearConfig, CONFIG, folder)
    evaluate(linear.main, parent, CONFIG, *folder)
    backbone = load_parent_backbone(open_parent(parent)).train()
    start = 0.01 * torch.randn(4, 128, generator=torch.Generator().manual_seed(config.seed))
    head = torch.nn.Linear(128, 4)
    head.load_state_dict({"weight": start, "bias": torch.zeros(4)})
    groups = [
        {"params": backbone.parameters(), "lr": config.backbone_learning_rate},
        {"params": head.parameters(), "lr": config.learning_rates[0]},
    ]
    optimizer = torch.optim.SGD(groups, momentum=config.momentum, weight_decay=config.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    for number, (images, labels) in enumerate(batches):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(head(backbone.trunk.forward_features(images).mean((2, 3))), labels).backward()
        optimizer.step()
        if number % 3 == 2:
            cosine.step()
    assert len(batches) == 9
    trained = checkpoint(tmp_path / "runs")
    torch.testing.assert_close(trained["heads"]["weights.0"], head.weight.detach(), rtol=1e-3, atol=1e-5)
    for key, value in backbone.trunk.state_dict().items():
        torch.testing.assert_close(trained["backbone"][f"trunk.{key}"], value, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(folder, make_parent, tmp_path, evaluate):
    """kill -9 within the second epoch, with drop path, whose draws have to go on as well."""
    parent = make_parent("resnet10t", args={"drop_path_rate": 0.5})
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from eval import linear
        from runtime.errors import run_command
        steps = 0
        step = linear.LinearTraining.train_step
        def counted(self, *batch):
            global steps
            steps += 1
            if steps == 6:
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, *batch)
        linear.LinearTraining.train_step = counted
        run_command(linear.main)
        """)
    )
    options = [*folder, "image_size=32", "resize=32", "machine.save_seconds=0"]
    command = [sys.executable, str(driver), str(parent), "--config", CONFIG, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    killed = subprocess.run([*command, f"machine.runs={tmp_path / 'killed'}"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    for runs in ("killed", "whole"):
        code, error, _ = evaluate(linear.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
        assert code == 0, error
        assert any("going on at epoch 1" in line for line in evaluate.output) == (runs == "killed")
    one, other = checkpoint(tmp_path / "killed"), checkpoint(tmp_path / "whole")
    for part in ("backbone", "heads"):
        assert all(torch.equal(one[part][key], other[part][key]) for key in other[part])
    results = [Run(next((tmp_path / runs / "linear").iterdir())).result() for runs in ("killed", "whole")]
    assert {**results[0], "seconds": 0} == {**results[1], "seconds": 0}


def test_a_stop_while_val_is_scored_loses_nothing(folder, parent, evaluate, tmp_path, monkeypatch):
    table, calls = PooledFeatures.table, []

    def terminated(self, *arguments):
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return table(self, *arguments)

    monkeypatch.setattr(PooledFeatures, "table", terminated)
    options = [*folder, "machine.save_seconds=1000"]
    code, _, _ = evaluate(linear.main, parent, CONFIG, *options, f"machine.runs={tmp_path / 'stopped'}")
    assert code == 75
    saved = checkpoint(tmp_path / "stopped")
    assert (saved["epoch"], saved["step"]) == (1, 3)  # of three steps an epoch
    for runs in ("stopped", "whole"):
        evaluate(linear.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
    rows = [Run(next((tmp_path / runs / "linear").iterdir())).metrics() for runs in ("stopped", "whole")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    one, other = checkpoint(tmp_path / "stopped"), checkpoint(tmp_path / "whole")
    assert all(torch.equal(one["backbone"][key], other["backbone"][key]) for key in other["backbone"])


@pytest.mark.gpu
def test_cuda_goes_on_from_a_checkpoint(folder, parent, evaluate, tmp_path, monkeypatch):
    step = linear.LinearTraining.train_step

    def terminated(self, *batch):
        if (self.state.epoch, self.state.step) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *batch)

    monkeypatch.setattr(linear.LinearTraining, "train_step", terminated)
    options = [*folder, "machine.device=cuda"]
    code, _, run = evaluate(linear.main, parent, CONFIG, *options)
    assert (code, run.result()) == (75, None)
    monkeypatch.setattr(linear.LinearTraining, "train_step", step)
    for runs in ("runs", "whole"):
        code, error, _ = evaluate(linear.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
        assert code == 0, error
    one, other = checkpoint(tmp_path / "runs"), checkpoint(tmp_path / "whole")
    for key, value in other["backbone"].items():
        torch.testing.assert_close(one["backbone"][key], value, rtol=1e-3, atol=1e-4)


def test_a_rate_that_diverges_is_not_finite(folder, parent, evaluate):
    code, error, _ = evaluate(linear.main, parent, CONFIG, *folder, "learning_rates=[1e30]")
    assert (code, "not finite" in error or "diverged" in error) == (3, True), error


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["learning_rates=[0.1,1.0]"], "One run a rate"),
        (["mode=cached"], "features of a finetuned network change"),
        (["backbone_learning_rate=0"], "above 0, because finetune is true"),
        (["finetune=false"], "because the backbone is frozen"),
    ],
)
def test_impossible_values(overrides, words):
    with pytest.raises(UserError, match=words):
        configs.load(LinearConfig, CONFIG, overrides)


@pytest.mark.parametrize("name", ["scenes", "imagenet"])
def test_configs_are_whole(name):
    config = configs.load(LinearConfig, f"eval/configs/finetune_{name}.yaml")
    assert (config.data.name, config.protocol) == (name, "finetuned")
