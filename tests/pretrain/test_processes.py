"""Several processes against one: real processes with gloo, in float64, so that only what is different differs."""

import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import data.loader
from data.loader import PretrainLoader
from pretrain.__main__ import main
from runtime.errors import run_command
from tests.pretrain.conftest import only_run

WORKER = Path(__file__).with_name("worker.py")
STEPS = 5


@pytest.fixture
def arguments(image_folder):
    """A run of seconds, of a network with BatchNorm in backbone, expander and projector; AdamW by the config."""

    def make(runs, *overrides) -> list[str]:
        return [
            "--config=pretrain/configs/quickstart.yaml",
            "train.precision=float32",
            "data.name=imagefolder",
            f"data.root={image_folder}",
            "model.expander=32-32",
            "model.projector=16-16",
            "train.batch_size=12",
            f"train.duration={STEPS} steps",
            "optimizer.warmup=2 steps",
            "diagnostics_images=24",
            "machine.threads=1",
            "machine.save_minutes=0",
            "machine.keep_last=99",
            "machine.log_steps=1",
            f"machine.runs={runs}",
            *overrides,
        ]

    return make


def checkpoint(runs: Path, name: str = "checkpoint.pt") -> dict:
    return torch.load(only_run(runs).path / name, weights_only=True)


def alone(argv: list[str], change: str = "double") -> None:
    """One process, which is this one: it has imported everything."""
    finish = PretrainLoader.finish
    if change == "double":
        runpy.run_path(str(WORKER))["double"]()
    try:
        main(argv)
    finally:
        PretrainLoader.finish = finish
        torch.set_default_dtype(torch.float32)


def finished(ranks, runs: Path, argv: list[str], count: int, change: str = "double") -> None:
    started = ranks(count, WORKER, change, *argv)
    for code, said, errors in ranks.ended(started):
        assert code == 0, errors
        assert "Warning" not in errors
        assert ("is done" in said) == (said != "")  # process 0 alone speaks
    assert only_run(runs).result() is not None


def assert_same(runs: Path, other: Path, tolerance: float = 1e-9) -> None:
    """Weights, running statistics, optimiser state, probe, losses and diagnostics."""
    a, b = checkpoint(runs), checkpoint(other)
    assert a["step"] == b["step"] == STEPS
    for key, value in a["model"].items():
        torch.testing.assert_close(b["model"][key], value, rtol=tolerance, atol=tolerance, msg=key)
    assert {"probe_top1", "loss", "rank_local"} <= only_run(runs).metrics()[0].keys()
    for key, value in a["probe"].items():
        torch.testing.assert_close(b["probe"][key], value, rtol=tolerance, atol=tolerance, msg=key)
    for number, state in a["optimizer"]["state"].items():
        torch.testing.assert_close(b["optimizer"]["state"][number], state, rtol=1e-6, atol=tolerance)
    for row, same in zip(only_run(runs).metrics(), only_run(other).metrics(), strict=True):
        clocks = {"time", "seconds", "data_wait_percent", "images_per_second"}
        for key in row.keys() - clocks:
            assert same[key] == pytest.approx(row[key], rel=1e-6), key
    mine, theirs = only_run(runs).result(), only_run(other).result()
    assert theirs["precision"] == mine["precision"]
    for key in mine.keys() - {"precision", "seconds", "seconds_per_step", "peak_memory_gb"}:
        assert theirs[key] == pytest.approx(mine[key], rel=1e-5), key


def back_to_step(runs: Path, copy: Path, step: int) -> None:
    """A copy of the runs in which `step` steps are done."""
    shutil.copytree(runs, copy)
    path = only_run(copy).path
    (path / "result.json").unlink()
    shutil.copyfile(path / "checkpoints" / f"step-{step:08}.pt", path / "checkpoint.pt")


@pytest.mark.slow
def test_two_processes_are_one_and_each_goes_on_with_the_other_s_run(tmp_path, arguments, ranks) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    alone(arguments(one))
    finished(ranks, two, arguments(two), 2)
    assert sum(key.endswith("running_var") for key in checkpoint(one)["model"]) > 10
    assert only_run(one).name == only_run(two).name
    assert_same(one, two)
    more, fewer = tmp_path / "more", tmp_path / "fewer"
    back_to_step(one, more, 2)
    finished(ranks, more, arguments(more), 2)
    assert_same(one, more)
    back_to_step(two, fewer, 3)
    alone(arguments(fewer))
    assert_same(one, fewer)
    assert [attempt["processes"] for attempt in only_run(fewer).document()["attempts"]] == [2, 1]


@pytest.mark.slow
def test_skipped_images_are_counted_over_processes_and_attempts(
    tmp_path, arguments, image_folder, ranks, monkeypatch
) -> None:
    shutil.copytree(image_folder, tmp_path / "images")
    for image in (tmp_path / "images").glob("train/*/7.png"):
        image.write_bytes(b"not an image")
    # One epoch.
    options = [f"data.root={tmp_path / 'images'}", "data.on_bad_image=skip", "train.duration=4 steps"]
    two, resumed = tmp_path / "two", tmp_path / "resumed"
    finished(ranks, two, arguments(two, *options), 2, "large")
    back_to_step(two, resumed, 3)
    monkeypatch.setattr(data.loader, "open_store", data.loader.open_store)  # undone at the end
    runpy.run_path(str(WORKER))["large"]()
    main(arguments(resumed, *options))
    for runs in (two, resumed):
        assert only_run(runs).result()["images_skipped"] == 4


