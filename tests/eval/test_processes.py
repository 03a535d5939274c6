"""Linear, kNN and dense kNN by several real processes (gloo): the scores of one, every image counted once."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import torch

from eval import dense_knn, knn, linear
from eval.features import ImageBatches
from runtime.errors import UserError
from runtime.rundir import Run
from runtime.world import World

LINEAR, FINETUNE = (f"eval/configs/{name}_scenes.yaml" for name in ("linear", "finetune"))
SMALL = ["image_size=16", "resize=16", "held_out=0.2", "machine.threads=1"]
HEADS = [*SMALL, "epochs=3", "learning_rates=[0.01,0.1]"]
# 40 images train, in batches of which the last is smaller; the 16 of val are 3 batches.
CACHED = [*HEADS, "batch_size=7"]
AUGMENTED = [*HEADS, "mode=augmented", "batch_size=13"]  # the last batch has 1 image


@pytest.fixture
def folder(image_folder) -> list[str]:
    return ["data.name=imagefolder", f"data.root={image_folder}"]


def shared(ranks, count: int, stage: str, parent: Path, config: str, runs: Path, options: list[str]) -> Run:
    """Run the stage by `count` processes, of which the first alone prints."""
    words = [str(parent), "--config", config, *options, f"machine.runs={runs}"]
    for rank, (code, printed, errors) in enumerate(ranks.ended(ranks(count, "-m", f"eval.{stage}", *words))):
        assert code == 0, errors
        assert (f"{count} processes" in printed, printed == "") == (rank == 0, rank > 0)
    return only_run(runs)


def only_run(runs: Path) -> Run:
    (path,) = runs.glob("*knn/*" if list(runs.glob("*knn")) else "linear/*")
    return Run(path)


def scores(run: Run) -> dict:
    return {**run.result(), "seconds": 0}


def state(run: Run) -> dict:
    return torch.load(run.path / "checkpoint.pt", weights_only=True)


def assert_close(run: Run, other: Run) -> None:
    """Weights, momentum, losses and scores, to float tolerance."""
    ours, theirs = state(run), state(other)
    for part in {"heads", "backbone"} & ours.keys():
        for key, value in ours[part].items():
            torch.testing.assert_close(theirs[part][key], value, rtol=1e-3, atol=1e-5, msg=key)
    for number, values in ours["optimizer"]["state"].items():
        torch.testing.assert_close(theirs["optimizer"]["state"][number], values, rtol=1e-3, atol=1e-4)
    losses = [[row["loss"] for row in each.metrics()] for each in (run, other)]
    assert [pytest.approx(row, rel=1e-4) for row in losses[0]] == losses[1]
    assert scores(run) == scores(other)


@pytest.mark.slow
def test_linear_on_cached_features_is_bit_for_bit_that_of_one(folder, parent, tmp_path, ranks, evaluate):
    """The batches that features are computed in are the same, and so are the heads."""
    two = shared(ranks, 2, "linear", parent, LINEAR, tmp_path / "two", [*folder, *CACHED])
    _, error, one = evaluate(linear.main, parent, LINEAR, *folder, *CACHED)
    assert scores(two) == scores(one), error
    assert two.name == one.name
    assert (one.result()["train_images"], one.result()["val_images"]) == (40, 16)
    assert all(torch.equal(state(two)["heads"][key], value) for key, value in state(one)["heads"].items())
    assert [row["val_top1"] for row in two.metrics()] == [row["val_top1"] for row in one.metrics()]


@pytest.mark.slow
def test_linear_on_random_crops_by_three(folder, parent, tmp_path, ranks, evaluate):
    """Two processes have no image of an epoch's last batch."""
    three = shared(ranks, 3, "linear", parent, LINEAR, tmp_path / "three", [*folder, *AUGMENTED])
    _, error, one = evaluate(linear.main, parent, LINEAR, *folder, *AUGMENTED)
    assert one.result()["protocol"] == "linear", error
    assert_close(one, three)


