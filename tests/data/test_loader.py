"""Batches are the same for any workers and any first step; bad input stops with a clear message."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.catalog import open_dataset
from data.config import DataConfig, ViewsConfig
from data.images import read_image, resize
from data.loader import PretrainLoader, ViewBatch
from data.views import ViewMaker, sample_generator
from pretrain.config import PretrainConfig
from runtime import config as configs
from runtime.errors import UserError

VIEWS = ViewsConfig(large_size=32, small_count=1, small_size=16)


def grid_size(side: int) -> tuple[int, int]:
    return side // 4, side // 4


def make(
    data: DataConfig, batch_size: int = 8, seed: int = 3, workers: int = 0, views: ViewsConfig = VIEWS, **others
) -> PretrainLoader:
    dataset, bad = open_dataset(data), data.on_bad_image
    return PretrainLoader(dataset, views, grid_size, batch_size, seed, workers, on_bad_image=bad, **others)


def assert_same(a: list[ViewBatch], b: list[ViewBatch]) -> None:
    assert [(batch.step, batch.epoch) for batch in a] == [(batch.step, batch.epoch) for batch in b]
    for one, other in zip(a, b, strict=True):
        assert torch.equal(one.labels, other.labels)
        for x, y in zip(one.images + one.locations, other.images + other.locations, strict=True):
            assert torch.equal(x, y)


def test_shapes_and_epochs(small_scenes: DataConfig) -> None:
    loader = make(small_scenes)
    assert loader.steps_per_epoch == 7  # 60 // 8: the incomplete batch is left out
    batches = list(loader.batches(0, 16))
    assert [batch.step for batch in batches] == list(range(16))
    assert [batch.epoch for batch in batches] == [0] * 7 + [1] * 7 + [2] * 2
    batch = batches[0]
    assert [tuple(image.shape) for image in batch.images] == [(8, 3, 32, 32)] * 2 + [(8, 3, 16, 16)]
    assert [tuple(location.shape) for location in batch.locations] == [(8, 8, 8, 2)] * 2 + [(8, 4, 4, 2)]
    assert all(tensor.dtype == torch.float32 for tensor in batch.images + batch.locations)
    assert batch.labels.dtype == torch.int64
    assert not torch.equal(batches[0].images[0], batches[7].images[0])  # another epoch, other views


def test_an_epoch_shows_every_image_once(image_folder: Path) -> None:
    loader = make(DataConfig(name="imagefolder", root=str(image_folder)), batch_size=6)
    labels = torch.cat([batch.labels for batch in loader.batches(0, loader.steps_per_epoch)])
    assert torch.bincount(labels).tolist() == [12, 12, 12, 12]


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("execution", ["cpu", "device"])
def test_the_shares_of_all_processes_are_the_batch(small_scenes: DataConfig, processes: int, execution: str) -> None:
    views = VIEWS.replace(execution=execution)
    whole = list(make(small_scenes, batch_size=6, views=views).batches(8, 12))
    loaders = [make(small_scenes, batch_size=6, views=views, share=(rank, processes)) for rank in range(processes)]
    assert {loader.steps_per_epoch for loader in loaders} == {10}
    for batch, *shares in zip(whole, *(loader.batches(8, 12) for loader in loaders), strict=True):
        assert {len(share.labels) for share in shares} == {6 // processes}
        joined = [torch.cat(same) for same in zip(*(share.tensors() for share in shares), strict=True)]
        for x, y in zip(batch.tensors(), joined, strict=True):
            torch.testing.assert_close(y, x, rtol=1e-6, atol=1e-6)  # colours on the device: sums in another order


def test_a_batch_that_cannot_be_shared_equally_is_refused(small_scenes: DataConfig) -> None:
    with pytest.raises(UserError, match="a multiple of the number of processes, 3"):
        make(small_scenes, share=(0, 3))


@pytest.mark.parametrize("execution", ["cpu", "device"])
@pytest.mark.parametrize(("workers", "kind"), [(1, "processes"), (2, "processes"), (1, "threads"), (3, "threads")])
def test_any_workers_give_the_same_batches(small_scenes: DataConfig, execution: str, workers: int, kind: str) -> None:
    views = VIEWS.replace(execution=execution)
    inline = list(make(small_scenes, views=views).batches(5, 12))
    assert_same(inline, list(make(small_scenes, views=views, workers=workers, worker_kind=kind).batches(5, 12)))


def test_both_executions_make_the_same_choices(small_scenes: DataConfig) -> None:
    """On the device: the same views, boxes and colours, up to the rounding of hue and blur."""
    on_cpu, on_device = (
        list(make(small_scenes, views=VIEWS.replace(execution=execution)).batches(0, 7))
        for execution in ("cpu", "device")
    )
    for one, other in zip(on_cpu, on_device, strict=True):
        assert torch.equal(one.labels, other.labels)
        for grid, other_grid in zip(one.locations, other.locations, strict=True):
            assert torch.equal(grid, other_grid)
        for image, other_image in zip(one.images, other.images, strict=True):
            assert other_image.is_contiguous(memory_format=torch.channels_last)
            assert (image - other_image).abs().mean() < 0.02  # in deviations of about 58 levels
            assert (image - other_image.roll(1, 0)).abs().mean() > 0.2


def test_larger_images_are_reduced_first(folder_of_60: DataConfig) -> None:
    """As if the files had that size; the locations too are in pixels of the reduced image."""
    data = folder_of_60.replace(root=str(Path(folder_of_60.root).parent / "small"))
    for path in Path(folder_of_60.root).rglob("*.png"):
        target = Path(data.root) / path.relative_to(folder_of_60.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(resize(read_image(path), 20, 20)).save(target)
    reduced = make(folder_of_60, views=VIEWS.replace(short_side=20), memory_bytes=0)
    assert_same(list(reduced.batches(0, 3)), list(make(data).batches(0, 3)))


def test_the_waiting_time_is_counted(small_scenes: DataConfig) -> None:
    loader = make(small_scenes, batch_size=30)
    batches = loader.batches(0, 2)
    waited = 0.0
    for _ in range(2):
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
        time.sleep(0.3)  # the caller's own time, which does not count
    assert 0 < loader.wait_seconds <= waited


def test_a_caller_that_stops_early_leaves_no_threads(small_scenes: DataConfig) -> None:
    batches = make(small_scenes, workers=2, worker_kind="threads").batches(0, 100)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("views")]


def test_unknown_kinds_of_workers_are_refused() -> None:
    with pytest.raises(UserError, match="processes or threads"):
        configs.load(PretrainConfig, None, ["machine.worker_kind=fibres"])


def test_a_run_that_begins_later_gets_the_same_batches(small_scenes: DataConfig) -> None:
    whole = list(make(small_scenes).batches(0, 15))
    assert_same(list(make(small_scenes).batches(9, 15)), whole[9:])


def test_any_batch_split_gives_the_same_samples(small_scenes: DataConfig) -> None:
    by_ten = list(make(small_scenes, batch_size=10).batches(0, 12))
    by_thirty = list(make(small_scenes, batch_size=30).batches(0, 4))
    for view in range(3):
        together = [torch.cat([batch.images[view] for batch in batches]) for batches in (by_ten, by_thirty)]
        assert torch.equal(*together)


def test_seeds_differ(small_scenes: DataConfig) -> None:
    one, other = (next(make(small_scenes, seed=seed).batches(0, 1)) for seed in (0, 1))
    assert not torch.equal(one.images[0], other.images[0])


def test_batches_hold_what_the_view_maker_makes(small_scenes: DataConfig) -> None:
    """Each row of a batch is the single-image view of the sample with the same random stream."""
    batch = next(make(small_scenes, batch_size=60).batches(0, 1))
    images = open_dataset(small_scenes).images("train")
    maker = ViewMaker(VIEWS, grid_size)
    for number in (0, 17, 59):
        views, locations = maker(read_image(images.paths[number]), sample_generator(3, 0, number))
        rows = [row for row in range(60) if torch.allclose(batch.images[0][row], views[0], atol=1e-6)]
        assert len(rows) == 1
        assert batch.labels[rows[0]] == images.labels[number]
        for view in range(3):
            assert torch.allclose(batch.images[view][rows[0]], views[view], atol=1e-6)
            assert torch.equal(batch.locations[view][rows[0]], locations[view])


def test_nothing_to_do_is_no_batches(small_scenes: DataConfig) -> None:
    assert list(make(small_scenes, workers=2).batches(4, 4)) == []


def test_a_batch_larger_than_the_dataset_is_refused(small_scenes: DataConfig) -> None:
    with pytest.raises(UserError, match=r"60 training images.*at most 60"):
        make(small_scenes, batch_size=61)
    with pytest.raises(UserError, match="batch size = 1"):
        make(small_scenes, batch_size=1)


def damage_one(data: DataConfig) -> Path:
    victim = sorted(Path(data.root).glob("train/4/*.png"))[0]
    victim.write_bytes(b"not an image")
    return victim


def test_an_unreadable_image_stops_before_training(folder_of_60: DataConfig) -> None:
    victim = damage_one(folder_of_60)
    with pytest.raises(UserError, match=victim.name):
        make(folder_of_60)


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_large_dataset_it_stops_when_its_turn_comes(folder_of_60: DataConfig, workers: int) -> None:
    victim = damage_one(folder_of_60)
    loader = make(folder_of_60, workers=workers, memory_bytes=0)
    with pytest.raises(UserError, match=victim.name) as caught:
        list(loader.batches(0, 2 * loader.steps_per_epoch))
    assert "Traceback" not in str(caught.value)


def test_skipped_images_are_counted(folder_of_60: DataConfig) -> None:
    damage_one(folder_of_60)
    skipping = folder_of_60.replace(on_bad_image="skip")
    loader = make(skipping, batch_size=59)
    assert len(loader.skipped) == 1
    assert len(next(loader.batches(0, 1)).labels) == 59
    with pytest.raises(UserError, match="59 training images"):
        make(skipping, batch_size=60)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_images_of_a_large_dataset_are_counted(folder_of_60: DataConfig, workers: int) -> None:
    damage_one(folder_of_60)
    loader = make(folder_of_60.replace(on_bad_image="skip"), batch_size=10, workers=workers, memory_bytes=0)
    assert not loader.skipped
    assert len(list(loader.batches(0, 6))) == 6
    assert len(loader.skipped) == 1


@pytest.mark.parametrize("execution", ["cpu", "device"])
def test_views_are_normalised_by_their_config(small_scenes: DataConfig, execution: str) -> None:
    """The same pixels: another deviation of red scales red alone, another mean shifts green alone."""
    default = VIEWS.replace(execution=execution)
    published = default.replace(std=[0.228, 0.224, 0.225], mean=[0.485, 0.5, 0.406])
    batches = [next(make(small_scenes, views=views).batches(0, 1)).images for views in (default, published)]
    for one, other in zip(*batches, strict=True):
        torch.testing.assert_close(other[:, 0], one[:, 0] * (0.229 / 0.228), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other[:, 1], one[:, 1] - (0.5 - 0.456) / 0.224, rtol=1e-4, atol=1e-5)
        assert torch.equal(other[:, 2], one[:, 2])
