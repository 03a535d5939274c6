"""What is saved when, and that a run goes on exactly from each of the files; in this process, which saves its start."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch

from pretrain.__main__ import main
from runtime.device import choose_convolutions
from runtime.errors import Unfinished, UserError
from tests.pretrain.conftest import only_run

STEPS, STEPS_PER_EPOCH = 7, 3  # 48 images, 16 a batch


@pytest.fixture
def arguments(image_folder):
    """Drop path draws from torch's generator, so that its state counts too."""

    def make(runs, *overrides) -> list[str]:
        return [
            "--config=pretrain/configs/quickstart.yaml",
            "train.precision=float32",
            "data.name=imagefolder",
            f"data.root={image_folder}",
            "model.backbone.name=convnext_atto",
            "model.backbone.args={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8], drop_path_rate: 0.5, ls_init_value: 0.5}",
            "loss.num_matches=[1,1]",
            "model.expander=32-32",
            "model.projector=16-16",
            "train.batch_size=16",
            f"train.duration={STEPS} steps",
            "optimizer.warmup=2 steps",
            "diagnostics_images=32",
            "machine.save_minutes=0",
            f"machine.runs={runs}",
            *overrides,
        ]

    return make


def checkpoint(runs: Path) -> dict:
    return torch.load(only_run(runs).path / "checkpoint.pt", weights_only=True)


def kept(runs: Path) -> dict[str, int]:
    """Names of the checkpoints beside checkpoint.pt, and the step of each."""
    files = sorted((only_run(runs).path / "checkpoints").glob("*"))
    return {path.name: torch.load(path, weights_only=True)["step"] for path in files}


def assert_equal(runs: Path, other: Path) -> None:
    a, b = checkpoint(runs), checkpoint(other)
    assert a["step"] == b["step"] == STEPS
    for key, value in a["model"].items():
        assert torch.equal(value, b["model"][key]), key
    assert a["scaler"] == b["scaler"]
    assert torch.equal(a["random"][0]["cpu"], b["random"][0]["cpu"])


def test_numbered_checkpoints(tmp_path, arguments) -> None:
    main(arguments(tmp_path, "machine.keep_last=2", "machine.keep_every_epochs=1"))
    assert kept(tmp_path) == {
        "epoch-0001.pt": STEPS_PER_EPOCH,
        "epoch-0002.pt": 2 * STEPS_PER_EPOCH,
        "step-00000006.pt": 6,
        "step-00000007.pt": 7,
    }


def test_kept_epochs_are_saved_however_rare_other_saves_are(tmp_path, arguments) -> None:
    main(arguments(tmp_path, "machine.save_minutes=60", "machine.keep_every_epochs=2"))
    assert kept(tmp_path) == {"epoch-0002.pt": 2 * STEPS_PER_EPOCH}


def test_checkpoints_are_kept_at_the_moments_that_are_asked_for(tmp_path, arguments) -> None:
    """Whatever keep_last drops; moments of both units, at the same step too."""
    main(arguments(tmp_path, "machine.keep_last=1", "machine.keep_at=[2 steps, 3 steps, 1 epoch, 70 steps]"))
    step = {f"step-0000000{step}.pt": step for step in (2, 3, STEPS)}
    assert kept(tmp_path) == step | {"epoch-0001.pt": STEPS_PER_EPOCH}


