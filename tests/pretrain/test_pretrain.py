"""The pretraining command: exact resume after kill -9, bad input, and what it leaves in its directory."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.__main__ import main
from runtime.errors import run_command
from runtime.rundir import Run

sys.path.insert(0, str(Path(__file__).parents[1]))
from twins import write_shards

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
STEPS = 14


@pytest.fixture
def arguments(image_folder):
    """A run of seconds; drop path draws from torch's generator, so that its state counts too."""

    def make(runs, *overrides):
        return [
            "pretrain",
            "--config=pretrain/configs/quickstart.yaml",
            "train.precision=float32",
            "data.name=imagefolder",
            f"data.root={image_folder}",
            "model.expander=32-32",
            "model.projector=16-16",
            "train.batch_size=16",
            f"train.duration={STEPS} steps",
            "optimizer.warmup=2 steps",
            "diagnostics_images=32",
            "machine.threads=1",
            "machine.save_minutes=0",
            "machine.log_steps=1",
            f"machine.runs={runs}",
            *overrides,
        ]

    return make


def only_run(runs) -> Run:
    (path,) = (runs / "pretrain").iterdir()
    return Run(path)


def weights(runs) -> dict[str, torch.Tensor]:
    return load_file(only_run(runs).path / "backbone.safetensors")


CLOCKS = ("time", "seconds", "data_wait_percent", "images_per_second")