@pytest.mark.slow
def test_finetuning_by_two(folder, parent, tmp_path, ranks, evaluate):
    """BatchNorm takes its statistics over both."""
    options = [*folder, *SMALL, "epochs=2", "batch_size=13", "learning_rates=[0.1]"]
    with pytest.raises(AssertionError, match="leaves 1 of 40 training images for the last batch, fewer than the 2"):
        shared(ranks, 2, "linear", parent, FINETUNE, tmp_path / "refused", options)
    options[-2] = "batch_size=12"
    two = shared(ranks, 2, "linear", parent, FINETUNE, tmp_path / "two", options)
    _, error, one = evaluate(linear.main, parent, FINETUNE, *options)
    assert one.result()["protocol"] == "finetuned", error
    assert_close(one, two)


STOPS = """
import os, signal
from eval import linear
from runtime.errors import run_command
step = linear.LinearTraining.train_step
def stop_the_last(self, *batch):
    if (self.state.epoch, self.state.step) == (1, 1) and self.world.rank == self.world.size - 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    step(self, *batch)
linear.LinearTraining.train_step = stop_the_last
run_command(linear.main)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(before, after, folder, parent, tmp_path, ranks, evaluate):
    """A stop of one process is everyone's; the rest of the run is by others, to the same heads."""
    driver = tmp_path / "driver.py"
    driver.write_text(textwrap.dedent(STOPS))
    stopped = [str(parent), "--config", LINEAR, *folder, *AUGMENTED, f"machine.runs={tmp_path / 'stopped'}"]
    for code, _, errors in ranks.ended(ranks(before, driver, *stopped)):
        assert code == 75, errors
    run = only_run(tmp_path / "stopped")
    assert (state(run)["epoch"], state(run)["step"], run.state()) == (1, 2, "interrupted")
    for code, _, errors in ranks.ended(ranks(after, "-m", "eval.linear", *stopped)):
        assert code == 0, errors
    _, _, whole = evaluate(linear.main, parent, LINEAR, *folder, *AUGMENTED)
    assert_close(whole, run)
    assert [attempt["processes"] for attempt in run.document()["attempts"]] == [before, after]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_knn_scores_what_one_scores(count, folder, parent, tmp_path, ranks, evaluate):
    config, options = "eval/configs/knn_scenes.yaml", [*folder, *SMALL, "neighbours=[1,3,8]", "batch_size=7"]
    several = shared(ranks, count, "knn", parent, config, tmp_path / "several", options)
    _, error, one = evaluate(knn.main, parent, config, *options)
    assert scores(several) == scores(one), error


@pytest.mark.slow
def test_dense_knn_scores_what_one_scores(scenes, tiny_scenes, parent, tmp_path, ranks, evaluate):
    """60 images are 9 batches; the memory's quotas are uneven."""
    config, options = (
        "eval/configs/dense_knn_scenes.yaml",
        [*scenes, "memory=1111", "batch_size=7", "machine.threads=1"],
    )
    two = shared(ranks, 2, "dense_knn", parent, config, tmp_path / "two", options)
    _, error, one = evaluate(dense_knn.main, parent, config, *options)
    assert one.result()["memory_positions"] == 1111, error
    assert scores(two) == scores(one)


class Numbers:
    """Images whose batch is their numbers."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None: ...

    def batch(self, indices):
        return torch.tensor(list(indices)), torch.tensor(list(indices))


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 7, 16, 40])
def test_every_image_is_of_one_process(count, processes):
    worlds = [World(rank, rank, processes) for rank in range(processes)]
    shares = [list(range(count))[world.share(count)] for world in worlds]
    assert [number for share in shares for number in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1

    dealt = [list(ImageBatches(Numbers(count), 3).dealt(0, world)) for world in worlds]
    assert len({tuple(done for _, _, done in turns) for turns in dealt}) == 1  # the same turns for all
    rows = {first + k: int(n) for turns in dealt for first, batch, _ in turns if batch for k, n in enumerate(batch[0])}
    assert rows == {number: number for number in range(count)}

    whole = list(ImageBatches(Numbers(count), 3, seed=1).of_epoch(2, 0, 0))
    parts = [ImageBatches(Numbers(count), 3, 1, world).of_epoch(2, 0, 0) for world in worlds]
    for (images, _), *shares in zip(whole, *parts, strict=True):
        assert torch.cat([own for own, _ in shares]).tolist() == images.tolist()


def test_a_process_without_an_image_of_the_last_batch():
    batches = ImageBatches(Numbers(7), 3)
    linear.refuse_idle_processes(batches, World())
    with pytest.raises(UserError, match="batch_size = 3 leaves 1 of 7 training images"):
        linear.refuse_idle_processes(batches, World(size=2))
