"""What pretraining refuses or stops at: bad input, damaged files, a full disk; each named, and nothing is lost."""

import json
import shutil
import subprocess
import sys
import time

import pytest
import torch

from pretrain.__main__ import main
from runtime import PROJECT
from runtime.errors import run_command
from tests.pretrain.conftest import only_run


@pytest.mark.parametrize(
    ("overrides", "code", "expected"),
    [
        (["loss.alhpa=1"], 2, ["loss.alhpa", "loss.alpha"]),
        (["loss.alpha=1.5"], 2, ["loss.alpha", "1.5"]),
        (["loss.num_matches=[0,4]"], 2, ["num_matches", "0"]),
        (["train.batch_size=1"], 2, ["train.batch_size", "1"]),
        (["train.batch_size=49"], 2, ["49", "48"]),
        (["train.accumulate=3"], 2, ["train.accumulate", "3", "16"]),
        (["train.accumulate=2"], 2, ["train.accumulate", "BatchNorm", "backbone.trunk.stem", "projector_norm=layer"]),
        (["train.precision=half"], 2, ["half", "float16"]),
        (["loss.local_stage_weights=[1,2]"], 2, ["loss.local_stage_weights", "[1.0, 2.0]", "1 model.local_stages"]),
        (["model.backbone.name=crossvit_tiny_240"], 2, ["crossvit_tiny_240", "no map", "resnet50"]),
        (["model.backbone.name=levit_128s"], 2, ["views.large_size", "levit_128s", "32 x 32 pixels", "args.img_size"]),
        (["train.duration=10"], 2, ["train.duration", "steps"]),
        (["optimizer.warmup=14 steps"], 2, ["optimizer.warmup", "14"]),
        (["model.backbone.name=resnet51"], 2, ["resnet51", "resnet50"]),
        (["data.root=/nowhere"], 2, ["/nowhere"]),
        (["machine.device=cuda:99"], 2, ["cuda:99"]),
        (["optimizer.base_lr=1e30"], 3, ["not finite", "step", "kept"]),
    ],
)
def test_bad_input_ends_in_one_clear_message(tmp_path, arguments, overrides, code, expected, monkeypatch, capsys):
    """In this process, by the function that the command line goes through: a new one takes seconds to import torch."""
    monkeypatch.setattr(sys, "argv", arguments(tmp_path, *overrides))
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    stderr = capsys.readouterr().err
    assert ended.value.code == code, stderr
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert all(part in stderr for part in expected), stderr
    assert (tmp_path / "pretrain").exists() == (code == 3)  # nothing is made for what cannot be trained


@pytest.fixture
def broken_image(image_folder, tmp_path):
    """A copy of the dataset in which one training image is cut off."""
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    image = root / "train" / "class2" / "3.png"
    image.write_bytes(image.read_bytes()[:200])
    return image


def test_an_unreadable_image_stops_before_training_and_is_named(tmp_path, broken_image, arguments, command):
    runs = tmp_path / "runs"
    done = command(*arguments(runs, f"data.root={broken_image.parents[2]}"))
    assert done.returncode == 2
    assert str(broken_image) in done.stderr
    assert "Traceback" not in done.stderr
    assert not only_run(runs).metrics()


def test_an_unreadable_image_is_skipped_and_counted_on_request(tmp_path, broken_image, arguments, command):
    runs = tmp_path / "runs"
    done = command(*arguments(runs, f"data.root={broken_image.parents[2]}", "data.on_bad_image=skip"))
    assert done.returncode == 0, done.stderr
    assert only_run(runs).result()["images_skipped"] == 1


@pytest.mark.parametrize("damage", ["empty class", "no split"])
def test_a_half_made_dataset_is_named(tmp_path, image_folder, arguments, command, damage):
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    broken = root / "train" / "class1" if damage == "empty class" else root / "train"
    shutil.rmtree(broken)
    if damage == "empty class":
        broken.mkdir()
    done = command(*arguments(tmp_path / "runs", f"data.root={root}"))
    assert done.returncode == 2
    assert broken.name in done.stderr
    assert "Traceback" not in done.stderr
    if damage == "no split":
        assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_keeps_the_last_checkpoint(tmp_path, arguments, command):
    assert command(*arguments(tmp_path, "optimizer.base_lr=1e30")).returncode == 3
    checkpoint = torch.load(only_run(tmp_path).path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] >= 1
    failure = only_run(tmp_path).failure()
    assert failure["class"] == "NotFiniteError"
    assert only_run(tmp_path).state() == "failed"


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_named_and_kept(tmp_path, arguments, command, damage):
    argv = arguments(tmp_path, "train.duration=3 steps")
    assert command(*argv).returncode == 0
    run = only_run(tmp_path)
    (run.path / "result.json").unlink()
    checkpoint = run.path / "checkpoint.pt"
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        checkpoint.write_text(json.dumps({"not": "a checkpoint"}))
    contents = checkpoint.read_bytes()
    done = command(*argv)
    assert done.returncode == 2
    assert str(checkpoint) in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.read_bytes() == contents


def test_a_run_in_use_is_refused(tmp_path, arguments, command):
    argv = arguments(tmp_path, "train.duration=100000 steps")
    first = subprocess.Popen([sys.executable, "-m", *argv], cwd=PROJECT, stdout=subprocess.DEVNULL)
    try:
        while not list(tmp_path.glob("pretrain/*/heartbeat.json")):
            assert first.poll() is None
            time.sleep(0.05)
        second = command(*argv)
        assert second.returncode == 4
        assert f"in use by process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.wait()


def test_a_full_disk_keeps_the_former_checkpoint(small_disk, arguments, command):
    """The disk holds one checkpoint and not two, so that the second save finds it full."""
    done = command(*arguments(small_disk(6), "train.duration=100000 steps"))
    assert done.returncode == 2
    assert "no space left" in done.stderr
    assert "former version is kept" in done.stderr
    assert "Traceback" not in done.stderr
    run = only_run(small_disk.path)
    assert torch.load(run.path / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not list(run.path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.duration=inf epochs", "train.duration = 'inf epochs' is not possible"),
        ("train.duration=nan steps", "train.duration = 'nan steps' is not possible"),
        ("optimizer.base_lr=.inf", "optimizer.base_lr"),
        ("optimizer.base_lr=inf", "optimizer.base_lr"),
        ("machine.device=meta", "machine.device = 'meta' is not possible; allowed: auto, cpu, cuda or cuda:N"),
        ("machine.device=mps", "machine.device = 'mps' is not possible; allowed: auto, cpu, cuda or cuda:N"),
        ("model.expander=1000000-1000000", "the network needs at least 16.0 TB (its 1,000,131,"),
        (f"data.root=/{'a' * 300}", "a name in it is longer than the file system allows"),
    ],
)
def test_an_impossible_run_is_one_line_and_makes_nothing(override, expected, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(sys, "argv", arguments(tmp_path / "runs", override))
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert expected in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()
