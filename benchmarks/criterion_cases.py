"""What benchmarks/criterion.py measures: cases, contenders, and one measurement, which it runs in a new process.

    python -m benchmarks.criterion_cases '{"case": "A", "contender": "paper", "device": "cpu", "threads": 2, ...}'

The last line of the output is the measurement as JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import definitions
from vicregl.config import BackboneConfig, ModelConfig
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

ENOUGH_SECONDS, ENOUGH_REPEATS = 10.0, 7  # a measurement ends at whichever comes first


@dataclass(frozen=True)
class Contender:
    label: str
    options: dict[str, Any]
    by_definition: bool = False  # benchmarks/definitions.py in place of the criterion
    compiled: bool = False  # by torch.compile
    same_as: str | None = None  # another contender that computes the same loss


PLAIN, REFERENCE = {"alpha": 1.0}, {"profile": "reference"}
CONTENDERS = {
    "definitions": Contender("definitions: global + local", REFERENCE, by_definition=True),
    "definitions-global": Contender("definitions: plain VICReg", PLAIN, by_definition=True),
    "global": Contender("this criterion: plain VICReg (alpha = 1)", PLAIN, same_as="definitions-global"),
    "reference": Contender("this criterion: global + local, `reference`", REFERENCE, same_as="definitions"),
    "paper": Contender("this criterion: global + local, `paper`", {}),
    "compiled": Contender("the same under torch.compile", {}, compiled=True, same_as="paper"),
    "step": Contender("ResNet-50, forward and backward, global + local", {}),
    "step-criterion": Contender("of which the criterion", {}),
    "step-global": Contender("of which its global half", PLAIN),
}
ALL = ("definitions", "definitions-global", "global", "reference", "paper")


@dataclass(frozen=True)
class Case:
    batch: int
    width: int  # D
    channels: int  # C
    sides: tuple[int, ...]  # cells along a side of each view's map
    contenders: tuple[str, ...] = ALL
    half: bool = False  # bf16 tensors, under autocast


TWO, MULTI_CROP = (7, 7), (7, 7, 3, 3, 3, 3, 3, 3)
CASES = {
    "A": Case(128, 8192, 512, TWO, (*ALL, "compiled")),
    "B": Case(64, 2048, 512, MULTI_CROP),
    "C": Case(512, 8192, 512, TWO),
    # Without the definitions of global + local: here they take tens of minutes and more than 20 GB on a CPU.
    "D": Case(2048, 8192, 512, TWO, ("definitions-global", "global", "reference", "paper")),
}
STEP = ("step", "step-criterion", "step-global")
CUDA_CASES = {
    "256": Case(256, 8192, 512, TWO, (*ALL, "compiled")),
    "256-bf16": Case(256, 8192, 512, TWO, half=True),
    "2048": Case(2048, 8192, 512, TWO),
    "2048-bf16": Case(2048, 8192, 512, TWO, half=True),
    "step-256": Case(256, 8192, 512, TWO, STEP, half=True),
}


@dataclass(frozen=True)
class Measurement:
    seconds: float  # median, forward + backward
    gigabytes: float  # peak: resident memory of the process, or allocated memory of the GPU
    loss: float


def inputs(case: Case, device: torch.device) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Make embeddings, maps and locations of views that resemble each other, as two crops of an image do."""
    random = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if case.half else torch.float32

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device=device).to(dtype)

    shared = normal(case.batch, case.width)
    embeddings = [(shared + normal(case.batch, case.width)).requires_grad_() for _ in case.sides]
    maps = [normal(case.batch, side**2, case.channels).requires_grad_() for side in case.sides]
    locations = [200 * torch.rand(case.batch, s**2, 2, generator=random, device=device) for s in case.sides]
    return embeddings, maps, locations


def criterion_of(contender: Contender) -> Callable[..., dict[str, Tensor]]:
    """Build the contender's criterion."""
    if not contender.by_definition:
        criterion = VICRegLCriterion(**contender.options)
        return torch.compile(criterion) if contender.compiled else criterion
    # The definitions need their inputs in float32: under autocast their products would be in bf16.
    return lambda *views: definitions.criterion(*([x.float() for x in v] for v in views), **contender.options)


def criterion_work(case: Case, contender: Contender, device: torch.device) -> Callable[[], Tensor]:
    """Build a function that runs forward and backward of the criterion alone."""
    embeddings, maps, locations = inputs(case, device)
    criterion = criterion_of(contender)

    def work() -> Tensor:
        for leaf in (*embeddings, *maps):
            leaf.grad = None
        with autocast(device, case.half and not contender.by_definition):
            loss = criterion(embeddings, maps, locations)["loss"]
        loss.backward()
        return loss

    return work


def step_work(case: Case, contender: Contender, device: torch.device) -> Callable[[], Tensor]:
    """Build a function that runs forward and backward of the whole network, without the optimiser."""
    backbone = BackboneConfig("resnet50" if case.width >= 8192 else "scenes_resnet")
    expander, projector = ("-".join([str(size)] * 3) for size in (case.width, case.channels))
    model = VICRegLModel(ModelConfig(backbone, expander, projector), alpha=0.75).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    cell = 32 if backbone.name == "resnet50" else 4  # pixels along a side of a map's cell: the network's stride
    views = [torch.randn(case.batch, 3, cell * side, cell * side, device=device) for side in case.sides]
    views = [view.contiguous(memory_format=torch.channels_last) for view in views]
    locations = [200 * torch.rand(case.batch, side**2, 2, device=device) for side in case.sides]
    criterion = criterion_of(contender)

    def work() -> Tensor:
        model.zero_grad(set_to_none=True)
        with autocast(device, case.half):
            output = model(views)
            loss = criterion(output.embeddings, output.maps, locations)["loss"]
        loss.backward()
        return loss

    return work


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def measure(work: Callable[[], Tensor], device: torch.device) -> Measurement:
    """Run once to warm up, then up to ENOUGH_REPEATS times within ENOUGH_SECONDS.

    Work that takes longer than ENOUGH_SECONDS runs once, and that first run is the measurement.
    """
    times: list[float] = []
    while len(times) < ENOUGH_REPEATS + 1 and sum(times) < ENOUGH_SECONDS:
        start = time.perf_counter()
        loss = float(work().detach())
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 1e9
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return Measurement(statistics.median(times[1:] or times), peak, loss)


def main(request: dict[str, Any]) -> None:
    """Print the measurement that `request` describes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(request["threads"])
    device, shrink = torch.device(request["device"]), request["shrink"]
    case, contender = (CASES | CUDA_CASES)[request["case"]], CONTENDERS[request["contender"]]
    sizes = {key: max(4, getattr(case, key) // shrink) for key in ("batch", "width", "channels")}
    case = Case(**(asdict(case) | sizes))
    make = step_work if request["contender"] == "step" else criterion_work
    torch.manual_seed(0)
    work = make(case, contender, device)
    if contender.compiled:
        work()  # compiling takes a minute and is not part of a step
    print(json.dumps(asdict(measure(work, device))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