def rows(runs):
    """metrics.jsonl without its clocks."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in only_run(runs).metrics()]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kill_after(argv, runs, step: int) -> None:
    """Start the command and kill -9 it once its metrics show `step`, which it goes no further than."""
    command = [sys.executable, WORKER, f"hold={step}", *argv[1:]]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=settings, stdout=subprocess.DEVNULL)
    while not any(len(Run(file.parent).metrics()) == step for file in runs.glob("pretrain/*/metrics.jsonl")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_killed_at_any_step_and_resumed_ends_bit_for_bit_the_same(tmp_path, arguments, command):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert command(*arguments(whole)).returncode == 0
    for step in sorted(random.Random(0).sample(range(1, STEPS - 1), 2)):
        kill_after(arguments(killed), killed, step)
    assert only_run(killed).result() is None
    assert only_run(killed).state() == "interrupted"
    finished = command(*arguments(killed))
    assert finished.returncode == 0, finished.stderr
    assert "going on at step" in finished.stdout
    assert same(weights(whole), weights(killed))
    assert rows(whole) == rows(killed)
    assert [row["step"] for row in rows(whole)] == list(range(1, STEPS + 1))
    assert len(only_run(killed).document()["attempts"]) == 3


def state(runs) -> dict[str, object]:
    """Everything in checkpoint.pt, by its place there."""
    values = {}

    def add(place: str, value: object) -> None:
        if isinstance(value, dict | list | tuple):
            for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
                add(f"{place}.{key}", inner)
        else:
            values[place] = value

    add("", torch.load(only_run(runs).path / "checkpoint.pt", weights_only=True))
    return values


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_shards_give_the_checkpoint_of_their_folder_bit_for_bit(
    form, tmp_path, arguments, command, image_folder, monkeypatch
):
    """Read by two workers, and in a run that is killed and resumed."""
    monkeypatch.setenv("VICREGL_DATA", str(tmp_path / "indexes"))
    folder, shards = tmp_path / "folder", tmp_path / "shards"
    root = write_shards(image_folder, tmp_path / "twin", form)
    assert command(*arguments(folder)).returncode == 0
    options = arguments(shards, f"data.root={root}", "machine.workers=2")
    kill_after(options, shards, 5)
    assert only_run(shards).state() == "interrupted"
    finished = command(*options)
    assert "going on at step" in finished.stdout, finished.stderr
    assert same(weights(folder), weights(shards))
    assert rows(folder) == rows(shards)
    expected, got = state(folder), state(shards)
    assert expected.keys() == got.keys()
    equal = {key: torch.equal(a, b) if torch.is_tensor(a := got[key]) else a == b for key, b in expected.items()}
    assert {key for key, same in equal.items() if not same} <= {".seconds"}


def test_ctrl_c_saves_at_a_step_boundary(tmp_path, arguments):
    argv = arguments(tmp_path, "train.duration=100000 steps", "machine.save_minutes=60")
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
    )
    while not list(tmp_path.glob("pretrain/*/metrics.jsonl")) or not only_run(tmp_path).metrics():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    checkpoint = torch.load(only_run(tmp_path).path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] >= 1
    assert only_run(tmp_path).state() == "interrupted"


def test_the_files_of_a_run(tmp_path, arguments, command):
    done = command(*arguments(tmp_path))
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    names = {path.name for path in run.path.iterdir()}
    assert {"run.yaml", "metrics.jsonl", "checkpoint.pt", "backbone.safetensors", "result.json", "tensorboard"} <= names
    assert len({path.stat().st_mode for path in run.path.glob("*.*")}) == 1  # who may read one may read all
    result = run.result()
    assert result["steps"] == STEPS
    for key in (
        "loss",
        "probe_top1",
        "std_pooled",
        "correlation_local",
        "rank_pooled",
        "rank_local",
        "seconds",
        "peak_memory_gb",
    ):
        assert key in result
    assert result["seconds_per_step"] == pytest.approx(result["seconds"] / STEPS)
    row = run.metrics()[-1]
    local = sum(row[f"local_{term}"] for term in ("invariance", "variance", "covariance"))
    pooled = sum(row[f"global_{term}"] for term in ("invariance", "variance", "covariance"))
    assert row["loss"] == pytest.approx(0.75 * pooled + 0.25 * local, rel=1e-5)
    before = run.path.joinpath("result.json").stat().st_mtime_ns
    again = command(*arguments(tmp_path))
    assert again.returncode == 0
    assert "is done" in again.stdout
    assert run.path.joinpath("result.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_loggers_change_no_weight(tmp_path, arguments, command, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for runs, names in (("without", "[]"), ("with", "[tensorboard,wandb]")):
        done = command(*arguments(tmp_path / runs, f"machine.loggers={names}", "machine.workers=2"))
        assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    assert same(weights(tmp_path / "without"), weights(tmp_path / "with"))
    assert rows(tmp_path / "without") == rows(tmp_path / "with")
    assert list(only_run(tmp_path / "with").path.glob("wandb/offline-run-*/*.wandb"))
    assert not list(only_run(tmp_path / "without").path.glob("*/"))


def test_zero_steps_save_the_random_initialisation(tmp_path, arguments, command):
    done = command(*arguments(tmp_path, "train.duration=0 steps"))
    assert done.returncode == 0, done.stderr
    assert only_run(tmp_path).result()["steps"] == 0
    from vicregl.backbones import create_backbone
    from vicregl.config import BackboneConfig

    torch.manual_seed(0)
    assert same(weights(tmp_path), create_backbone(BackboneConfig("scenes_resnet")).trunk.state_dict())


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
    first = subprocess.Popen([sys.executable, "-m", *argv], cwd=ROOT, stdout=subprocess.DEVNULL)
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
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", arguments(tmp_path / "runs", override))
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert expected in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_cfg_prints_a_config_of_the_same_run_and_makes_nothing(tmp_path, capsys):
    def shown(*argv):
        main([*argv, "--cfg"])
        return capsys.readouterr().out

    stored = tmp_path / "printed.yaml"
    quickstart = str(ROOT / "pretrain/configs/quickstart.yaml")
    printed = shown("loss.alpha=0.3", "--config", quickstart, "--seed=7", f"--machine.runs={tmp_path}/runs")
    stored.write_text(printed, encoding="utf-8")
    assert printed.startswith(f"# {tmp_path}/runs/pretrain/")
    assert "alpha: 0.3\n" in printed
    assert shown("--config", str(stored)) == printed
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]
