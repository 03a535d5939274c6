"""What `make check-gpu` checks of the method and the parts of a step, in this process: numbers, waits, milliseconds."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.criterion_cases import CONTENDERS, MULTI_CROP, TWO, Case, criterion_work
from benchmarks.data_cuda import milliseconds
from data.batch_colour import mirror_and_colour, plan_batch
from data.config import ViewsConfig
from data.views import ViewMaker, sample_generator
from pretrain.checkpoint import random_state
from pretrain.diagnostics import feature_diagnostics
from runtime import distributed
from vicregl.criterion import VICRegLCriterion
from vicregl.sync_norm import synchronise

Figures = dict[str, Any]  # name with its unit -> number or text

# Of the criterion: options, images, dimensions of an embedding and channels of a map, sides of the views' maps.
SIDES = (7, 7, 3)
OPTIONS: dict[str, tuple[dict[str, Any], tuple[int, int, int], tuple[int, ...]]] = {
    "paper": ({}, (12, 40, 24), SIDES),
    "reference": ({"profile": "reference"}, (12, 40, 24), SIDES),
    "threshold": ({"select": "threshold", "feature_threshold": 1.4}, (12, 40, 24), SIDES),
    "maps": ({"statistics": "maps"}, (12, 40, 24), SIDES),
    "alpha 0": ({"alpha": 0.0}, (12, 40, 24), SIDES),
    "alpha 1": ({"alpha": 1.0}, (12, 40, 24), SIDES),
    "2 + 6 views": ({}, (12, 40, 24), MULTI_CROP),
    "more images than channels": ({}, (48, 40, 16), SIDES),
}


@dataclass(frozen=True)
class Finding:
    name: str
    passed: bool
    figures: Figures = field(default_factory=dict)

    def row(self) -> str:
        figures = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items())
        return f"| {'PASS' if self.passed else 'FAIL'} | {self.name} | {figures} |"


@dataclass(frozen=True)
class Check:
    device: torch.device
    small: bool  # sizes that a CPU computes in seconds
    ends: float  # monotonic seconds; then no section begins, and programs that a section runs are ended
    steps: dict[str, float] = field(default_factory=dict)  # name of a recipe -> milliseconds of its step, once measured

    @property
    def on_cpu(self) -> bool:
        return self.device.type == "cpu"

    def seconds_left(self) -> float:
        return max(1.0, self.ends - time.monotonic())

    def waits(self, work: Callable[[], object]) -> list[str]:
        """Return where the host waited for the GPU, by torch's own debug mode; nothing on a CPU."""
        if self.on_cpu:
            work()
            return []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        # Not the mode's own notice, which has the word "synchronizing" too.
        return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "called a synchronizing" in str(w.message)]


def environment(check: Check) -> Iterator[Finding]:
    side = 256 if check.small else 8192
    x = torch.randn(side, side, device=check.device, dtype=torch.bfloat16)
    ms = milliseconds(lambda: x @ x, check.device)
    figures: Figures = {"torch": torch.__version__, "CUDA": torch.version.cuda, "bfloat16 TFLOP/s": 2e-9 * side**3 / ms}
    if not check.on_cpu:
        figures |= {"GB": torch.cuda.get_device_properties(check.device).total_memory / 1e9}
    yield Finding("environment", bool(torch.isfinite(x @ x).all()), figures)


def criterion(check: Check) -> Iterator[Finding]:
    """Compare the criterion with float64 on the CPU; it must not wait for the device."""
    for name, (options, sizes, sides) in OPTIONS.items():
        compute = VICRegLCriterion(**options, num_matches=(5, 2))
        expected = gradients(compute, random_views(torch.device("cpu"), torch.float64, sizes, sides))
        errors = {}
        for dtype in (torch.float64, torch.float32):
            found = gradients(compute, random_views(check.device, dtype, sizes, sides))
            errors[dtype] = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        views = random_views(check.device, torch.float32, sizes, sides)
        waits = check.waits(lambda: gradients(compute, views, read=False))  # noqa: B023  # called at once
        passed = errors[torch.float64] < 1e-9 and errors[torch.float32] < 1e-4 and not waits
        figures = {"float64 differs by": errors[torch.float64], "float32 by": errors[torch.float32]}
        yield Finding(f"criterion, {name}", passed, {**figures, "waits": waits or 0})


