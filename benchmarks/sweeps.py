"""How long a study of 10,000 runs takes to plan, to watch and to analyse, and how much memory.

    python -m benchmarks.sweeps             # writes benchmarks/sweeps.md
    python -m benchmarks.sweeps --runs 1000

The study is real (pretrain and eval configs of the project, read and named as for any study), its run directories are
made up: most are done, some run, wait, failed or are new. A program named sacct prints what a cluster would have
printed of their jobs. Each command is a process of its own, as a user starts it, so that imports count.
"""

from __future__ import annotations

import argparse
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

from runtime import provenance
from sweeps.graph import Graph, Node, build
from sweeps.study import load_study

TARGETS = {"plan": 10.0, "status": 5.0, "analysis": 20.0}  # seconds
MEMORY_MB = 1000
SEEDS_PER_RUNS = 1 / (4 * 25 * 2)  # of the grid below, with its evaluation
# Of ten: what became of a pretraining (and its evaluation).
FATES = ("done",) * 6 + ("running", "queued", "failed", "new")
PAGE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Measured:
    command: str
    seconds: float
    processor_s: float
    memory_mb: float  # at its peak


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--output", type=Path, default=PAGE, help="default: %(default)s")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        (folder / "many.yaml").write_text(yaml.safe_dump(study_of(options.runs)), encoding="utf-8")
        graph = build(load_study("many.yaml"))
        make_runs(graph)
        make_commands(folder, graph)
        measured = [measure(folder, verb) for verb in ("plan", "status", "analysis")]
    text = page(len(graph.nodes), measured)
    options.output.write_text(text, encoding="utf-8")
    print(text)


def study_of(runs: int) -> dict[str, Any]:
    """A grid of runs / 2 pretrainings with one evaluation each."""
    seeds = max(1, round(runs * SEEDS_PER_RUNS))
    grid = {
        "loss.alpha": [0.0, 0.5, 0.75, 1.0],
        "optimizer.base_lr": [round(0.001 * (i + 1), 4) for i in range(25)],
        "seed": list(range(seeds)),
    }
    return {
        "name": "many",
        "question": "How long does a large study take to handle?",
        "pretrain": {"config": "pretrain/configs/quickstart.yaml", "grid": grid},
        "evals": {"linear": {"stage": "linear", "config": "eval/configs/linear_scenes.yaml"}},
        "report": {"vary": "loss.alpha", "baseline": 1.0, "x": "linear.top1", "y": "pretrain.rank_local"},
    }


def make_runs(graph: Graph) -> None:
    """Run directories, written plainly: making them safely would take longer than all that is measured."""
    attempt = provenance.collect()
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    jobs = Path(graph.nodes[0].root) / "jobs" / "20260101-000000-abcd"
    jobs.mkdir(parents=True)
    now = time.time()
    with open(jobs / "jobs.jsonl", "w", encoding="utf-8") as records:
        for number, node in enumerate(graph.nodes):
            fate = fate_of(graph, node)
            if fate != "new":
                row = {"run": f"{node.identity.stage}/{node.run.name}", "job": job_of(number), "name": "many"}
                records.write(json.dumps(row | {"time": now - 1000, "resources": {"nodes": 1, "gpus": 1}}) + "\n")
            if fate in ("done", "running", "failed"):
                fill(node, fate, attempt, dumper, now)


def fate_of(graph: Graph, node: Node) -> str:
    """Evaluations are as far as their pretraining lets them."""
    top = node if node.parent is None else node.parent
    fate = FATES[int(top.identity.hash, 16) % len(FATES)]
    return fate if node is top or fate in ("done", "new") else "queued"


def job_of(number: int) -> str:
    """Arrays of a thousand."""
    return f"{1000 + number // 1000}_{number % 1000}"


