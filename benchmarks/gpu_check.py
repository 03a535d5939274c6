"""What works on this machine's GPU, and how fast: one command, ten minutes at most, the most valuable first.

    make check-gpu                                            # writes benchmarks/gpu.md; exit code 1 if anything fails
    python -m benchmarks.gpu_check --device cpu --small       # the same sections in a small form, to try the check

Needs nothing beyond requirements.txt, except that its torch must fit the driver (environment.yml).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.data_cuda import milliseconds
from benchmarks.steps import make_batch, make_training
from pretrain.config import PretrainConfig
from pretrain.diagnostics import feature_diagnostics
from pretrain.step import training_step
from runtime import config as configs
from runtime import provenance
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from runtime.world import World
from vicregl.criterion import VICRegLCriterion
from vicregl.model import VICRegLModel

ROOT = Path(__file__).resolve().parents[1]
Figures = dict[str, Any]  # name with its unit -> number or text

OPTIONS: dict[str, dict[str, Any]] = {  # of the criterion
    "paper": {},
    "reference": {"profile": "reference"},
    "threshold": {"select": "threshold", "feature_threshold": 1.4},
    "maps": {"statistics": "maps"},
    "alpha 0": {"alpha": 0.0},
    "alpha 1": {"alpha": 1.0},
}
RECIPES = {  # name -> recipe, images, overrides
    "ResNet-50, 256, bfloat16": ("resnet50_100ep", 256, []),
    "ResNet-50, 256, float16": ("resnet50_100ep", 256, ["train.precision=float16"]),
    "small_gpu, 256": ("small_gpu", 256, []),
    "ConvNeXt-S, 48, 2 + 6 views": ("convnext_small", 48, []),
}
SMALL_RECIPES = {"quickstart, 8": ("quickstart", 8, ["model.expander=32-32", "model.projector=16-16"])}


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
    seconds: float  # after them no section begins

    def waits(self, work: Callable[[], object]) -> list[str]:
        """Return where the host waited for the GPU, by torch's own debug mode; nothing on a CPU."""
        if self.device.type != "cuda":
            work()
            return []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                work()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return [f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)]


def environment(check: Check) -> Iterator[Finding]:
    side = 256 if check.small else 8192
    x = torch.randn(side, side, device=check.device, dtype=torch.bfloat16)
    ms = milliseconds(lambda: x @ x, check.device)
    figures: Figures = {"torch": torch.__version__, "CUDA": torch.version.cuda, "bfloat16 TFLOP/s": 2e-9 * side**3 / ms}
    yield Finding("environment", bool(torch.isfinite(x @ x).all()), figures)


def tests(check: Check) -> Iterator[Finding]:
    """pytest -m gpu: without a GPU they are all skipped."""
    files = ["tests/pretrain/test_diagnostics.py"] if check.small else []
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped)", done.stdout)}
    ran = counts.get("passed", 0) > 0 or check.device.type == "cpu"
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    yield Finding("pytest -m gpu", done.returncode == 0 and ran, {**counts, **({"of": failed} if failed else {})})


def criterion(check: Check) -> Iterator[Finding]:
    """Against float64 on the CPU; no waits for the device."""
    for name, options in OPTIONS.items():
        compute = VICRegLCriterion(**options, num_matches=(5, 2))
        expected = gradients(compute, random_views(torch.device("cpu"), torch.float64))
        errors = {}
        for dtype in (torch.float64, torch.float32):
            found = gradients(compute, random_views(check.device, dtype))
            errors[dtype] = max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))
        views = random_views(check.device, torch.float32)
        waits = check.waits(lambda: gradients(compute, views, read=False))  # noqa: B023  # called at once
        passed = errors[torch.float64] < 1e-9 and errors[torch.float32] < 1e-4 and not waits
        figures = {"float64 differs by": errors[torch.float64], "float32 by": errors[torch.float32]}
        yield Finding(f"criterion, {name}", passed, {**figures, "waits": waits or 0})


