"""What `make check-gpu` checks of whole stages: the GPU's tests, pretraining, its step at full size, evaluations."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from benchmarks.data_cuda import milliseconds
from benchmarks.gpu_method import Check, Figures, Finding
from benchmarks.steps import make_batch, make_training
from eval.config import ComputeConfig
from eval.features import PooledFeatures
from eval.knn import accuracies, normalise_rows
from pretrain.config import PretrainConfig
from pretrain.step import training_step
from runtime import config as configs
from runtime.device import available_cores, memory_bytes
from runtime.errors import Unfinished
from runtime.rundir import Run
from runtime.world import World
from vicregl.backbones import create_backbone
from vicregl.config import BackboneConfig
from vicregl.model import VICRegLModel

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {  # name -> recipe, images, overrides
    "ResNet-50, 256, bfloat16": ("resnet50_100ep", 256, []),
    "ResNet-50, 256, float16": ("resnet50_100ep", 256, ["train.precision=float16"]),
    "small_gpu, 256": ("small_gpu", 256, []),
    "ConvNeXt-S, 48, 2 + 6 views": ("convnext_small", 48, []),
}
SMALL_RECIPES = {"quickstart, 8": ("quickstart", 8, ["model.expander=32-32", "model.projector=16-16"])}
COMPILING_SECONDS = 150  # what compiling a step may take


def run_program(check: Check, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m ...` from the project's root; it is ended when the check's time is over.

    What a program that failed wrote goes to stderr.
    """
    command = [sys.executable, "-m", *map(str, arguments)]
    if not check.on_cpu:
        torch.cuda.empty_cache()  # the program needs the GPU's memory
    limit = check.seconds_left()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False, timeout=limit
    )
    if done.returncode not in (0, Unfinished.exit_code):
        print(*command, done.stdout, done.stderr, sep="\n", file=sys.stderr, flush=True)
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> Figures:
    """Return what a program that failed said last."""
    lines = done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or [""]
    return {"said": lines[-1][:200]} if done.returncode else {}


def tests(check: Check) -> Iterator[Finding]:
    """Run `pytest -m gpu`: without a GPU all of its tests are skipped."""
    files = ["tests/pretrain/test_diagnostics.py"] if check.small else []
    processes = ["-n", "4"] if available_cores() >= 8 else []
    # No -q: pyproject.toml has one, and two leave out the counts.
    done = run_program(check, "pytest", "-m", "gpu", *processes, *files)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    ran = counts.get("skipped" if check.on_cpu else "passed", 0) > 0
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    yield Finding("pytest -m gpu", done.returncode == 0 and ran, {**counts, **({"of": failed} if failed else {})})


def pretraining(check: Check) -> Iterator[Finding]:
    """Pretrain on generated JPEGs: stopped by its time limit, resumed, done; data wait under 2 %."""
    count, side, duration = (48, 48, 8) if check.small else (4096, 300, 120)
    with tempfile.TemporaryDirectory() as folder:
        make_jpegs(Path(folder) / "images", count, side)
        options = ["data.name=imagefolder", f"data.root={folder}/images", f"train.duration={duration} steps"]
        options += ["optimizer.warmup=2 steps", "diagnostics_images=48", f"machine.runs={folder}/runs"]
        options += [f"machine.device={check.device.type}", "machine.log_steps=4"]
        recipe = "quickstart" if check.small else "small_gpu"
        options += ["train.batch_size=16", "model.expander=32-32"] if check.small else ["machine.workers=8"]
        options.insert(0, f"--config=pretrain/configs/{recipe}.yaml")
        attempts = [run_program(check, "pretrain", *options, *more) for more in (["machine.max_minutes=0.0001"], [])]
        codes = [attempt.returncode for attempt in attempts]
        (path,) = Path(folder, "runs", "pretrain").iterdir()
        result, rows = Run(path).result() or {}, Run(path).metrics()
    waited = float(np.median([row["data_wait_percent"] for row in rows])) if rows else 100.0
    passed = codes == [75, 0] and result.get("steps") == duration and (check.on_cpu or waited < 2)
    figures = {"exit codes": codes, "data wait %": waited, **last_line(attempts[1])}
    yield Finding("pretraining, stopped and resumed", passed, figures)


def make_jpegs(root: Path, count: int, side: int) -> None:
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("val" if number % 4 == 0 else "train") / f"class{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)