def test_what_could_not_be_kept_is_kept_when_the_run_goes_on(tmp_path, arguments, monkeypatch) -> None:
    """The disk was full just after checkpoint.pt was saved, without links; so it is where a kill comes between."""

    def no_links(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run = arguments(tmp_path, "machine.keep_at=[2 steps]")
    with monkeypatch.context() as disk:
        disk.setattr(os, "link", no_links)
        disk.setattr(shutil, "copyfile", full)
        with pytest.raises(UserError, match=r"no space left on the disk while saving .*step-00000002\.pt"):
            main(run)
    assert kept(tmp_path) == {}
    main(run)
    assert kept(tmp_path) == {"step-00000002.pt": 2}


def test_without_being_asked_nothing_is_kept(tmp_path, arguments) -> None:
    main(arguments(tmp_path))
    assert not (only_run(tmp_path).path / "checkpoints").exists()


def test_a_time_budget_ends_the_run_saved_and_repeating_it_is_exact(tmp_path, arguments) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    main(arguments(whole))
    for step in range(1, STEPS):
        # A budget smaller than a step: each attempt makes one.
        with pytest.raises(Unfinished, match="max_minutes"):
            main(arguments(pieces, "machine.max_minutes=1e-6", "machine.save_minutes=60"))
        assert checkpoint(pieces)["step"] == step
        assert only_run(pieces).state() == "interrupted"
    main(arguments(pieces))
    assert_equal(whole, pieces)


def gone_back(runs: Path, arguments: list[str], step: int, copy: Path) -> Path:
    """A copy of finished runs as they were after `step` steps; returns its checkpoint."""
    main(arguments)
    shutil.copytree(runs, copy)
    path = only_run(copy).path
    (path / "result.json").unlink()
    shutil.copyfile(path / "checkpoints" / f"step-{step:08}.pt", path / "checkpoint.pt")
    return path / "checkpoint.pt"


@pytest.mark.parametrize("workers", ["machine.workers=2", "machine.workers=2 machine.worker_kind=threads"])
def test_going_on_with_other_workers_is_exact(tmp_path, arguments, workers) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    gone_back(whole, arguments(whole, "machine.keep_last=9"), 4, other)
    main(arguments(other, *workers.split()))
    assert_equal(whole, other)


def test_going_on_in_float16_is_exact(tmp_path, arguments) -> None:
    """The scale is part of the state: it is halved by the first steps, whose gradients are too large."""
    whole, other = tmp_path / "whole", tmp_path / "other"
    half = ["train.precision=float16", "machine.keep_last=9"]
    gone_back(whole, arguments(whole, *half), 4, other)
    assert checkpoint(other)["scaler"]["scale"] != torch.amp.GradScaler("cpu").get_scale()
    main(arguments(other, *half))
    assert_equal(whole, other)


@pytest.mark.parametrize("computes", [True, False])
def test_auto_precision_is_that_of_the_first_attempt(tmp_path, arguments, monkeypatch, computes) -> None:
    """bfloat16 where the processor computes it; the run goes on in it on a machine that differs."""
    named, whole, other = tmp_path / "named", tmp_path / "whole", tmp_path / "other"
    name = "bfloat16" if computes else "float32"
    main(arguments(named, f"train.precision={name}"))
    auto = ["train.precision=auto", "machine.keep_last=9"]
    monkeypatch.setattr("pretrain.training.computes_bfloat16", lambda device: computes)
    gone_back(whole, arguments(whole, *auto), 4, other)
    monkeypatch.setattr("pretrain.training.computes_bfloat16", lambda device: not computes)
    main(arguments(other, *auto))
    assert_equal(whole, named)
    assert_equal(whole, other)
    assert [(only_run(runs).result() or {})["precision"] for runs in (named, whole, other)] == [name] * 3


@pytest.fixture
def repeatable(monkeypatch):
    """Sums of a GPU in one order. Else AdamW would step by the noise of gradients that are 0, as of a norm's bias."""
    monkeypatch.setattr("pretrain.training.choose_convolutions", partial(choose_convolutions, deterministic=True))
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_gpu_goes_on_where_it_or_a_cpu_stopped(tmp_path, arguments, repeatable, optimizer) -> None:
    """From a GPU's checkpoint with its random numbers, so that drop path drops the same."""
    whole, other, crossed = tmp_path / "whole", tmp_path / "other", tmp_path / "crossed"
    options = [f"optimizer.name={optimizer}", "machine.keep_last=9"]
    gone_back(whole, arguments(whole, *options, "machine.device=cuda"), 4, other)
    assert checkpoint(other)["random"][0]["cuda"] is not None
    main(arguments(other, *options, "machine.device=cuda"))
    a, b = checkpoint(whole), checkpoint(other)
    assert torch.equal(a["random"][0]["cuda"], b["random"][0]["cuda"])
    for key, value in a["model"].items():
        torch.testing.assert_close(b["model"][key], value, rtol=1e-3, atol=1e-4, msg=key)
    gone_back(tmp_path / "cpu", arguments(tmp_path / "cpu", *options, "machine.device=cpu"), 4, crossed)
    main(arguments(crossed, *options, "machine.device=cuda"))
    assert checkpoint(crossed)["step"] == STEPS


def test_a_checkpoint_of_the_first_format_goes_on(tmp_path, arguments) -> None:
    whole, old = tmp_path / "whole", tmp_path / "old"
    file = gone_back(whole, arguments(whole, "machine.keep_last=9"), 4, old)
    contents = torch.load(file, weights_only=True)
    del contents["scaler"]
    contents |= {"format": 1, "rng": contents.pop("random")[0]["cpu"], "rng_cuda": []}
    torch.save(contents, file)
    main(arguments(old))
    assert_equal(whole, old)


def test_the_printed_line(tmp_path, arguments, capsys) -> None:
    main(arguments(tmp_path, "machine.log_seconds=0", "probe.enabled=false"))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert len(lines) == STEPS
    for part in ("step 3/7, loss ", " images/s, ", " % waiting for data, ", " s left"):
        assert part in lines[2]
    row = only_run(tmp_path).result()
    assert row["seconds_per_step"] == pytest.approx(row["seconds"] / STEPS)
    assert 0.1 < row["peak_memory_gb"] < 100
