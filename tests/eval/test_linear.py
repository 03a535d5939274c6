"""Linear classification as a user runs it: it can reach 100 %, it can fail, it repeats, it resumes."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from eval import linear
from eval.config import LinearConfig, identity
from eval.features import PooledFeatures
from eval.parent import load_parent_backbone, open_parent
from runtime import config as configs
from runtime.rundir import Run, open_run

CONFIG = "eval/configs/linear_scenes.yaml"
SMALL = ["image_size=8", "resize=8", "epochs=8", "batch_size=32", "held_out=0.2", "learning_rates=[0.01,0.1,1.0]"]
AUGMENTED = ["mode=augmented", "crop_scale=[0.5,1.0]"]


def write_colours(root: Path, labels: Callable[[str, int], int], per_class: int = 60) -> Path:
    """An ImageFolder of 8 x 8 images in four colours; colour k of a split is filed under class labels(split, k)."""
    random = np.random.default_rng(0)
    colours = [(220, 40, 40), (40, 220, 40), (40, 40, 220), (200, 200, 40)]
    for split in ("train", "val"):
        for number in range(4 * per_class):
            colour = number % 4
            folder = root / split / f"class{labels(split, colour)}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.array(colours[colour]) + random.normal(0, 15, (8, 8, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return root


class MeanColour(nn.Module):
    """A backbone whose pooled features (B, 3) separate images by their colour."""

    channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, images):
        feature_map = self.norm(images)
        return feature_map, feature_map.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    return write_colours(tmp_path_factory.mktemp("colours"), lambda split, colour: colour)


@pytest.fixture
def folder(colours) -> list[str]:
    return ["data.name=imagefolder", f"data.root={colours}"]


@pytest.fixture
def mean_colour(monkeypatch):
    monkeypatch.setattr(linear, "load_parent_backbone", lambda parent: MeanColour())


@pytest.mark.parametrize("mode", ["cached", "augmented"])
def test_separable_classes_reach_100(mode, folder, parent, evaluate, mean_colour):
    code, _, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, f"mode={mode}")
    result = run.result()
    assert code == 0
    assert result["top1"] > 99
    assert result["protocol"] == {"cached": "linear cached", "augmented": "linear"}[mode]
    assert (result["train_images"], result["held_out_images"], result["val_images"]) == (192, 48, 240)


def test_labels_without_meaning_stay_at_chance(tmp_path, parent, evaluate, mean_colour):
    data = write_colours(tmp_path / "data", lambda split, colour: colour)
    # Every class of train now holds every colour, in equal parts.
    for number, file in enumerate(sorted((data / "train").rglob("*.png"))):
        file.rename(data / "train" / f"class{number // 4 % 4}" / f"again{number}.png")
    _, _, run = evaluate(linear.main, parent, CONFIG, "data.name=imagefolder", f"data.root={data}", *SMALL)
    assert 5 < run.result()["top1"] < 50


def test_val_has_no_say_in_the_learning_rate(colours, tmp_path, parent, evaluate, mean_colour):
    """With every label of val wrong, the heads and the choice stay as they were, and the score falls to 0."""
    wrong = write_colours(tmp_path / "wrong", lambda split, colour: (colour + (split == "val")) % 4)
    results = []
    for root in (colours, wrong):
        data = ["data.name=imagefolder", f"data.root={root}"]
        _, _, run = evaluate(linear.main, parent, CONFIG, *data, *SMALL)
        results.append(run.result())
    assert results[0]["learning_rate"] == results[1]["learning_rate"]
    assert results[0]["held_out_top1_each"] == results[1]["held_out_top1_each"]
    assert results[1]["top1"] < 1


def test_result_is_the_last_epochs_and_best_on_val_stands_beside_it(folder, parent, evaluate):
    _, _, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, "epochs=4")
    result, rows = run.result(), run.metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    chosen = result["held_out_top1_each"].index(max(result["held_out_top1_each"]))
    assert result["learning_rate"] == [0.01, 0.1, 1.0][chosen]
    assert result["top1"] == rows[-1]["val_top1"][chosen]
    assert result["best_on_val_top1"] == max(max(row["val_top1"]) for row in rows)


def test_result_equals_a_classifier_rebuilt_from_the_checkpoint(folder, colours, parent, evaluate):
    """Top-1 again from files alone: the published weights file, the head in checkpoint.pt, and PIL."""
    _, _, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL)
    state = torch.load(run.path / "checkpoint.pt", weights_only=True)["heads"]
    result = run.result()
    chosen = result["learning_rates"].index(result["learning_rate"])
    backbone = load_parent_backbone(open_parent(parent)).eval()
    right = []
    for file in sorted((colours / "val").rglob("*.png")):
        pixels = np.asarray(Image.open(file).convert("RGB")).astype(np.float32) / 255
        pixels = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        with torch.no_grad():
            pooled = backbone(torch.tensor(pixels).float().permute(2, 0, 1)[None])[1][0]
        logits = state[f"weights.{chosen}"] @ pooled + state[f"biases.{chosen}"]
        right.append(int(logits.argmax()) == int(file.parent.name[-1]))
    assert result["top1"] == pytest.approx(100 * np.mean(right), abs=0.5)  # an argmax may tip on rounding


def test_backbone_is_not_touched(folder, parent, evaluate, monkeypatch):
    used = []
    monkeypatch.setattr(linear, "load_parent_backbone", lambda p: used.append(load_parent_backbone(p)) or used[-1])
    evaluate(linear.main, parent, CONFIG, *folder, *SMALL, *AUGMENTED, "epochs=2")
    expected = load_file(parent / "backbone.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in used[0].trunk.state_dict().items())
    assert not any(parameter.requires_grad for parameter in used[0].parameters())


def test_features_are_those_of_eval_mode(parent):
    backbone = load_parent_backbone(open_parent(parent)).train()
    images = torch.randn(4, 3, 32, 32)
    batch = PooledFeatures(backbone, torch.device("cpu"))(images)
    single = torch.cat([PooledFeatures(backbone, torch.device("cpu"))(image[None]) for image in images])
    torch.testing.assert_close(batch, single)  # batch statistics would make them differ


@pytest.mark.parametrize("mode", ["cached", "augmented"])
def test_a_seed_fixes_the_result_whatever_the_workers(mode, folder, make_parent, tmp_path, evaluate):
    parent = make_parent()
    heads = []
    for workers in (0, 2):
        runs = f"machine.runs={tmp_path / f'workers{workers}'}"
        evaluate(
            linear.main, parent, CONFIG, *folder, *SMALL, f"mode={mode}", "epochs=2", f"machine.workers={workers}", runs
        )
        (checkpoint,) = (tmp_path / f"workers{workers}").glob("linear/*/checkpoint.pt")
        heads.append(torch.load(checkpoint, weights_only=True)["heads"])
    assert all(torch.equal(heads[0][key], heads[1][key]) for key in heads[0])


def test_killed_run_goes_on_to_the_same_weights(folder, parent, tmp_path, evaluate):
    """kill -9 within the third epoch; the second start ends bit for bit where an uninterrupted run does."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent("""
        import os, signal, sys
        from eval import linear
        from runtime.errors import run_command
        kill_at, steps = int(sys.argv.pop(1)), 0
        step = linear.LinearTraining.train_step
        def counted(self, *batch):
            global steps
            steps += 1
            if steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            step(self, *batch)
        linear.LinearTraining.train_step = counted
        run_command(linear.main)
        """)
    )

    options = [*folder, *SMALL, *AUGMENTED, "epochs=4", "machine.save_seconds=0"]
    command = [sys.executable, str(driver), "16", str(parent), "--config", CONFIG, *options]  # 6 steps an epoch
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    killed = subprocess.run([*command, f"machine.runs={tmp_path / 'killed'}"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    for runs in ("killed", "whole"):
        code, error, _ = evaluate(linear.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
        assert code == 0, error
        assert [line for line in evaluate.output if line.startswith("going on at epoch 2 of 4")] == (
            ["going on at epoch 2 of 4"] if runs == "killed" else []
        )
    ends = []
    for runs in ("killed", "whole"):
        (run,) = (tmp_path / runs / "linear").iterdir()
        ends.append((torch.load(run / "checkpoint.pt", weights_only=True), Run(run).result(), Run(run).metrics()))
    (killed, killed_result, killed_rows), (whole, whole_result, whole_rows) = ends
    assert all(torch.equal(killed["heads"][key], whole["heads"][key]) for key in whole["heads"])
    assert {**killed_result, "seconds": 0} == {**whole_result, "seconds": 0}
    assert [row["loss"] for row in killed_rows] == [row["loss"] for row in whole_rows]


def test_terminated_run_saves_first_and_goes_on(folder, parent, evaluate, monkeypatch):
    step = linear.LinearTraining.train_step

    def terminated(self, *batch):
        if (self.state.epoch, self.state.step) == (1, 2):
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *batch)

    monkeypatch.setattr(linear.LinearTraining, "train_step", terminated)
    code, message, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL)
    assert (code, "goes on where this one stopped" in message) == (75, True)
    state = torch.load(run.path / "checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"], run.state()) == (1, 3, "interrupted")
    monkeypatch.setattr(linear.LinearTraining, "train_step", step)
    evaluate(linear.main, parent, CONFIG, *folder, *SMALL)
    assert [row["epoch"] for row in run.metrics()] == list(range(1, 9))


def test_a_done_run_is_left_alone(folder, parent, evaluate, monkeypatch):
    _, _, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, "epochs=1")
    before = run.result()
    monkeypatch.setattr(linear, "LinearTraining", None)  # would fail if it were used
    code, _, _ = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, "epochs=1")
    assert code == 0
    assert run.result() == before


def test_truncated_checkpoint(folder, parent, evaluate):
    _, _, run = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, "epochs=1")
    (run.path / "result.json").unlink()
    checkpoint = run.path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    code, message, _ = evaluate(linear.main, parent, CONFIG, *folder, *SMALL, "epochs=1")
    assert code == 2
    assert "cannot be read" in message
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_features_that_are_not_finite(folder, parent, evaluate):
    tensors = load_file(parent / "backbone.safetensors")
    key = next(key for key in tensors if key.endswith("running_var"))
    tensors[key].fill_(1e-30)  # finite weights, features that overflow
    for name in tensors:
        if name.endswith("weight") and tensors[name].dim() == 4:
            tensors[name].mul_(1e30)
    save_file(tensors, parent / "backbone.safetensors")
    code, message, _ = evaluate(linear.main, parent, CONFIG, *folder, *SMALL)
    assert code == 3
    assert "not finite" in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("learning_rate=0.1", "did you mean learning_rates"),
        ("mode=quick", "augmented or cached"),
        ("held_out=0", "several learning_rates"),
        ("held_out=1.0", "0 to below 1"),
        ("learning_rates=[]", "1 or more values"),
        ("learning_rates=[0.1,-1]", "above 0"),
        ("learning_rates=[0.1,0.1]", "each only once"),
        ("epochs=0", "1 or more"),
        ("batch_size=0", "1 or more"),
        ("resize=16", "image_size"),
        ("momentum=1.0", "0 to below 1"),
        ("machine.device=tpu9", "machine.device"),
        ("data.name=cifar", "imagefolder"),
    ],
)
def test_wrong_config_stops_before_anything_is_made(override, words, parent, evaluate, tmp_path):
    code, message, _ = evaluate(linear.main, parent, CONFIG, override)
    assert code == 2
    assert words in message
    assert not (tmp_path / "runs" / "linear").exists()


def test_command_line_errors_have_no_traceback(command, folder, parent, tmp_path):
    """One real process: the run directory is in use by another one, this one."""
    config = configs.load(LinearConfig, CONFIG, folder)
    name = identity(config, open_parent(parent).hash)
    with open_run(tmp_path / "runs", name, {}):
        done = command("eval.linear", parent, "--config", CONFIG, *folder, f"machine.runs={tmp_path / 'runs'}")
    assert done.returncode == 4
    assert "is in use by process" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
