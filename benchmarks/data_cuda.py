"""Measure the device's part of the input pipeline beside a training step (`benchmarks.data --device cuda`).

A step is ResNet-50, two views of 224, bf16 autocast, channels_last, forward and backward of the pooled features and
SGD. Its loss is a stand-in; benchmarks/criterion.py measures the criterion.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import get_args

import numpy as np
import torch

from benchmarks import conditions, data_cases
from data import cache
from data.batch_colour import mirror_and_colour
from data.catalog import open_dataset
from data.config import ViewsConfig, WorkerKind
from data.loader import PretrainLoader, ViewBatch, WorkerBatch
from runtime.device import available_cores, computes_bfloat16
from runtime.errors import UserError

WORKERS = 8  # the goal: this many cores feed one GPU


def milliseconds(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Return the median time of `work`, with the device's queue empty before and after."""
    times = []
    for _ in range(repeats + 3):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times[3:]))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training_step(device: torch.device, network: str = "resnet50") -> Callable[[ViewBatch], None]:
    """Return a stand-in for a step of pretraining, in bfloat16 where the device computes it."""
    import timm

    model = timm.create_model(network, num_classes=0).to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step(batch: ViewBatch) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=computes_bfloat16(device)):
            pooled = [model(view) for view in batch.images[:2]]
        loss = (pooled[0].float() - pooled[1].float()).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if not torch.isfinite(loss):  # as pretraining does: it waits for the device once a step
            raise UserError("the stand-in loss is not finite")

    return step


def data_wait(loader: PretrainLoader, step: Callable[[ViewBatch], None], batches: int, warm: int = 3) -> float:
    """Return the percentage of time that the loop waits for batches, after the first `warm` of them."""
    iterator: Iterator[ViewBatch] = loader.batches(0, batches + warm)
    for _ in range(warm):
        step(next(iterator))
    started, before = time.perf_counter(), loader.wait_seconds
    for batch in iterator:
        step(batch)
    return 100 * (loader.wait_seconds - before) / (time.perf_counter() - started)


def measure(batches: int, batch: int = 256, device: str = "cuda", network: str = "resnet50", workers: int = 0) -> str:
    target = torch.device(device)
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device here; leave --device out to measure on the CPU")
    workers = workers or min(WORKERS, available_cores())
    views = data_cases.VIEWS["2 x 224"].replace(execution="device", short_side=data_cases.CACHE_SIDE)
    rows = []
    with data_cases.images(batch) as data:
        cache.build(open_dataset(data), data_cases.CACHE_SIDE, workers=workers, skip_bad=False)
        loader = data_cases.loader(data, views, batch, device=device)
        from_worker = loader.make(0)
        step = training_step(target, network)
        ready = loader.finish(from_worker)
        finishing = milliseconds(lambda: loader.finish(from_worker), target)
        training = milliseconds(lambda: step(ready), target)
        on_device = milliseconds(_colour_alone(from_worker, target), target)
        rows.append(f"- training step: {training:.1f} ms")
        rows.append(
            f"- mirror, colour, normalise: {on_device:.1f} ms, {100 * on_device / training:.1f} % (goal: <= 5 %)"
        )
        rows.append(f"- the same with pinning and copying the uint8 views: {finishing:.1f} ms")
        for kind in get_args(WorkerKind):
            fed = data_cases.loader(data, views, batch, workers, kind, device)
            waited = data_wait(fed, step, batches)
            rows.append(f"- data wait with {workers} {kind} and a warm raw cache: {waited:.1f} % (goal: < 2 %)")
    return _document(rows, batch, network, precision_of(target))


def _colour_alone(batch: WorkerBatch, device: torch.device) -> Callable[[], object]:
    """Return the device's work on views and plans that are there already."""
    plans = [plan.map(lambda tensor: tensor.to(device)) for plan in batch.plans or []]
    levels = [view.to(device) for view in batch.views]
    return lambda: [mirror_and_colour(level, plan, ViewsConfig()) for level, plan in zip(levels, plans, strict=True)]


def precision_of(device: torch.device) -> str:
    return "bfloat16 autocast" if computes_bfloat16(device) else "float32"


def _document(rows: list[str], batch: int, network: str, precision: str) -> str:
    return "\n".join(
        [
            "# The input pipeline beside a training step",
            "",
            f"{batch} images a step, 2 x 224, {network}, {precision}; medians.",
            "",
            *rows,
            conditions("python -m benchmarks.data --device cuda"),
        ]
    )
