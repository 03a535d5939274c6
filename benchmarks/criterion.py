"""Time and memory of the criterion, against its definitions written down plainly and against plain VICReg.

    python -m benchmarks.criterion                  # a quarter of an hour on two cores; writes benchmarks/criterion.md
    python -m benchmarks.criterion --device cuda    # float32 and bf16 autocast, and the share of a training step

Each measurement runs in its own process (benchmarks/criterion_cases.py), so that its peak memory is its own. Contenders
take turns, so that a slow minute of the machine does not hit one of them alone.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks import conditions
from benchmarks.criterion_cases import CASES, CONTENDERS, CUDA_CASES, STEP, Measurement
from runtime.errors import UserError, run_command

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # relative, of the loss in float32


class Published(NamedTuple):
    seconds: float  # forward + backward, global + local
    gigabytes: float  # peak memory of the process


# The authors' code (commit 803ae4c) as it is, float32, one gloo process with two threads on two cores of an AMD EPYC
# (AVX-512), torch 2.13, November 2026. It was not run on case D. Another machine: for context only.
PUBLISHED = {"A": Published(2.78 + 3.24, 1.9), "B": Published(0.36 + 13.1, 4.7), "C": Published(11.0 + 11.3, 3.2)}

Measurements = Mapping[tuple[str, str], Measurement]  # by case and contender


def main(argv: Sequence[str]) -> None:
    options = _parse(argv)
    names = options.cases or list(CASES if options.device == "cpu" else CASES | CUDA_CASES)
    turns: dict[tuple[str, str], list[Measurement]] = {}
    for turn in range(options.rounds):
        for name in names:
            for contender in (CASES | CUDA_CASES)[name].contenders:
                result = measure(name, contender, options)
                turns.setdefault((name, contender), []).append(result)
                print(f"turn {turn + 1}: case {name}, {contender}: {result.seconds:.3f} s, {result.gigabytes:.2f} GB")
    combined = {key: combine(results) for key, results in turns.items()}
    check_losses(combined)
    out = options.out or HERE / ("criterion.md" if options.device == "cpu" else "criterion_cuda.md")
    out.write_text(page(combined, options.device, options.threads, options.shrink, argv), encoding="utf-8")
    print(f"wrote {out}")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criterion", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *CUDA_CASES], help="default: all cases of the device")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contender (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads on the CPU (default: %(default)s)")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes by this, to try the benchmark itself")
    parser.add_argument("--out", type=Path, help="default: benchmarks/criterion.md, on a GPU criterion_cuda.md")
    return parser.parse_args(argv)


def measure(name: str, contender: str, options: argparse.Namespace) -> Measurement:
    """Measure one contender on one case in a new process."""
    request = {"case": name, "contender": contender, "device": options.device}
    request |= {"threads": options.threads, "shrink": options.shrink}
    command = [sys.executable, "-m", "benchmarks.criterion_cases", json.dumps(request)]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", check=False, cwd=HERE.parent
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["killed: out of memory?"]
        raise UserError(f"case {name}, {contender} ended with {done.returncode}: {last[0]}")
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def combine(results: Sequence[Measurement]) -> Measurement:
    """Take the quickest time, since other work on the machine only ever adds to it, and the largest peak."""
    merged = asdict(results[0])
    merged["seconds"] = min(result.seconds for result in results)
    merged["gigabytes"] = max(result.gigabytes for result in results)
    return Measurement(**merged)


def check_losses(measurements: Measurements) -> None:
    """Raise UserError where two contenders that compute the same quantity got different numbers."""
    for (name, contender), result in measurements.items():
        other = CONTENDERS[contender].same_as
        if other is None or (name, other) not in measurements:
            continue
        expected = measurements[name, other].loss
        if abs(result.loss - expected) > TOLERANCE * abs(expected):
            raise UserError(f"case {name}: {contender} gives a loss of {result.loss}, and {other} one of {expected}")


def page(measurements: Measurements, device: str, threads: int, shrink: int, argv: Sequence[str]) -> str:
    parts = [_heading(device, threads, shrink, argv), _table(measurements)]
    if device == "cpu" and shrink == 1:
        parts.append(_against_published(measurements))
    parts += [_share(name, measurements) for name in CUDA_CASES if (name, "step") in measurements]
    return "\n".join(parts)


def _heading(device: str, threads: int, shrink: int, argv: Sequence[str]) -> str:
    memory = "of the GPU" if device == "cuda" else "of the process, Python and torch included"
    command = shlex.join(["python", "-m", "benchmarks.criterion", *argv])
    smaller = f"\n**Sizes divided by {shrink}: this page only shows that the benchmark works.**\n" if shrink > 1 else ""
    return f"""# What the criterion costs

Forward + backward of the criterion alone, float32 (bf16 tensors under autocast where it says so). Median time of a
step in the quickest of the turns; peak memory {memory}. Each measurement ran in its own process.
"definitions" is `benchmarks/definitions.py`: the definitions written down plainly, one slot and one sample after the
other. Contenders took turns in one run, and those that compute the same quantity gave the same loss.
{smaller}
{conditions(command, f", {threads} threads" if device == "cpu" else "")}"""


def _table(measurements: Measurements) -> str:
    lines = [
        "| case | what | seconds | peak GB | times faster | of its memory |",
        "|---|---|---|---|---|---|",
    ]
    for (name, contender), result in measurements.items():
        if contender in STEP:
            continue
        case = (CASES | CUDA_CASES)[name]
        plain = contender in ("definitions-global", "global")
        base = measurements.get((name, "definitions-global" if plain else "definitions"))
        ratios = "|  |"
        if base is not None:
            ratios = f"| {base.seconds / result.seconds:.1f} | {100 * result.gigabytes / base.gigabytes:.0f} % |"
        views = " + ".join(f"{case.sides.count(s)} x {s * s}" for s in dict.fromkeys(case.sides))
        sizes = f"{name}: B {case.batch}, D {case.width}, C {case.channels}, {views}{', bf16' if case.half else ''}"
        label = CONTENDERS[contender].label
        lines.append(f"| {sizes} | {label} | {result.seconds:.3f} | {result.gigabytes:.2f} {ratios}")
    return "\n".join(lines) + "\n\nRatios are to the definitions of the same thing: global + local, or plain VICReg.\n"


def _against_published(measurements: Measurements) -> str:
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
        if (ours := measurements.get((name, "reference"))) is None:
            continue
        faster, share = published.seconds / ours.seconds, ours.gigabytes / published.gigabytes
        lines.append(
            f"| {name} | {published.seconds:.2f} ({published.gigabytes}) "
            f"| {ours.seconds:.3f} ({ours.gigabytes:.2f}) | {faster:.0f} | {100 * share:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def _share(name: str, measurements: Measurements) -> str:
    step, criterion, of_global = (1000 * measurements[name, contender].seconds for contender in STEP)
    memory = measurements[name, "step"].gigabytes
    return f"""## Share of a training step

{CONTENDERS["step"].label}, two views, batch {CUDA_CASES[name].batch}, bf16 autocast: {step:.0f} ms, {memory:.1f} GB.
The criterion alone, on tensors of those sizes: {criterion:.1f} ms; its global half {of_global:.1f} ms.
**The local criterion takes {100 * (criterion - of_global) / step:.1f} % of the step.**
"""


if __name__ == "__main__":
    run_command(main)
