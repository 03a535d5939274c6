"""Time and memory of planning, watching and analysing a study of 10,000 runs.

    python -m benchmarks.sweeps             # writes benchmarks/sweeps.md
    python -m benchmarks.sweeps --runs 1000

The study uses real pretrain and eval configs of the project. Its run directories are synthetic: most runs are done,
the others running, queued, failed or new. Scripts named sacct and squeue print what a cluster would print about their
jobs. Each command runs in its own process, as a user starts it, so that imports count.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import conditions
from runtime import import_path, provenance
from sweeps.graph import Graph, Node, build
from sweeps.study import load_study

TARGETS = {"plan": 10.0, "status": 5.0, "analysis": 20.0}  # seconds
MEMORY_MB = 1000
# The state of every tenth pretraining and its evaluation; a hash decides which of them a run gets.
STATES = ("done",) * 6 + ("running", "queued", "failed", "new")
SLURM_STATES = {"done": "COMPLETED", "running": "RUNNING", "queued": "PENDING", "failed": "FAILED"}
PAGE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Measurement:
    command: str
    seconds: float  # wall time
    processor_s: float
    memory_mb: float  # peak


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=PAGE, help="default: %(default)s")
    options = parser.parse_args(argv)
    out = options.output.resolve()  # before the working directory changes
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        (folder / "many.yaml").write_text(yaml.safe_dump(make_study(options.runs)), encoding="utf-8")
        graph = build(load_study("many.yaml"))
        write_runs(graph)
        write_slurm_scripts(folder, graph)
        measurements = [measure(folder, verb) for verb in TARGETS]
    text = page(len(graph.nodes), measurements)
    out.write_text(text, encoding="utf-8")
    print(text)


def make_study(runs: int) -> dict[str, Any]:
    """Return a study with a grid of runs / 2 pretrainings and one evaluation each."""
    alphas, rates = [0.0, 0.5, 0.75, 1.0], [round(0.001 * (i + 1), 4) for i in range(25)]
    seeds = max(1, round(runs / (2 * len(alphas) * len(rates))))
    grid = {"loss.alpha": alphas, "optimizer.base_lr": rates, "seed": list(range(seeds))}
    return {
        "name": "many",
        "question": "How long does a large study take to handle?",
        "pretrain": {"config": "pretrain/configs/quickstart.yaml", "grid": grid},
        "evals": {"linear": {"stage": "linear", "config": "eval/configs/linear_scenes.yaml"}},
        "report": {"vary": "loss.alpha", "baseline": 1.0, "x": "linear.top1", "y": "pretrain.rank_local"},
    }


def write_runs(graph: Graph) -> None:
    """Write the run directories and the record of their jobs.

    Plain writes, because the locks and atomic writes of runtime.rundir would take longer than all that is measured.
    """
    attempt = provenance.collect()
    jobs = Path(graph.nodes[0].root) / "jobs" / "20260101-000000-abcd"
    jobs.mkdir(parents=True)
    now = time.time()
    with open(jobs / "jobs.jsonl", "w", encoding="utf-8") as records:
        for number, node in enumerate(graph.nodes):
            state = state_of(node)
            if state != "new":
                row = {"run": f"{node.identity.stage}/{node.run.name}", "job": job_id(number), "name": "many"}
                records.write(json.dumps(row | {"time": now - 1000, "resources": {"nodes": 1, "gpus": 1}}) + "\n")
            if state in ("done", "running", "failed"):
                _write_run(node, state, attempt, now)


def state_of(node: Node) -> str:
    """Return the state of a run; an evaluation waits until its pretraining is done."""
    top = node if node.parent is None else node.parent
    state = STATES[int(top.identity.hash, 16) % len(STATES)]
    return state if node is top or state in ("done", "new") else "queued"


def job_id(number: int) -> str:
    """Return a SLURM job id; a job array has a thousand tasks."""
    return f"{1000 + number // 1000}_{number % 1000}"


def _write_run(node: Node, state: str, attempt: dict[str, Any], now: float) -> None:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    folder, identity = node.run.path, node.identity
    folder.mkdir(parents=True)
    document = {"stage": identity.stage, "format": 1, "hash": identity.hash, "parent": identity.parent}
    document |= {"config": identity.config, "machine": {}, "attempts": [attempt]}
    (folder / "run.yaml").write_text(yaml.dump(document, Dumper=dumper, sort_keys=False), encoding="utf-8")
    (folder / "lock").touch()
    beat = {"host": "elsewhere", "pid": 1, "job": "1", "time": now + 1e6, "ended": state != "running"}
    (folder / "heartbeat.json").write_text(
        json.dumps(beat | {"progress": {"done": 7, "total": 9, "unit": "steps"}}), encoding="utf-8"
    )
    if node.parent is None:
        rows = ({"step": i, "epoch": i // 9, "time": now, "seconds": float(i), "loss": 9.0} for i in range(1, 25))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score = int(identity.hash, 16) % 1000 / 10
    if state == "done":
        result = {"top1": score, "seconds": 60.0} if node.parent else {"rank_local": score, "seconds": 300.0, "loss": 9}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if state == "failed":
        record = {"class": "RuntimeError", "message": "CUDA error", "time": now}
        (folder / "failure.json").write_text(json.dumps(record), encoding="utf-8")


def write_slurm_scripts(folder: Path, graph: Graph) -> None:
    """Write bin/sacct and bin/squeue, which print a fixed text about the same job arrays."""
    (folder / "bin").mkdir()
    for name, lines in (("sacct", _accounting(graph)), ("squeue", _queue(graph))):
        output, script = folder / f"{name}.txt", folder / "bin" / name
        output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        script.write_text(f"#!/bin/sh\nexec cat {output}\n", encoding="utf-8")
        script.chmod(0o755)


def _accounting(graph: Graph) -> Iterator[str]:
    """Yield the lines of sacct, with the job steps that a real one lists too."""
    for number, node in enumerate(graph.nodes):
        state = state_of(node)
        if state == "new":
            continue
        code = "1:0" if state == "failed" else "0:0"
        rest = f"{SLURM_STATES[state]}|{code}|n{number % 64}|{int(time.time()) - 900}|None"
        for step in ("", *(() if state == "queued" else (".batch", ".extern", ".0"))):
            yield f"{job_id(number)}{step}|{rest}"


def _queue(graph: Graph) -> Iterator[str]:
    for number, node in enumerate(graph.nodes):
        if (state := state_of(node)) in ("running", "queued"):
            yield f"{job_id(number)}|{SLURM_STATES[state]}|None|n{number % 64}|{int(time.time()) - 900}"


# Linux counts the memory of the process that starts a command as the command's own (ru_maxrss outlives exec). So a
# small process starts it: this one holds the graph of all runs.
_STARTER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
with open(sys.argv[1], "wb") as output:
    process = subprocess.Popen(sys.argv[2:], stdout=output, stderr=output)
    _, status, used = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, used.ru_utime + used.ru_stime, used.ru_maxrss]))
"""


