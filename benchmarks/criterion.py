"""Time and memory of the criterion, against its definitions written down plainly and against plain VICReg.

    python -m benchmarks.criterion                  # a quarter of an hour on two cores; writes benchmarks/criterion.md
    python -m benchmarks.criterion --device cuda    # float32 and bf16 autocast, and the share of a training step

Every measurement is a process of its own, so that its peak memory is its own; contenders take turns.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import criterion_table
from benchmarks.criterion_cases import CASES, CONTENDERS, CUDA_CASES, Measurement
from runtime.errors import UserError, run_command

HERE = Path(__file__).parent
TOLERANCE = 1e-4  # relative, of the loss in float32


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.criterion", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--cases", nargs="+", choices=[*CASES, *CUDA_CASES], help="default: all of the device")
    parser.add_argument("--rounds", type=int, default=3, help="turns of every contender; default 3")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU; default 2")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes, to try the benchmark itself")
    parser.add_argument("--out", type=Path, help="default benchmarks/criterion.md, on a GPU criterion_cuda.md")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    options = parse(argv)
    names = options.cases or list(CASES if options.device == "cpu" else CASES | CUDA_CASES)
    found: dict[tuple[str, str], list[Measurement]] = {}
    for turn in range(options.rounds):
        for name in names:
            for contender in (CASES | CUDA_CASES)[name].contenders:
                result = measure_apart(name, contender, options)
                found.setdefault((name, contender), []).append(result)
                print(f"turn {turn + 1}: case {name}, {contender}: {result.seconds:.3f} s, {result.gigabytes:.2f} GB")
    best = {key: combine(results) for key, results in found.items()}
    check_losses(best)
    out = options.out or HERE / ("criterion.md" if options.device == "cpu" else "criterion_cuda.md")
    out.write_text(criterion_table.document(best, options.device, options.threads, options.shrink), encoding="utf-8")
    print(f"wrote {out}")


def measure_apart(name: str, contender: str, options: argparse.Namespace) -> Measurement:
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
    """Time of the quickest turn, since other work on the machine only ever adds to it; largest peak."""
    merged = asdict(results[0])
    merged["seconds"] = min(result.seconds for result in results)
    merged["gigabytes"] = max(result.gigabytes for result in results)
    return Measurement(**merged)


def check_losses(found: dict[tuple[str, str], Measurement]) -> None:
    """Contenders that compute the same thing must have got the same number."""
    for (name, contender), result in found.items():
        twin = CONTENDERS[contender].same_as
        if twin is None or (name, twin) not in found:
            continue
        expected = found[name, twin].loss
        if abs(result.loss - expected) > TOLERANCE * abs(expected):
            raise UserError(f"case {name}: {contender} gives a loss of {result.loss}, and {twin} one of {expected}")


if __name__ == "__main__":
    run_command(main)
