"""What works on this machine's GPU, and how fast: one command, ten minutes at most, the most valuable first.

    make check-gpu                                            # writes benchmarks/gpu.md; exit code 1 if anything fails
    python -m benchmarks.gpu_check --device cpu --small       # the same sections in a small form, to try the check

Needs requirements.txt's packages, of which those that are missing are named before anything begins, and a torch that
fits the driver (environment.yml). What it compiles also needs a C compiler, as `cc`, and Python's headers.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError, run_command

if TYPE_CHECKING:
    from benchmarks.gpu_method import Check, Finding

    Section = Callable[[Check], Iterator[Finding]]

ROOT = Path(__file__).resolve().parents[1]
TEST_PACKAGES = ("pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "jsonschema", "nbclient", "nbformat")
INSTEAD = {"opencv-python": "opencv-python-headless", "mmcv-lite": "mmcv"}  # one does as well as the other


def missing_packages() -> list[str]:
    """Return the packages of the suite and of its tests that are not installed, by their names in requirements.txt."""
    suite = (ROOT / "requirements.txt").read_text(encoding="utf-8").partition("# tests and checks")[0]
    names = [*re.findall(r"^([\w-]+)==", suite, re.MULTILINE), *TEST_PACKAGES]
    installed = {re.sub(r"[-_.]+", "-", found.name).lower() for found in metadata.distributions()}
    return [name for name in names if not {name, INSTEAD.get(name, name)} & installed]


def sections() -> tuple[Section, ...]:
    """Return all sections, the most valuable first. Imported here, because they need the packages."""
    from benchmarks import gpu_method as method
    from benchmarks import gpu_stages as stages

    return (
        *(method.environment, method.criterion, method.diagnostics, stages.tests, stages.pretraining),
        *(stages.segmentation, stages.steps, method.criterion_times, method.group, method.colour),
        *(stages.evaluation, stages.compiled_step),
    )


def run(check: Check, chosen: Iterable[Section]) -> Iterator[Finding]:
    """Run each section; one that raises is a failure, one that the time does not allow is named."""
    from benchmarks.gpu_method import Finding

    for section in chosen:
        if time.monotonic() > check.ends:
            yield Finding(f"{section.__name__}: not begun, the time is over", False)
            continue
        try:
            yield from section(check)
        except Exception as error:
            traceback.print_exc()
            first_line = str(error).partition("\n")[0]
            yield Finding(section.__name__, False, {"error": f"{type(error).__name__}: {first_line}"})


def page(findings: Sequence[Finding], check: Check, argv: Sequence[str]) -> str:
    from runtime import provenance

    command = shlex.join(["python", "-m", "benchmarks.gpu_check", *argv]) if argv else "make check-gpu"

    facts = provenance.collect()
    dirty = " with uncommitted changes" if facts["dirty"] else ""
    lines = [
        f"# The check of a GPU{' (small form: no measurement)' if check.small else ''}",
        "",
        f"Made by `{command}` at {facts['commit']}{dirty}, {facts['started']}.",
        f"Machine: {facts['gpu'] or 'no GPU'}; {facts['processor']}, {facts['cores']} cores.",
        "",
        "| | what | figures |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *(finding.row() for finding in findings), ""])


def make_check(options: argparse.Namespace) -> Check:
    """UserError, before anything begins, without the packages or the GPU."""
    if missing := missing_packages():
        raise UserError(
            f"{len(missing)} of the packages that the check needs are not installed in {sys.prefix}: "
            f"{', '.join(missing)}. Install them: pip install -r requirements.txt"
        )
    import torch

    from benchmarks.gpu_method import Check

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device that torch can use here; --device cpu --small tries the check itself")
    device = torch.device("cuda", torch.cuda.current_device()) if options.device == "cuda" else torch.device("cpu")
    return Check(device, options.small, time.monotonic() + options.seconds)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description="Check this machine's GPU.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes that a CPU computes in seconds")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="these sections, by their functions' names")
    parser.add_argument("--seconds", type=float, default=600, help="after them no section begins (default: 600)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/gpu.md; of --small, build/gpu.md")
    options = parser.parse_args(argv)
    check = make_check(options)
    known = {section.__name__: section for section in sections()}
    if unknown := set(options.only or ()) - set(known):
        raise UserError(f"--only {' '.join(sorted(unknown))}: no such section; there are {', '.join(known)}")
    findings = []
    for finding in run(check, [known[name] for name in options.only or known]):
        print(finding.row(), flush=True)
        findings.append(finding)
    out = options.out or ROOT / ("build" if options.small else "benchmarks") / "gpu.md"  # keeps what was measured
    out.parent.mkdir(exist_ok=True)
    out.write_text(page(findings, check, argv), encoding="utf-8")
    print(f"wrote {out}")
    return int(not all(finding.passed for finding in findings))


if __name__ == "__main__":
    run_command(main)