def random_views(
    device: torch.device, dtype: torch.dtype, sizes: tuple[int, int, int], sides: tuple[int, ...]
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    images, width, channels = sizes
    shared = normal(images, width)
    embeddings = [(shared + normal(images, width)).to(device, dtype).requires_grad_() for _ in sides]
    maps = [normal(images, side**2, channels).to(device, dtype).requires_grad_() for side in sides]
    return embeddings, maps, [(100 * normal(images, side**2, 2)).to(device, dtype) for side in sides]


def gradients(compute: VICRegLCriterion, views: tuple[list[Tensor], ...], read: bool = True) -> list[Tensor]:
    """Return the loss and its gradients, on the CPU in float64 if they are to be read."""
    loss = compute(*views)["loss"]
    leaves = [*views[0], *views[1]]
    found = [loss.detach(), *(g for g in torch.autograd.grad(loss, leaves, allow_unused=True) if g is not None)]
    return [tensor.double().cpu() for tensor in found] if read else found


def criterion_times(check: Check) -> Iterator[Finding]:
    """Time it beside plain VICReg and the plainly written definitions, which must give the same loss."""
    cases = {"256, 2 x 49": Case(256, 8192, 512, TWO, half=True)}
    cases["64, 2 x 49 + 6 x 9"] = Case(64, 8192, 512, MULTI_CROP, half=True)
    if check.small:
        cases = {"8, 2 x 49": Case(8, 64, 32, TWO, half=True)}
    for name, case in cases.items():
        works = {key: criterion_work(case, CONTENDERS[key], check.device) for key in ("paper", "global", "reference")}
        figures: Figures = {f"{key} ms": milliseconds(work, check.device, 5) for key, work in works.items()}
        definitions = criterion_work(case, CONTENDERS["definitions"], check.device)
        started = time.perf_counter()
        expected = float(definitions().detach())
        figures["definitions ms"] = 1000 * (time.perf_counter() - started)
        error = abs(float(works["reference"]().detach()) - expected) / abs(expected)
        passed = error < 1e-3 and (check.on_cpu or figures["reference ms"] < figures["definitions ms"])
        yield Finding(f"criterion's time, {name}", passed, {**figures, "loss differs by": error})


def diagnostics(check: Check) -> Iterator[Finding]:
    """Check features of low rank too, whose eigenvalues CUDA may not find; at most 0.2 s each."""
    n, d = (16, 64) if check.small else (512, 2048)
    generator = torch.Generator().manual_seed(0)
    cases = {
        f"{n} rows of {d}": torch.randn(n, d, generator=generator),
        "one direction": torch.randn(n, 1, generator=generator) @ torch.ones(1, d),
        "one point": torch.ones(n, d),
        f"{6 * d} rows of {d}": torch.randn(6 * d, d, generator=generator),
    }
    for name, rows in cases.items():
        there, expected = rows.to(check.device), feature_diagnostics(rows, "x")
        found = feature_diagnostics(there, "x")
        # The rank of one direction is 1 and what rounding adds by the square roots of eigenvalues that are 0.
        error = max(abs(found[k] - expected[k]) / max(1.0, abs(expected[k])) for k in expected)
        ms = milliseconds(lambda: feature_diagnostics(there, "x"), check.device, 3)  # noqa: B023  # called at once
        yield Finding(
            f"diagnostics, {name}", error < 0.01 and (ms < 200 or check.on_cpu), {"ms": ms, "differ by": error}
        )


def colour(check: Check) -> Iterator[Finding]:
    """Compare `views.execution=device` with the CPU's; compiled, both views take at most 5 % of a step of ResNet-50."""
    images, side, few = (8, 32, 8) if check.small else (256, 224, 16)
    config = ViewsConfig(execution="device", large_size=side)
    maker = ViewMaker(config, lambda size: (1, 1))
    drawn = [maker.draw(375, 500, sample_generator(0, 0, number)) for number in range(images)]
    levels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (images, side, side, 3), np.uint8))
    there = levels.to(check.device)
    for compiled in (False,) if check.small else (False, True):  # compiling takes a CPU a minute
        ms, errors, waits = 0.0, [], []
        for view in range(2):
            plan = plan_batch([views[view] for views in drawn]).map(lambda tensor: tensor.to(check.device))

            def work(plan: Any = plan, compiled: bool = compiled) -> Tensor:
                return mirror_and_colour(there, plan, config, compiled)

            expected = mirror_and_colour(levels[:few], plan_batch([views[view] for views in drawn[:few]]), config)
            errors.append(float((work()[:few].cpu() - expected).abs().mean()))
            ms += milliseconds(work, check.device)
            waits += check.waits(work)
        step = check.steps.get("ResNet-50, 256, bfloat16")  # not known without that section
        share = {} if step is None else {"% of the step": 100 * ms / step}
        # A level, 1 / 58 of a deviation, differs where rounding decides.
        passed = max(errors) < 1e-3 and not waits and (max(share.values(), default=0.0) <= 5 or not compiled)
        figures = {"ms of two views": ms, **share, "differ by": max(errors), "waits": waits or 0}
        yield Finding(f"colour, {'compiled' if compiled else 'as it is'}", passed, figures)