def measure(folder: Path, verb: str) -> Measurement:
    """Run one command in its own process and measure it."""
    argv = ["analysis", "many.yaml"] if verb == "analysis" else ["sweeps", verb, "many.yaml"]
    if verb == "plan":
        argv += ["--cluster", "slurm", "--cluster-config", str(folder / "cluster.yaml")]
        (folder / "cluster.yaml").write_text("all: {gpus: 1}\n", encoding="utf-8")
    environment = os.environ | import_path() | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "120"}
    output = folder / f"{verb}.txt"
    command = [sys.executable, "-c", _STARTER, str(output), sys.executable, "-m", *argv]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, encoding="utf-8")
    code, seconds, processor_s, kilobytes = json.loads(done.stdout)
    if code not in (0, 1):  # 1: some runs failed, which status says
        raise RuntimeError(output.read_text(encoding="utf-8")[-3000:])
    name = f"python -m {argv[0]}{'' if verb == 'analysis' else ' ' + verb}"
    return Measurement(name, seconds, processor_s, kilobytes / 1024)


def page(runs: int, measurements: Sequence[Measurement]) -> str:
    lines = []
    for measurement, goal in zip(measurements, TARGETS.values(), strict=True):
        times = f"{measurement.seconds:.1f} | {measurement.processor_s:.1f} | {goal:.0f}"
        lines.append(f"| `{measurement.command}` | {times} | {measurement.memory_mb:.0f} MB of {MEMORY_MB} |\n")
    return f"""# A study of {runs:,} runs

{runs:,} runs: half of them pretrainings, each with an evaluation; six of ten done, the others running, queued, failed
or new. Each command as a user starts it, imports included; SLURM's answers are texts of the size that a cluster would
print. Processor time is what an idle machine would need.

{conditions("make bench-sweeps")}
| command | seconds | of the processor | goal | peak memory |
|---|---|---|---|---|
{"".join(lines)}"""


if __name__ == "__main__":
    main()
