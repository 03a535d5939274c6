"""Colour on the device: PIL's operations and the published distribution, and a wrong one is noticed."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import functional as tf
from view_statistics import KINDS, SIZE, SMALL_SCALE, SMALL_SIZE, VIEWS, smallest_p, statistics

from data import batch_colour, colour
from data.batch_colour import mirror_and_colour, plan_batch
from data.config import MEAN, STD, ViewsConfig
from data.images import normalise
from data.views import ViewMaker, ViewPlan, sample_generator

CONFIG = ViewsConfig(
    large_size=SIZE, large_scale=[0.08, 1.0], small_count=1, small_size=SMALL_SIZE, small_scale=list(SMALL_SCALE)
)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


KINDS_OF_LEVELS = [torch.float32, torch.uint8]  # on a CPU, on a GPU


def as_batch(photos: list[np.ndarray], kind: torch.dtype = torch.float32) -> torch.Tensor:
    """(n, 3, H, W) levels."""
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).to(kind).contiguous()


def mean_difference(ours: torch.Tensor, pil: list[Image.Image]) -> float:
    expected = np.stack([np.asarray(image.convert("RGB"), np.float32) for image in pil])
    return float((ours.permute(0, 2, 3, 1) - torch.from_numpy(expected)).abs().mean())


@pytest.mark.parametrize("kind", KINDS_OF_LEVELS)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_equals_pil(photos: list[np.ndarray], name: str, kind: torch.dtype) -> None:
    """Every image by a factor of its own; PIL's blend is the same float arithmetic, its HSV in another order."""
    number = ("brightness", "contrast", "saturation", "hue").index(name)
    amounts = np.linspace(-0.1, 0.1, 8) if name == "hue" else np.linspace(0.613, 1.391, 8)
    factors = torch.tensor([int(a * 255) if name == "hue" else a for a in amounts]).float().view(-1, 1, 1, 1)
    adjust = getattr(tf, f"adjust_{name}")
    expected = [adjust(Image.fromarray(photo), float(a)) for photo, a in zip(photos, amounts, strict=True)]
    ours = batch_colour.JITTER[number](as_batch(photos, kind), factors)
    assert ours.dtype == kind
    assert mean_difference(ours, expected) < (0.01 if name == "hue" else 0.0001)


@pytest.mark.parametrize("kind", KINDS_OF_LEVELS)
def test_blur_equals_pil(photos: list[np.ndarray], kind: torch.dtype) -> None:
    sigmas = [0.113, 0.307, 0.517, 0.997, 1.31, 1.42, 1.777, 1.983]  # of filters of three and of five taps
    plans = [ViewPlan((0, 0, 1, 1), False, None, False, sigma, False) for sigma in sigmas]
    ours = batch_colour.batch_blur(as_batch(photos, kind), plan_batch(plans).kernels)
    assert ours.dtype == kind
    pil = zip(photos, sigmas, strict=True)
    assert mean_difference(ours, [Image.fromarray(p).filter(ImageFilter.GaussianBlur(s)) for p, s in pil]) < 0.001


def test_luma_equals_pil() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    assert mean_difference(batch_colour.batch_luma(as_batch([colours])), [Image.fromarray(colours).convert("L")]) == 0


def plan_of(**choices: object) -> ViewPlan:
    nothing = {"mirrored": False, "jitter": None, "gray": False, "blur_sigma": 0.0, "solarized": False}
    return ViewPlan(box=(0, 0, 120, 160), **(nothing | choices))


