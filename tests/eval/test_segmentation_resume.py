"""Segmentation that is killed, stopped or damaged: it goes on to the same weights, or says what is wrong."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from segmentation_tools import CONFIG, SMALL, head_of

from eval import segmentation
from runtime.rundir import Run


@pytest.mark.slow
def test_killed_run_goes_on_to_the_same_weights(scenes, tiny_scenes, parent, tmp_path, evaluate):
    """kill -9 at the fourth iteration; the second start ends bit for bit where an uninterrupted run does."""
    driver = tmp_path / "driver.py"
    driver.write_text(
        textwrap.dedent("""
        import os, signal
        from eval import mmseg_runner, segmentation
        from runtime.errors import run_command
        after = mmseg_runner.TrainingWatch.after_train_iter
        def kill_at_4(self, runner, *rest, **named):
            if runner.iter + 1 == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            after(self, runner, *rest, **named)
        mmseg_runner.TrainingWatch.after_train_iter = kill_at_4
        run_command(segmentation.main)
        """)
    )
    options = [*scenes, *SMALL, "flip=true", "photometric_distortion=true", "machine.save_seconds=0"]
    command = [sys.executable, str(driver), str(parent), "--config", CONFIG, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd(), "VICREGL_DATA": str(tiny_scenes)}
    killed = subprocess.run([*command, f"machine.runs={tmp_path / 'killed'}"], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    ends = []
    for runs in ("killed", "whole"):
        code, error, _ = evaluate(segmentation.main, parent, CONFIG, *options, f"machine.runs={tmp_path / runs}")
        assert code == 0, error
        assert ("going on at iteration 3 of 6" in evaluate.output) is (runs == "killed")
        (run,) = (tmp_path / runs / "segmentation").iterdir()
        ends.append((head_of(run), Run(run)))
    (one, resumed), (two, whole) = ends
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert {**resumed.result(), "seconds": 0} == {**whole.result(), "seconds": 0}
    keys = ("step", "loss", "learning_rate", "pixel_accuracy")
    assert [[row[k] for k in keys] for row in resumed.metrics()] == [[row[k] for k in keys] for row in whole.metrics()]


def test_terminated_run_saves_first_and_goes_on(scenes, parent, evaluate, monkeypatch):
    from eval.mmseg_runner import TrainingWatch

    after = TrainingWatch.after_train_iter

    def terminate_at_4(self, runner, *rest, **named):
        if runner.iter + 1 == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, runner, *rest, **named)

    monkeypatch.setattr(TrainingWatch, "after_train_iter", terminate_at_4)
    code, message, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "goes on where this one stopped" in message) == (75, True)
    assert run.state() == "interrupted"
    monkeypatch.setattr(TrainingWatch, "after_train_iter", after)
    evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert "going on at iteration 4 of 6" in evaluate.output
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5, 6]
    assert run.state() == "done"


def test_killed_after_training_still_gets_its_score_and_predictions(scenes, parent, evaluate):
    _, _, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    before, kept = run.result(), run.path / "predictions.npz"
    predictions = kept.read_bytes()
    kept.unlink()
    (run.path / "result.json").unlink()
    code, error, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert code == 0, error
    assert {**run.result(), "seconds": 0} == {**before, "seconds": 0}
    assert kept.read_bytes() == predictions  # as the message of a run without predictions promises


def test_damaged_checkpoints(scenes, make_parent, evaluate):
    parent = make_parent()
    _, _, run = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    (run.path / "result.json").unlink()
    checkpoint = run.path / "checkpoint.pth"
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:-500])
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "cannot be read" in message) == (2, True)
    assert message.count("\n") == 1
    torch.save({"state_dict": {"decode_head.other": torch.zeros(1)}, "meta": {"seconds": 0.0}}, checkpoint)
    code, message, _ = evaluate(segmentation.main, parent, CONFIG, *scenes, *SMALL)
    assert (code, "of another evaluation" in message) == (2, True)


@pytest.mark.slow
def test_dropout_and_bfloat16_go_on_to_the_same_weights(scenes, parent, tmp_path, evaluate, monkeypatch):
    from eval.mmseg_runner import TrainingWatch

    kinds = ["finetune=true", "head=fcn", "precision=bfloat16", "iterations=4", "machine.predictions=0"]
    options = [*scenes, *SMALL, *kinds]
    _, _, whole = evaluate(segmentation.main, parent, CONFIG, *options)
    after = TrainingWatch.after_train_iter

    def terminate_at_2(self, runner, *rest, **named):
        if runner.iter + 1 == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, runner, *rest, **named)

    elsewhere = [*options, f"machine.runs={tmp_path / 'stopped'}"]
    monkeypatch.setattr(TrainingWatch, "after_train_iter", terminate_at_2)
    assert evaluate(segmentation.main, parent, CONFIG, *elsewhere)[0] == 75
    monkeypatch.setattr(TrainingWatch, "after_train_iter", after)
    assert evaluate(segmentation.main, parent, CONFIG, *elsewhere)[0] == 0
    (run,) = (tmp_path / "stopped" / "segmentation").iterdir()
    one, two = head_of(run), head_of(whole)
    assert set(one) == set(two)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert {**Run(run).result(), "seconds": 0} == {**whole.result(), "seconds": 0}