@pytest.mark.slow
def test_auto_precision_is_that_of_process_0_in_all(tmp_path, arguments, ranks) -> None:
    started = ranks(2, WORKER, "mixed", *arguments(tmp_path, "train.precision=auto"))
    for code, _, errors in ranks.ended(started):
        assert (code, "precision bfloat16" in errors) == (0, True), errors
    assert (only_run(tmp_path).result() or {})["precision"] == "bfloat16"


@pytest.mark.slow
def test_three_processes_with_local_stages_and_clipping(tmp_path, arguments, ranks) -> None:
    """More than two, which sums and shares of halves would not tell apart."""
    options = ["model.local_stages=[-2,-1]", "train.clip_norm=1", "optimizer.name=lars", "optimizer.base_lr=0.3"]
    one, three = tmp_path / "one", tmp_path / "three"
    alone(arguments(one, *options))
    finished(ranks, three, arguments(three, *options), 3)
    assert_same(one, three)


@pytest.mark.slow
def test_two_processes_with_an_earlier_stage_alone(tmp_path, arguments, ranks) -> None:
    """At alpha 0 the loss depends on no layer after that stage, and DDP waits for none of them."""
    options = ["loss.alpha=0", "model.local_stages=[-2]", "train.duration=3 steps"]
    finished(ranks, tmp_path, arguments(tmp_path, *options), 2)


@pytest.mark.slow
def test_two_processes_of_three_parts_each(tmp_path, arguments, ranks) -> None:
    """Gradients are added up over the parts and averaged over the processes, once."""
    network = "{name: convnext_atto, args: {depths: [1, 1, 1, 1], dims: [8, 8, 8, 8], ls_init_value: 0.5}}"
    options = [f"model.backbone={network}", "model.projector_norm=layer", "loss.num_matches=[1,1]"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone(arguments(one, *options))
    finished(ranks, two, arguments(two, *options, "train.accumulate=3"), 2)
    assert_same(one, two)


@pytest.mark.slow
def test_without_synchronised_norms_the_processes_see_other_statistics(tmp_path, arguments, ranks) -> None:
    """So the option does something; and DDP waits for none of the parameters that this network has after its map."""
    options = ["model.backbone.name=mobilenetv3_small_050", "loss.num_matches=[1,1]"]
    options += ["train.duration=2 steps", "optimizer.warmup=1 steps", "train.sync_batch_norm=false"]
    one, apart = tmp_path / "one", tmp_path / "apart"
    alone(arguments(one, *options))
    finished(ranks, apart, arguments(apart, *options), 2)
    loss, other = (only_run(runs).metrics()[0]["loss"] for runs in (one, apart))
    assert abs(other - loss) > 1e-3 * loss


@pytest.mark.slow
def test_a_signal_to_any_process_stops_all_of_them_saved(tmp_path, arguments, ranks) -> None:
    endless = ["train.duration=100000 steps", "machine.save_minutes=60", "machine.keep_last=0"]
    started = ranks(2, "-m", "pretrain", *arguments(tmp_path, *endless))
    while not list(tmp_path.glob("pretrain/*/metrics.jsonl")) or not only_run(tmp_path).metrics():
        assert started[0].poll() is None
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    for code, _, errors in ranks.ended(started):
        assert code == 75, errors
        assert errors.count("\n") == 1
        assert "SIGTERM" in errors
    steps = checkpoint(tmp_path)["step"]
    assert steps >= len(only_run(tmp_path).metrics()) >= 1
    assert len(checkpoint(tmp_path)["random"]) == 2
    assert only_run(tmp_path).state() == "interrupted"


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_words(tmp_path, arguments, ranks) -> None:
    first, second = ranks.ended(ranks(2, WORKER, "fail=1:2", *arguments(tmp_path)))
    assert first[0] == 1
    assert second[0] == 1
    assert first[2].startswith("error: process 1 of 2")
    assert "ValueError: this process is broken" in first[2]
    assert "Traceback" in second[2]
    failure = only_run(tmp_path).failure()
    assert failure["class"] == "ProcessLost"
    assert "this process is broken" in failure["message"]
    assert checkpoint(tmp_path)["step"] == 2
    assert only_run(tmp_path).state() == "failed"


@pytest.mark.parametrize("overrides", [["train.batch_size=13"], ["train.batch_size=12", "train.accumulate=4"]])
def test_uneven_shares_are_refused_before_anything_is_made(tmp_path, arguments, overrides, monkeypatch, capsys) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["pretrain", *arguments(tmp_path, *overrides)])
    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert all(part in printed for part in ("train.batch_size", "a multiple of", "2 processes")), printed
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_under_torchrun(tmp_path, arguments, command) -> None:
    done = command(
        "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pretrain", *arguments(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout
    assert only_run(tmp_path).result()["steps"] == STEPS
