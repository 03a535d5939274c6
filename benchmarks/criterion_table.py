"""The page that benchmarks/criterion.py writes."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import NamedTuple

import torch

from benchmarks.criterion_cases import CASES, CONTENDERS, CUDA_CASES, STEP, Measurement
from runtime import provenance


class Published(NamedTuple):
    seconds: float  # forward + backward, global + local
    gigabytes: float  # peak of the process


# The authors' code (commit 803ae4c) as it is, float32, one gloo process with two threads on two cores of an AMD EPYC
# (AVX-512), torch 2.13, November 2026. It was not run on case D. Another machine: for context only.
PUBLISHED = {"A": Published(2.78 + 3.24, 1.9), "B": Published(0.36 + 13.1, 4.7), "C": Published(11.0 + 11.3, 3.2)}

Found = Mapping[tuple[str, str], Measurement]


def document(found: Found, device: str, threads: int, shrink: int) -> str:
    parts = [_heading(device, threads, shrink), _table(found, device)]
    if device == "cpu" and shrink == 1:
        parts.append(_against_published(found))
    parts += [_share(name, found) for name in CUDA_CASES if (name, "step") in found]
    return "\n".join(parts)


def _heading(device: str, threads: int, shrink: int) -> str:
    facts = provenance.collect()
    machine = facts["gpu"] if device == "cuda" else f"{facts['processor']}, {facts['cores']} cores, {threads} threads"
    memory = "of the GPU" if device == "cuda" else "of the process, Python and torch included"
    dirty = " with uncommitted changes" if facts["dirty"] else ""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    smaller = f"\n**Sizes divided by {shrink}: this page only shows that the benchmark works.**\n" if shrink > 1 else ""
    return f"""# What the criterion costs

Forward + backward of the criterion alone, float32 (bf16 tensors under autocast where it says so). Median time of a
step in the quickest of the turns; peak memory {memory}, each measured in a process of its own.
"definitions" is `benchmarks/definitions.py`: the definitions written down plainly, one slot and one sample after the
other. Contenders took turns in one run, and those that compute the same gave the same loss.
{smaller}
- machine: {machine}
- commit: {facts["commit"]}{dirty}; torch {torch.__version__}
- {time.strftime("%Y-%m-%d")}; load average at the end: {load}
- made by `python -m benchmarks.criterion{"" if device == "cpu" else " --device cuda"}`
"""


def _table(found: Found, device: str) -> str:
    lines = [
        "| case | what | seconds | peak GB | times faster | of its memory |",
        "|---|---|---|---|---|---|",
    ]
    for (name, contender), result in found.items():
        if contender in STEP:
            continue
        case = (CASES | CUDA_CASES)[name]
        base = found.get((name, "twin-global" if contender in ("twin-global", "global") else "twin"))
        ratios = "|  |"
        if base is not None:
            ratios = f"| {base.seconds / result.seconds:.1f} | {100 * result.gigabytes / base.gigabytes:.0f} % |"
        views = " + ".join(f"{case.sides.count(s)} x {s * s}" for s in dict.fromkeys(case.sides))
        sizes = f"{name}: B {case.batch}, D {case.width}, C {case.channels}, {views}{', bf16' if case.half else ''}"
        label = CONTENDERS[contender].label
        lines.append(f"| {sizes} | {label} | {result.seconds:.3f} | {result.gigabytes:.2f} {ratios}")
    return "\n".join(lines) + "\n\nRatios are to the definitions of the same thing: global + local, or plain VICReg.\n"


def _against_published(found: Found) -> str:
    lines = [
        "## Beside the published code",
        "",
        "The authors' code (commit 803ae4c) measured on *another* machine (two cores of an AMD EPYC with AVX-512, two",
        "threads, torch 2.13, November 2026): for context, not a comparison on equal terms.",
        "",
        "| case | published, seconds (peak GB) | this criterion, `reference` | times faster | of its memory |",
        "|---|---|---|---|---|",
    ]
    for name, published in PUBLISHED.items():
        if (ours := found.get((name, "reference"))) is not None:
            faster, share = published.seconds / ours.seconds, ours.gigabytes / published.gigabytes
            lines.append(
                f"| {name} | {published.seconds:.2f} ({published.gigabytes}) "
                f"| {ours.seconds:.3f} ({ours.gigabytes:.2f}) | {faster:.0f} | {100 * share:.0f} % |"
            )
    return "\n".join(lines) + "\n"


def _share(name: str, found: Found) -> str:
    step, criterion, of_global = (1000 * found[name, contender].seconds for contender in STEP)
    memory = found[name, "step"].gigabytes
    return f"""## Share of a training step

{CONTENDERS["step"].label}, two views, batch {CUDA_CASES[name].batch}, bf16 autocast: {step:.0f} ms, {memory:.1f} GB.
The criterion alone, on tensors of those sizes: {criterion:.1f} ms; its global half {of_global:.1f} ms.
**The local criterion takes {100 * (criterion - of_global) / step:.1f} % of the step.**
"""