def segmentation(check: Check) -> Iterator[Finding]:
    """Train by VOC's protocol on made-up images, in three precisions: losses that agree, and images per second."""
    arch, images, side, iterations, batch = ("resnet18", 8, 64, 4, 4) if check.small else ("resnet50", 64, 512, 40, 16)
    precisions = ["float32", "bfloat16"] if check.on_cpu else ["float32", "bfloat16", "float16"]
    with tempfile.TemporaryDirectory() as folder:
        make_voc(Path(folder) / "voc", images, side)
        save_file(create_backbone(BackboneConfig(arch)).trunk.state_dict(), f"{folder}/weights.safetensors")
        options = [f"--weights={folder}/weights.safetensors", f"--arch={arch}", "--config=eval/configs/seg_voc.yaml"]
        options += ["data.name=vocfolder", "data.segmentation_train=train", f"data.root={folder}/voc"]
        options += [f"iterations={iterations}", f"batch_size={batch}", f"image_scale=[{4 * side},{side}]"]
        options += [f"crop_size={side}", "machine.log_steps=2", f"machine.device={check.device.type}"]
        options += [f"machine.workers={0 if check.small else min(8, available_cores())}", f"machine.runs={folder}/runs"]
        losses: dict[str, float] = {}
        for precision in precisions:
            done = run_program(check, "eval.segmentation", *options, f"precision={precision}")
            runs = [Run(path) for path in Path(folder, "runs", "segmentation").glob("*")]
            run = max(runs, key=lambda run: run.path.stat().st_mtime, default=None)
            rows = run.metrics() if run is not None else []
            if done.returncode or len(rows) < 2:
                yield Finding(f"segmentation, {precision}", False, last_line(done))
                continue
            half = rows[len(rows) // 2 - 1 :]  # without the first iterations, in which workers start
            rate = batch * (half[-1]["step"] - half[0]["step"]) / (half[-1]["time"] - half[0]["time"])
            losses[precision] = rows[-1]["loss"]
            error = abs(losses[precision] - losses.get("float32", float("nan"))) / losses[precision]
            yield Finding(f"segmentation, {precision}", error < 0.1, {"images/s": rate, "loss differs by": error})


def make_voc(root: Path, count: int, side: int) -> None:
    """Write a folder in Pascal VOC's layout: each half of an image is a class, in its own colour."""
    random = np.random.default_rng(0)
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("left\nright\n", encoding="utf-8")
    names = [f"image{number:03}" for number in range(count)]
    for name in names:
        mask = np.zeros((side, side), np.uint8)
        mask[:, side // 2 :] = 1
        pixels = np.where(mask[..., None], (180, 60, 60), (60, 60, 180)) + random.normal(0, 40, (side, side, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        Image.fromarray(mask).save(root / "SegmentationClass" / f"{name}.png")
    for split, members in (("train", names[: -count // 4]), ("val", names[-count // 4 :])):
        (root / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(members), encoding="utf-8")


def steps(check: Check) -> Iterator[Finding]:
    """Time steps at full size: local criterion and optimiser take at most 10 % each; one wait, two in float16."""
    for name, (recipe, images, overrides) in (SMALL_RECIPES if check.small else RECIPES).items():
        try:
            yield step(check, name, recipe, images, overrides)
        except torch.OutOfMemoryError as error:  # a smaller GPU still has its other steps
            yield Finding(f"step, {name}", False, {"error": str(error).partition("\n")[0]})


def step(check: Check, name: str, recipe: str, images: int, overrides: Sequence[str]) -> Finding:
    if not check.on_cpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    ms, waits, optimizer, _ = measure_step(check, recipe, images, overrides)
    gigabytes = 0.0 if check.on_cpu else torch.cuda.max_memory_allocated() / 1e9
    without, *_ = measure_step(check, recipe, images, [*overrides, "loss.alpha=1"])
    check.steps[name] = ms
    shares = {"local criterion %": 100 * (ms - without) / ms, "optimiser %": 100 * optimizer / ms}
    allowed = 2 if "train.precision=float16" in overrides else 1
    passed = check.on_cpu or (len(waits) <= allowed and all(share < 10 for share in shares.values()))
    figures = {"ms": ms, "images/s": 1000 * images / ms, "GB": gigabytes, **shares, "waits": waits or 0}
    return Finding(f"step, {name}", passed, figures)


def measure_step(
    check: Check, recipe: str, images: int, overrides: Sequence[str]
) -> tuple[float, list[str], float, float]:
    """Return a step's milliseconds and waits, its optimiser's milliseconds, and the loss of the third step."""
    fixed = [f"train.batch_size={images}", *overrides]
    config = configs.load(PretrainConfig, f"{ROOT}/pretrain/configs/{recipe}.yaml", fixed)
    torch.manual_seed(0)
    model = VICRegLModel(config.model, config.loss.global_weight)
    training = make_training(config, model, check.device, World())
    batch = make_batch(config, model, images, check.device)

    def step() -> Any:
        losses, _ = training_step(training, batch, 0.01)
        training.state.step += 1
        return losses["loss"].detach()

    loss = [step() for _ in range(3)][-1]
    ms = milliseconds(step, check.device, 2 if check.small else 8)
    waits, optimizer = check.waits(step), milliseconds(lambda: training.state.optimizer.step(), check.device, 3)
    return ms, waits, optimizer, float(loss)


def compiled_step(check: Check) -> Iterator[Finding]:
    """Check machine.compile=true: the same loss, and no slower."""
    name, (recipe, images, overrides) = next(iter((SMALL_RECIPES if check.small else RECIPES).items()))
    if not check.small and check.seconds_left() < COMPILING_SECONDS:
        yield Finding(f"compiled step: not begun, it may take {COMPILING_SECONDS} s", False)
        return
    ms, _, _, loss = measure_step(check, recipe, images, overrides)
    check.steps.setdefault(name, ms)
    whole = nn.Module.compile
    # On a CPU the graphs alone: its C++ would take minutes to compile.
    traced = mock.patch.object(nn.Module, "compile", lambda module: whole(module, backend="aot_eager"))
    with traced if check.small else nullcontext():
        faster, waits, _, same = measure_step(check, recipe, images, [*overrides, "machine.compile=true"])
    error = abs(same - loss) / abs(loss)
    passed = error < 0.02 and (check.on_cpu or (len(waits) <= 1 and faster <= ms))
    figures = {"ms": faster, "ms as it is": ms, "loss differs by": error, "waits": waits or 0}
    yield Finding(f"compiled step, {name}", passed, figures)


def evaluation(check: Check) -> Iterator[Finding]:
    """Check frozen features, and kNN at ImageNet's size."""
    arch, images, side = ("resnet18", 4, 64) if check.small else ("resnet50", 256, 224)
    pixels = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    backbone, cpu = create_backbone(BackboneConfig(arch)), torch.device("cpu")
    expected = PooledFeatures(backbone, cpu)(pixels[:4])
    there = pixels.to(check.device)
    for name, config in (
        ("float32", ComputeConfig()),
        ("bfloat16", ComputeConfig(precision="bfloat16", channels_last=True)),
    ):
        features = PooledFeatures(backbone, check.device, config)
        error = float((features(there)[:4].cpu() - expected).norm() / expected.norm())
        rate = 1000 * images / milliseconds(lambda: features(there), check.device, 5)  # noqa: B023  # called at once
        # In float32 torch lets convolutions compute in TF32.
        passed = error < (0.01 if name == "float32" else 0.05)
        yield Finding(f"frozen features, {arch}, {name}", passed, {"images/s": rate, "differ by": error})

    rows, queries, width = (999, 20, 32) if check.small else (1_281_167, 208, 2048)
    if 4 * rows * width > 0.4 * memory_bytes(check.device):
        yield Finding("kNN at ImageNet's size: this GPU's memory is too small for its features", True)
        return
    generator = torch.Generator(check.device).manual_seed(0)

    def table(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = torch.randn(count, width, device=check.device, generator=generator)
        return normalise_rows(vectors), torch.randint(1000, (count,), device=check.device, generator=generator)

    bank, asked = table(rows), table(queries)
    ms = milliseconds(lambda: accuracies(bank, asked, [10, 20], 0.07, 1000, 2048 << 20), check.device, 2)
    # A query that is in the bank is its own nearest.
    own = accuracies(bank, (bank[0][:queries], bank[1][:queries]), [1], 0.07, 1000, 2048 << 20)
    minutes = 50_000 / queries * ms / 60_000
    yield Finding("kNN", float(own[0, 0]) == 100 and (check.on_cpu or minutes < 5), {"minutes of 50,000": minutes})