def fill(node: Node, fate: str, attempt: dict[str, Any], dumper: Any, now: float) -> None:
    folder, identity = node.run.path, node.identity
    folder.mkdir(parents=True)
    document = {"stage": identity.stage, "format": 1, "hash": identity.hash, "parent": identity.parent}
    document |= {"config": identity.config, "machine": {}, "attempts": [attempt]}
    (folder / "run.yaml").write_text(yaml.dump(document, Dumper=dumper, sort_keys=False), encoding="utf-8")
    (folder / "lock").touch()
    beat = {"host": "elsewhere", "pid": 1, "job": "1", "time": now + 1e6, "ended": fate != "running"}
    (folder / "heartbeat.json").write_text(
        json.dumps(beat | {"progress": {"done": 7, "total": 9, "unit": "steps"}}), encoding="utf-8"
    )
    if node.parent is None:
        rows = ({"step": i, "epoch": i // 9, "time": now, "seconds": float(i), "loss": 9.0} for i in range(1, 25))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    score = int(identity.hash, 16) % 1000 / 10
    if fate == "done":
        result = {"top1": score, "seconds": 60.0} if node.parent else {"rank_local": score, "seconds": 300.0, "loss": 9}
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    if fate == "failed":
        record = {"class": "RuntimeError", "message": "CUDA error", "time": now}
        (folder / "failure.json").write_text(json.dumps(record), encoding="utf-8")


def make_commands(folder: Path, graph: Graph) -> None:
    """sacct of that cluster, with the steps that a real one lists too; squeue, which knows the same arrays."""
    states = {"done": "COMPLETED", "running": "RUNNING", "queued": "PENDING", "failed": "FAILED"}
    (folder / "bin").mkdir()
    for name, lines in (("sacct", _accounting(graph, states)), ("squeue", _queue(graph, states))):
        output, script = folder / f"{name}.txt", folder / "bin" / name
        output.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        script.write_text(f"#!/bin/sh\nexec cat {output}\n", encoding="utf-8")
        script.chmod(0o755)


def _accounting(graph: Graph, states: dict[str, str]) -> Iterator[str]:
    for number, node in enumerate(graph.nodes):
        fate = fate_of(graph, node)
        if fate == "new":
            continue
        code = "1:0" if fate == "failed" else "0:0"
        rest = f"{code}|n{number % 64}|300|{int(time.time()) - 900}|None"
        yield f"{job_of(number)}|{states[fate]}|{rest}"
        if fate != "queued":
            for step in ("batch", "extern", "0"):
                yield f"{job_of(number)}.{step}|{states[fate]}|{rest}"


def _queue(graph: Graph, states: dict[str, str]) -> Iterator[str]:
    for number, node in enumerate(graph.nodes):
        if (fate := fate_of(graph, node)) in ("running", "queued"):
            yield f"{job_of(number)}|{states[fate]}|None|n{number % 64}|5:00|{int(time.time()) - 900}"


def measure(folder: Path, verb: str) -> Measured:
    """Wall time and peak memory of one command."""
    argv = ["analysis", "many.yaml"] if verb == "analysis" else ["sweeps", verb, "many.yaml"]
    if verb == "plan":
        argv += ["--cluster", "slurm", "--cluster-config", str(folder / "cluster.yaml")]
        (folder / "cluster.yaml").write_text("all: {gpus: 1}\n", encoding="utf-8")
    environment = (
        os.environ | provenance.import_path() | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "COLUMNS": "120"}
    )
    began = time.perf_counter()
    with open(folder / f"{verb}.txt", "wb") as output:
        process = subprocess.Popen([sys.executable, "-m", *argv], env=environment, stdout=output, stderr=output)
        _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: some runs failed, which status says
        raise RuntimeError((folder / f"{verb}.txt").read_text(encoding="utf-8")[-3000:])
    name = f"python -m {argv[0]}{'' if verb == 'analysis' else ' ' + verb}"
    return Measured(name, seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def page(runs: int, measured: Sequence[Measured]) -> str:
    where = f"{provenance.processor_name()}, {len(os.sched_getaffinity(0))} cores"
    commit, load = (provenance.commit() or "unknown")[:10], os.getloadavg()[0]
    lines = [
        f"# A study of {runs:,} runs",
        "",
        f"`make bench-sweeps`, commit {commit}, {where}, load {load:.1f} (what else the machine had to do).",
        f"{runs:,} runs: half of them pretrainings, each with an evaluation; six of ten done, the others at work,",
        "queued, failed or new. Each command as a user starts it, imports included; SLURM's answers are texts of the",
        "size that a cluster would print. Processor time is what a quiet machine would need.",
        "",
        "| command | seconds | of the processor | goal | peak memory |",
        "|---|---|---|---|---|",
    ]
    for one, goal in zip(measured, TARGETS.values(), strict=True):
        took = f"{one.seconds:.1f} | {one.processor_s:.1f} | {goal:.0f}"
        lines.append(f"| `{one.command}` | {took} | {one.memory_mb:.0f} MB of {MEMORY_MB} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
