"""The pretraining command: exact resume after kill -9, and what it leaves in its directory."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.__main__ import main
from runtime import PROJECT
from runtime.rundir import Run
from tests.pretrain.conftest import STEPS, only_run
from tests.twins import write_shards

WORKER = Path(__file__).with_name("worker.py")
CLOCKS = ("time", "seconds", "data_wait_percent", "images_per_second")


def weights(runs) -> dict[str, torch.Tensor]:
    return load_file(only_run(runs).path / "backbone.safetensors")


def rows(runs):
    """metrics.jsonl without its clocks."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in only_run(runs).metrics()]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def kill_after(argv, runs, step: int) -> None:
    """Start the command and kill -9 it once its metrics show `step`, which it goes no further than."""
    command = [sys.executable, WORKER, f"hold={step}", *argv[1:]]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(command, cwd=PROJECT, env=settings, stdout=subprocess.DEVNULL)
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
        [sys.executable, "-m", *argv], cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
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


def test_cfg_prints_a_config_of_the_same_run_and_makes_nothing(tmp_path, capsys):
    def shown(*argv):
        main([*argv, "--cfg"])
        return capsys.readouterr().out

    stored = tmp_path / "printed.yaml"
    quickstart = str(PROJECT / "pretrain/configs/quickstart.yaml")
    printed = shown("loss.alpha=0.3", "--config", quickstart, "--seed=7", f"--machine.runs={tmp_path}/runs")
    stored.write_text(printed, encoding="utf-8")
    assert printed.startswith(f"# {tmp_path}/runs/pretrain/")
    assert "alpha: 0.3\n" in printed
    assert shown("--config", str(stored)) == printed
    assert [path.name for path in tmp_path.iterdir()] == ["printed.yaml"]