@pytest.mark.parametrize("compiled", [False, True])
def test_each_row_gets_its_own_plan(photos: list[np.ndarray], compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row against the operations of the CPU, which are tested against PIL."""
    monkeypatch.setattr(batch_colour, "compiled_version", lambda operation: operation)  # compiling is another test
    square = [photo[:, :120] for photo in photos]
    amounts = [colour.Jitter(1.2, 0.8, 1.1, 0.0, order) for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 0, 3, 2))]
    plans = [plan_of(), plan_of(mirrored=True), *(plan_of(jitter=j) for j in amounts)]
    plans += [plan_of(gray=True), plan_of(blur_sigma=1.5, solarized=True), plan_of(mirrored=True, gray=True)]
    ours = mirror_and_colour(torch.from_numpy(np.stack(square)), plan_batch(plans), CONFIG, compiled)
    maker = ViewMaker(CONFIG, lambda side: (1, 1))
    for row, (photo, plan) in enumerate(zip(square, plans, strict=True)):
        expected = normalise(maker.colour(photo, plan))
        tolerance = 0.004 if plan.jitter is None else 0.02  # of 1 / (58 levels); OpenCV's HSV differs by about a level
        assert (ours[row] - expected).abs().mean() < tolerance, row
        others = [(ours[row] - ours[n]).abs().mean() for n in range(8) if n != row]
        assert row in (0, 1) or min(others) > 0.02


def test_bytes_are_the_levels_of_floats(photos: list[np.ndarray]) -> None:
    """A GPU keeps levels in bytes, a CPU in floats: bit for bit the same, by the compiled blur's formula too."""
    factors = torch.linspace(0.55, 1.45, len(photos)).view(-1, 1, 1, 1)
    operations = [
        lambda x, n=n: batch_colour.JITTER[n](x, factors if n < 3 else (20 * factors).floor()) for n in range(4)
    ]
    operations += [batch_colour.batch_gray, batch_colour.mirror, lambda x: batch_colour.batch_solarize(x, 128)]
    for operation in operations:
        floats, levels = (operation(as_batch(photos, kind)) for kind in KINDS_OF_LEVELS)
        assert levels.dtype == torch.uint8
        assert torch.equal(floats, levels.float())


@pytest.mark.slow
def test_compiled_operations_are_a_few_kernels_and_give_the_same(photos: list[np.ndarray]) -> None:
    from torch._inductor import metrics

    count = len(photos)
    kernels = plan_batch([plan_of(blur_sigma=sigma) for sigma in np.linspace(0, 2, count)]).kernels
    x, some = as_batch(photos, torch.uint8), (torch.arange(count) % 2).view(-1, 1, 1, 1)
    factors, numbers = torch.linspace(0.55, 1.45, count).view(-1, 1, 1, 1), (torch.arange(count) % 5).view(-1, 1, 1, 1)
    cases = [(batch_colour.mirror_rows, (some,)), (batch_colour.gray_rows, (some,))]
    cases += [(batch_colour.jitter_rows, (numbers, factors)), (batch_colour.shifted_sum, (kernels, 3))]
    cases += [(batch_colour.solarize_and_standardise, (some, 128, torch.tensor(MEAN), torch.tensor(STD)))]
    for operation, arguments in cases:
        metrics.reset()
        levels = x.permute(0, 2, 3, 1).contiguous() if operation is batch_colour.mirror_rows else x
        found = batch_colour.compiled_version(operation)(levels, *arguments)
        # A contrast needs the mean of each image first.
        assert metrics.generated_kernel_count <= (4 if operation is batch_colour.jitter_rows else 1), operation
        assert torch.equal(found, operation(levels, *arguments)), operation


def test_blur_by_sums_is_that_by_convolution(photos: list[np.ndarray]) -> None:
    """And a row without blur stays as it is."""
    kernels = plan_batch([plan_of(blur_sigma=sigma) for sigma in np.linspace(0, 2, len(photos))]).kernels
    x = as_batch(photos, torch.uint8)
    by_sums = x
    for axis in (3, 3, 3, 2, 2, 2):
        by_sums = batch_colour.shifted_sum(by_sums, kernels, axis)
    assert torch.equal(by_sums[0], x[0])
    assert (by_sums != batch_colour.batch_blur(x, kernels)).float().mean() < 0.001


def test_operations_are_compiled_a_few_times_whatever_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight versions torch would leave an operation as it is, and say so only in a log."""
    versions = Counter[str]()

    def compiled(operation: batch_colour.Operation) -> batch_colour.Operation:
        def trace(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> batch_colour.Operation:
            versions[operation.__name__] += 1
            return graph.forward

        return torch.compile(operation, dynamic=False, backend=trace)

    monkeypatch.setattr(batch_colour, "compiled_version", cache(compiled))
    monkeypatch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)
    config = CONFIG.replace(large_size=40, small_size=24)
    maker = ViewMaker(config, lambda side: (1, 1))
    for step in range(8):  # groups of all sizes
        drawn = [maker.draw(120, 160, sample_generator(step, 0, index)) for index in range(12)]
        for side, plans in zip(maker.sides, zip(*drawn, strict=True), strict=True):
            levels = torch.zeros(12, side, side, 3, dtype=torch.uint8)
            assert mirror_and_colour(levels, plan_batch(plans), config, True).shape == (12, 3, side, side)
    assert max(versions.values()) <= 6, versions


@pytest.mark.gpu
def test_a_gpu_s_compiled_colours_are_the_cpu_s(photos: list[np.ndarray]) -> None:
    """And the host never waits for them, once they are compiled."""
    maker = ViewMaker(CONFIG, lambda side: (1, 1))
    plans = [maker.draw(120, 160, sample_generator(7, 0, index))[0] for index in range(32)]
    crops = [maker.crop(photos[index % len(photos)], plan, SIZE) for index, plan in enumerate(plans)]
    levels, plan = torch.from_numpy(np.stack(crops)), plan_batch(plans)
    expected = mirror_and_colour(levels, plan, CONFIG)
    there, plan_there = levels.cuda(), plan.map(lambda tensor: tensor.cuda())
    for compiled in (False, True):
        mirror_and_colour(there, plan_there, CONFIG, compiled)
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = mirror_and_colour(there, plan_there, CONFIG, compiled)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert (found.cpu() - expected).abs().mean() < 1e-3


def device_statistics(photos: list[np.ndarray], kind: str, device: str) -> np.ndarray:
    maker = ViewMaker(CONFIG, lambda side: (1, 1))
    view, crops, plans = KINDS[kind], [], []
    for index in range(VIEWS):
        image = photos[index % len(photos)]
        plans.append(maker.draw(*image.shape[:2], sample_generator(7, 0, index))[view])
        crops.append(maker.crop(image, plans[-1], maker.sides[view]))
    levels = torch.from_numpy(np.stack(crops)).to(device)
    images = mirror_and_colour(levels, plan_batch(plans).map(lambda tensor: tensor.to(device)), CONFIG).cpu()
    pixels = (images.permute(0, 2, 3, 1) * torch.tensor(STD) + torch.tensor(MEAN)).mul(255).round().numpy()
    return np.array([statistics(view) for view in pixels])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_same_distribution_as_the_published_recipe(published, photos: list[np.ndarray], kind: str, device: str) -> None:
    assert smallest_p(device_statistics(photos, kind, device), published[kind]) > 0.01


def one_gaussian(x: torch.Tensor, kernels: torch.Tensor) -> torch.Tensor:
    """The three boxes along each axis without roundings between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "round_", lambda tensor: tensor)
        return BLUR(x, kernels)


BLUR = batch_colour.batch_blur


def test_without_the_rounding_it_is_another_distribution(
    published, photos: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_colour, "batch_blur", one_gaussian)
    assert smallest_p(device_statistics(photos, "even", "cpu"), published["even"]) < 0.001
