"""benchmarks/data.py: both sides make the same thing, and its ratios are ratios."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import data as benchmark
from benchmarks import data_cases, data_cuda
from benchmarks.published_recipe import location_grid as plain_grid
from data.catalog import open_dataset
from data.views import location_grid
from runtime.device import computes_bfloat16
from runtime.errors import UserError


def test_images_are_as_the_goals_say() -> None:
    with data_cases.images(2) as data, Image.open(open_dataset(data).images("train").paths[1]) as image:
        assert image.size == (500, 375)
        assert image.format == "JPEG"
        assert {component[1:3] for component in image.layer} == {(1, 1)}  # no chroma subsampling
        expected = [max(1, (table * 8 + 50) // 100) for table in (16, 11, 10, 16)]  # quality 96 of Annex K
        assert image.quantization[0][:1] == expected[:1]


def test_contenders_make_the_same_batches() -> None:
    views = data_cases.VIEWS["2 x 224 + 6 x 96"].replace(small_count=1)
    random.seed(0)
    torch.manual_seed(0)
    with data_cases.images(4) as data:
        contenders = data_cases.one_thread(data, views, 4)  # all of them: two images can be lighter than two others
        images, grids = contenders["published"]()
        ours = contenders["cpu"]()
        assert [tuple(image.shape) for image in ours.images] == [tuple(image.shape) for image in images]
        assert [tuple(grid.shape) for grid in ours.locations] == [tuple(grid.shape) for grid in grids]
        assert abs(float(ours.images[0].mean() - images[0].mean())) < 1.0
        raw = contenders["worker of device"]()
        from_cache = data_cases.cached(data, views, 4)["worker of device, cache"]()
        for one, other in zip(raw.views, from_cache.views, strict=True):
            assert torch.equal(one, other)
        evaluations, difference = data_cases.evaluations(data, 2)
        assert difference < 0.01  # levels of 255
        torch.testing.assert_close(evaluations["this"]()[0], evaluations["torchvision"](), rtol=0, atol=1.1 / 57)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_plain_grid_is_the_grid(mirrored: bool) -> None:
    box = (13, 40, 101, 77)
    expected = location_grid(torch.tensor([box]), torch.tensor([mirrored]), 7, 7)[0]
    torch.testing.assert_close(plain_grid(box, mirrored, 7), expected)


def test_ratios_and_goals(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"published": [0.8, 1.6, 0.8], "cpu": [0.1, 0.1, 0.2]}
    timings = benchmark.Timings.from_seconds(times, batch=10)
    assert timings.milliseconds == pytest.approx({"published": 80, "cpu": 10})
    assert timings.ratios["cpu"][1] == pytest.approx(8)  # the median of 8, 16, 4
    assert "| 4.5: reached |" in benchmark.table("2 x 224", timings)[1]
    slow = benchmark.Timings.from_seconds({"published": [0.3], "cpu": [0.1]}, batch=10)
    assert "| 4.5: missed |" in benchmark.table("2 x 224", slow)[1]
    now = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now[0], thread_time=lambda: now[0])
    monkeypatch.setattr(benchmark, "time", clock)

    def work() -> None:
        now[0] += 0.01

    def batches() -> Iterator[None]:
        for _ in range(6):
            yield work()

    assert benchmark.with_workers({"a": batches}, 1, 6, 1, ahead=2).milliseconds["a"] == pytest.approx(10)
    assert benchmark.in_turns({"a": work}, 3, batch=2).milliseconds["a"] == pytest.approx(5)


@pytest.mark.slow
def test_it_writes_its_pages(tmp_path) -> None:
    """With few and small rounds: that it works, not what it finds."""
    benchmark.main(["--rounds", "1", "--batch", "2", "--batches", "6", "--out", str(tmp_path / "data.md")])
    page = (tmp_path / "data.md").read_text()
    for (case, contender), goal in benchmark.GOALS.items():
        assert f"| {case} | {contender} |" in page
        assert f"| {goal:g}: " in page
    page = data_cuda.measure(1, batch=4, device="cpu", network="resnet10t", workers=1)
    assert "% (goal: <= 5 %)" in page
    precision = "bfloat16 autocast" if computes_bfloat16(torch.device("cpu")) else "float32"
    assert f"4 images a step, 2 x 224, resnet10t, {precision}; medians." in page


def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        benchmark.main(["--device", "cuda"])