@contextmanager
def group_of_one(check: Check) -> Iterator[str]:
    """This process alone in a group, by NCCL on a GPU; gloo stands in for it on a CPU. Yields the connection's name."""
    backend = distributed.BACKENDS[check.device.type]
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, f"file://{folder}/meeting", rank=0, world_size=1)
        try:
            yield "gloo in place of NCCL" if check.on_cpu else "NCCL"
        finally:
            dist.destroy_process_group()


def group(check: Check) -> Iterator[Finding]:
    """Call in a group of one what several processes call: no message between GPUs, but every kind of call."""
    with group_of_one(check) as name:
        with mock.patch.object(distributed, "_several", return_value=True):
            ms = milliseconds(lambda: distributed.largest(3), check.device, 20)
            agreed = distributed.largest(3) == 3 and distributed.broadcast({"a": 1}) == {"a": 1}
        own, states = random_state(check.device), list[Any]([None])
        dist.gather_object(own, states, dst=0)
        kept = all(value is None or torch.equal(value, states[0][key]) for key, value in own.items())
        yield Finding(f"group of one by {name}", agreed and kept, {"request ms": ms})
        yield norm_of_group(check, name)
        yield step_of_group(check, name)


def norm_of_group(check: Check, name: str) -> Finding:
    """Compare BatchNorm over processes with torch's own of one process: the same numbers, without waits."""
    images, channels, side = (4, 8, 6) if check.small else (64, 256, 28)
    torch.manual_seed(0)
    x = torch.randn(images, channels, side, side, device=check.device, dtype=torch.bfloat16)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    plain = nn.BatchNorm2d(channels).to(check.device)
    shared = synchronise(nn.BatchNorm2d(channels).to(check.device))
    error = float((shared(x).float() - plain(x).float()).detach().abs().max())

    def work(norm: nn.Module) -> Tensor:
        return torch.autograd.grad(norm(x).float().square().sum(), x)[0]

    times = {
        "ms": milliseconds(lambda: work(shared), check.device),
        "torch's of one process ms": milliseconds(lambda: work(plain), check.device),
    }
    waits = check.waits(lambda: work(shared))
    figures = {**times, "differ by": error, "waits": waits or 0}
    return Finding(f"BatchNorm over {name}", error < 0.05 and not waits, figures)


def step_of_group(check: Check, name: str) -> Finding:
    """Check that DDP's gradients are those of the module alone."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).to(check.device)
    x = torch.randn(16, 3, 8, 8, device=check.device)
    expected = torch.autograd.grad(alone(x).square().sum(), list(alone.parameters()))
    devices = None if check.on_cpu else [check.device]
    network = nn.parallel.DistributedDataParallel(alone, device_ids=devices, gradient_as_bucket_view=True)
    network(x).square().sum().backward()
    pairs = zip(alone.parameters(), expected, strict=True)
    error = max(float((p.grad - g).norm() / g.norm()) for p, g in pairs if p.grad is not None)
    return Finding(f"DDP over {name}", error < 1e-3, {"gradients differ by": error})
