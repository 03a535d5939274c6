"""Measure the images per second of the input pipeline on this machine, and its bottleneck.

    python -m pretrain.bench CONFIG [--workers 0,1,2,4] [--seconds 5] [key=value ...]

First the parts of the work on one image, in one thread; then the loader end to end with each number of workers, which
includes the work of the training process itself: normalising, the copies to a GPU and, with `views.execution=device`,
mirroring and colour.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from data.cache import cache_folder, open_store
from data.catalog import Dataset, open_dataset
from data.images import ImageList, Pixels, decode, shrink
from data.loader import PretrainLoader
from data.views import ViewMaker, sample_generator
from pretrain.show import load_config, view_maker
from pretrain.training import make_loader
from runtime.config import parse_command, require
from runtime.console import make_parser
from runtime.device import available_cores, choose_device
from runtime.errors import run_command
from runtime.world import World

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

T = TypeVar("T")
Parts = dict[str, float]  # part of the work -> milliseconds per image

ADVICE = {
    "read the file": "a faster disk, or more workers",
    "decode": "more workers, or a raw cache (python -m data.cache)",
    "reduce": "a raw cache (python -m data.cache)",
    "mirror and colour": "more workers, or views.execution=device where there is a GPU (another run's identity)",
}


class Clock:
    """Sums the seconds of named parts over images."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.images = 0

    def time(self, part: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
        return result

    def parts(self) -> Parts:
        return {part: 1000 * seconds / self.images for part, seconds in self.seconds.items()}


def worker_parts(config: PretrainConfig, dataset: Dataset, maker: ViewMaker, seconds: float) -> Parts:
    """Time the parts of a worker's work on an image. A dataset held in memory is decoded only once."""
    short_side = config.views.short_side
    store = open_store(dataset, short_side, config.data.on_bad_image)
    if store.in_memory:
        print(f"its {len(store)} images are decoded once and held in memory", flush=True)
    decoded = store.in_memory or cache_folder(dataset, short_side).is_dir()
    clock, end = Clock(), time.perf_counter() + seconds
    while clock.images == 0 or time.perf_counter() < end:
        index = clock.images * 7919 % len(store)  # spread over the classes
        image = store.read(index)[1] if decoded else _decode(clock, store.images, index, short_side)
        _make_views(clock, maker, image)
        clock.images += 1
    return clock.parts()


def _decode(clock: Clock, images: ImageList, number: int, short_side: int) -> Pixels:
    content = clock.time("read the file", lambda: images.content(number))
    image = clock.time("decode", lambda: decode(content, images.paths[number]))
    return clock.time("reduce", lambda: shrink(image, short_side)) if short_side else image


def _make_views(clock: Clock, maker: ViewMaker, image: Pixels) -> None:
    height, width = image.shape[:2]
    plans = clock.time("choose", lambda: maker.draw(height, width, sample_generator(0, 0, clock.images)))
    views = list(zip(plans, maker.sides, strict=True))
    crops = clock.time("cut and resize", lambda: [maker.crop(image, plan, side) for plan, side in views])
    if maker.config.execution == "cpu":
        pairs = zip(crops, plans, strict=True)
        clock.time("mirror and colour", lambda: [maker.colour(crop, plan) for crop, plan in pairs])


def training_process_part(loader: PretrainLoader, batch_size: int, device: torch.device, repeats: int = 5) -> float:
    """Return the milliseconds per image that the training process spends on a worker's batch."""
    times = []
    for _ in range(repeats):
        batch = loader.make(0)
        started = time.perf_counter()
        loader.finish(batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times)) / batch_size


def images_per_second(loader: PretrainLoader, batch_size: int, workers: int, seconds: float) -> float:
    """Measure end to end, without the first batches, which the workers made while they started."""
    batches = loader.batches(0, 1 << 31)
    for _ in range(2 * workers + 1):
        next(batches)
    started, made = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        next(batches)
        made += batch_size
    elapsed = time.perf_counter() - started
    batches.close()
    return made / elapsed


def limit(parts: Parts, training: float, rates: dict[int, float], cores: int) -> str:
    """Name the bottleneck of the best of the rates (workers -> images/s), in a sentence."""
    workers = max(rates, key=lambda number: rates[number])
    total = sum(parts.values())
    if training > total / max(1, workers):
        rate = f"at most {1000 / training:.0f} images/s"
        return f"the training process: its own part is {training:.2f} ms an image, {rate}"
    slowest = max(parts, key=lambda part: parts[part])
    advice = ADVICE.get(slowest, "more workers")
    if workers >= cores:
        advice = f"all {cores} cores are in use; " + advice.replace("more workers, or ", "")
    return f"the workers, mostly to {slowest} ({parts[slowest]:.2f} of {total:.2f} ms an image): {advice}"


def report(parts: Parts, training: float, rates: dict[int, float], kind: str, cores: int) -> str:
    lines = ["ms an image, one thread:"]
    lines += [f"  {part:<22}{value:8.3f}" for part, value in parts.items()]
    lines += [f"  {'sum, in a worker':<22}{sum(parts.values()):8.3f}"]
    lines += [f"  {'in the training process':<22}{training:7.3f}", f"images/s end to end, {kind}:"]
    lines += [f"  {workers:3d} workers{rate:12.0f}" for workers, rate in rates.items()]
    return "\n".join([*lines, f"limit: {limit(parts, training, rates, cores)}"])


def _numbers(text: str | None) -> list[int]:
    numbers = text.split(",") if text else []
    require(all(number.strip().isdigit() for number in numbers), "--workers", text, "whole numbers, as 0,1,2")
    return [int(number) for number in numbers]


def main(argv: Sequence[str]) -> None:
    parser = make_parser("pretrain.bench", __doc__)
    parser.add_argument("config", help="a pretraining config, as pretrain/configs/quickstart.yaml")
    parser.add_argument("--workers", help="numbers of workers, as 0,1,2; default: 0, 1, 2, 4, ... up to the cores")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value, as views.execution=device")
    arguments = parse_command(parser, argv)
    cores = available_cores()
    numbers = _numbers(arguments.workers) or [0, *(n for n in (1 << power for power in range(10)) if n <= cores)]
    config = load_config(arguments.config, arguments.overrides)
    device = choose_device(config.machine)
    maker, dataset, batch_size = view_maker(config), open_dataset(config.data), config.train.batch_size
    sizes = " + ".join(f"{maker.sides.count(side)} x {side}" for side in sorted(set(maker.sides), reverse=True))
    print(f"{dataset.name} at {dataset.root}, {sizes}, execution {config.views.execution}, device {device}", flush=True)
    parts = worker_parts(config, dataset, maker, arguments.seconds)
    grid_size = dict(zip(maker.sides, maker.grids, strict=True)).__getitem__
    training = training_process_part(make_loader(config, dataset, grid_size, 0, device, World()), batch_size, device)
    rates = {}
    for workers in numbers:
        loader = make_loader(config, dataset, grid_size, workers, device, World())
        rates[workers] = images_per_second(loader, batch_size, workers, arguments.seconds)
    print(report(parts, training, rates, config.machine.worker_kind, cores))


if __name__ == "__main__":
    run_command(main)