def random_views(device: torch.device, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    sides, shared = (7, 7, 3), normal(12, 40)
    embeddings = [(shared + normal(12, 40)).to(device, dtype).requires_grad_() for _ in sides]
    maps = [normal(12, side * side, 24).to(device, dtype).requires_grad_() for side in sides]
    return embeddings, maps, [(100 * normal(12, side * side, 2)).to(device, dtype) for side in sides]


def gradients(compute: VICRegLCriterion, views: tuple[list[Tensor], ...], read: bool = True) -> list[Tensor]:
    """The loss and its gradients, on the CPU in float64 if they are to be read."""
    loss = compute(*views)["loss"]
    leaves = [*views[0], *views[1]]
    found = [loss.detach(), *(g for g in torch.autograd.grad(loss, leaves, allow_unused=True) if g is not None)]
    return [tensor.double().cpu() for tensor in found] if read else found


def diagnostics(check: Check) -> Iterator[Finding]:
    """Of features of low rank too, whose eigenvalues CUDA may not find; at most 0.2 s each."""
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
        fast = ms < 200 or check.device.type == "cpu"
        yield Finding(f"diagnostics, {name}", error < 0.01 and fast, {"ms": ms, "differ by": error})


def steps(check: Check) -> Iterator[Finding]:
    """At full size: local criterion and optimiser take at most 10 % of a step each; one wait, two in float16."""
    for name, (recipe, images, overrides) in (SMALL_RECIPES if check.small else RECIPES).items():
        if check.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        ms, waits, optimizer = measure_step(check, recipe, images, overrides)
        gigabytes = torch.cuda.max_memory_allocated() / 1e9 if check.device.type == "cuda" else 0.0
        without = measure_step(check, recipe, images, [*overrides, "loss.alpha=1"])[0]
        shares = {"local criterion %": 100 * (ms - without) / ms, "optimiser %": 100 * optimizer / ms}
        allowed = 2 if "train.precision=float16" in overrides else 1
        passed = check.device.type == "cpu" or (len(waits) <= allowed and all(share < 10 for share in shares.values()))
        figures = {"ms": ms, "images/s": 1000 * images / ms, "GB": gigabytes, **shares, "waits": waits or 0}
        yield Finding(f"step, {name}", passed, figures)


def measure_step(check: Check, recipe: str, images: int, overrides: Sequence[str]) -> tuple[float, list[str], float]:
    """Return the milliseconds of a step, its waits, and the milliseconds of its optimiser."""
    fixed = [f"train.batch_size={images}", *overrides]
    config = configs.load(PretrainConfig, f"{ROOT}/pretrain/configs/{recipe}.yaml", fixed)
    torch.manual_seed(0)
    model = VICRegLModel(config.model, config.loss.global_weight)
    training = make_training(config, model, check.device, World())
    batch = make_batch(config, model, images, check.device)

    def step() -> None:
        losses, _ = training_step(training, batch, 0.01)
        training.state.step += 1
        del losses

    for _ in range(3):
        step()
    ms = milliseconds(step, check.device, 2 if check.small else 8)
    return ms, check.waits(step), milliseconds(lambda: training.state.optimizer.step(), check.device, 3)


def pretraining(check: Check) -> Iterator[Finding]:
    """On generated JPEGs: stopped by its time limit, resumed, done; data wait under 2 %."""
    count, side, duration = (48, 48, 8) if check.small else (4096, 300, 120)
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(Path(folder) / "images", count, side)
        common = ["data.name=imagefolder", f"data.root={folder}/images", f"train.duration={duration} steps"]
        common += ["optimizer.warmup=2 steps", "diagnostics_images=48", f"machine.runs={folder}/runs"]
        common += [f"machine.device={check.device.type}", "machine.log_steps=4"]
        recipe = "quickstart" if check.small else "small_gpu"
        common += ["train.batch_size=16", "model.expander=32-32"] if check.small else ["machine.workers=8"]
        command = [sys.executable, "-m", "pretrain", f"--config=pretrain/configs/{recipe}.yaml", *common]
        limit = "machine.max_minutes=0.0001"
        codes = [
            subprocess.run(
                [*command, *more], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False
            ).returncode
            for more in ([limit], [])
        ]
        (path,) = Path(folder, "runs", "pretrain").iterdir()
        result, rows = Run(path).result() or {}, Run(path).metrics()
        waited = float(np.median([row["data_wait_percent"] for row in rows])) if rows else 100.0
        passed = codes == [75, 0] and result.get("steps") == duration and (check.device.type == "cpu" or waited < 2)
        yield Finding("pretraining, stopped and resumed", passed, {"exit codes": codes, "data wait %": waited})


def make_jpegs(root: Path, count: int, side: int) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("val" if number % 4 == 0 else "train") / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


SECTIONS = (environment, criterion, diagnostics, tests, pretraining, steps)


def run(check: Check) -> Iterator[Finding]:
    """Every section; one that raises is a failure, one that the time does not allow is named."""
    began = time.monotonic()
    for section in SECTIONS:
        if time.monotonic() - began > check.seconds:
            yield Finding(f"{section.__name__}: not begun, the {check.seconds:g} s are over", False)
            continue
        try:
            yield from section(check)
        except Exception as error:
            traceback.print_exc()
            first_line = str(error).partition("\n")[0]
            yield Finding(section.__name__, False, {"error": f"{type(error).__name__}: {first_line}"})


def page(findings: Sequence[Finding], check: Check) -> str:
    facts = provenance.collect()
    dirty = " with uncommitted changes" if facts["dirty"] else ""
    lines = [
        f"# The check of a GPU{' (small form: no measurement)' if check.small else ''}",
        "",
        f"Made by `make check-gpu` at {facts['commit']}{dirty}, {facts['started']}.",
        f"Machine: {facts['gpu'] or 'no GPU'}; {facts['processor']}, {facts['cores']} cores.",
        "",
        "| | what | figures |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(finding.row() for finding in findings), ""])


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="Check this machine's GPU.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--seconds", type=float, default=600, help="after them no section begins (default: 600)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "gpu.md")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device that torch can use here; --device cpu --small tries the check itself")
    check = Check(torch.device(options.device), options.small, options.seconds)
    findings = []
    for finding in run(check):
        print(finding.row(), flush=True)
        findings.append(finding)
    options.out.write_text(page(findings, check), encoding="utf-8")
    print(f"wrote {options.out}")
    return int(not all(finding.passed for finding in findings))


if __name__ == "__main__":
    run_command(main)
