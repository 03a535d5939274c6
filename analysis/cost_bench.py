"""Measure the time and the memory of a training step at every setting of a study, on an idle machine.

    python -m analysis.cost_bench sweeps/studies/scenes.yaml [--rounds 3] [--steps 20] [machine.device=cuda ...]

Each setting is trained for a few steps with the first seed, all in turns, round after round, so that a machine that
slows down slows all of them. The second half of the steps is timed. Writes reports/<study>/cost.csv, which the report
shows; without it a report shows no cost of a step, because trainings that share a machine say nothing of it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.cost import MEMORY, TIME
from analysis.report_data import COSTS
from analysis.results import commit_name
from runtime import files, provenance
from runtime.console import make_parser
from runtime.device import available_cores
from runtime.errors import UserError, run_command
from runtime.rundir import Run
from sweeps.checkpoints import PRETRAIN
from sweeps.graph import Node, build
from sweeps.keys import as_text
from sweeps.study import is_seed, load_study

IDLE = 0.5  # processes a core that want to run, by the load of the last minute; above it a machine is busy


def main(argv: Sequence[str]) -> None:
    parser = make_parser("analysis.cost_bench", __doc__)
    parser.add_argument("study", help="its YAML file, or its name, such as scenes")
    parser.add_argument("machine", nargs="*", default=[], help="machine.device=cuda and the like")
    parser.add_argument("--rounds", type=int, default=3, help="times that each setting is measured (default: 3)")
    parser.add_argument("--steps", type=int, default=20, help="of each measurement (default: 20)")
    parser.add_argument("--reports", default="reports", help="the folder of the reports (default: %(default)s)")
    parser.add_argument("--busy", action="store_true", help="measure on a busy machine too")
    options = parser.parse_intermixed_args(argv)
    if options.rounds < 1 or options.steps < 2:
        raise UserError(f"--rounds {options.rounds} --steps {options.steps}: expected 1 round and 2 steps or more")
    load = os.getloadavg()[0] / available_cores()
    if load > IDLE and not options.busy:
        raise UserError(
            f"{load:.1f} processes a core want to run, and times would be of them too; expected {IDLE} or fewer. "
            "Wait until the machine is idle, or measure with --busy"
        )
    frame = measure(options.study, options.rounds, options.steps, options.machine)
    folder = Path(options.reports) / load_study(options.study).name
    files.make_folder(folder, "write elsewhere: --reports FOLDER")
    files.write_text(folder / COSTS, frame.assign(load=round(load, 2)).to_csv(index=False))
    print(folder / COSTS)


def measure(study_file: str, rounds: int, steps: int, machine: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row for each setting and round: its grid values, ms a step, gigabytes at most, machine and commit."""
    study = load_study(study_file)
    if study.pretrain is None:
        raise UserError(f"{study_file} has no pretrainings: there is no step to measure")
    first = {key: values[0] for key, values in study.grid.items() if is_seed(key)}
    points = [p for p in build(study, machine).points if p.control is None and p.pretrain.stage.name == PRETRAIN]
    settings = {
        p.pretrain: {f"grid.{key}": as_text(p.varied[key]) for key in study.row_keys}
        for p in points
        if all(p.varied[key] == seed for key, seed in first.items())
    }
    known = provenance.collect()
    where = {"machine": f"{known.get('gpu') or known.get('processor')}, {known.get('cores')} cores"}
    where["commit"] = commit_name(known)
    rows: list[dict[str, Any]] = []
    for number in range(rounds):
        for node, setting in settings.items():
            rows.append(setting | {"round": number} | _run(node, steps, machine) | where)
            print(f"round {number + 1} of {rounds}, {node.label}: {rows[-1][TIME]:.0f} ms a step", flush=True)
    return pd.DataFrame(rows)


def _run(node: Node, steps: int, machine: Sequence[str]) -> dict[str, float]:
    """Train a few steps in a folder of its own, and return what they cost."""
    half = steps // 2
    short = [f"train.duration={2 * half} steps", "optimizer.warmup=0 steps", f"machine.log_steps={half}"]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*node.overrides, *machine, *short, f"machine.runs={folder}"]
        done = subprocess.run(
            node.stage.argv(node.config_file, overrides, None), capture_output=True, encoding="utf-8", errors="replace"
        )
        if done.returncode:
            raise UserError(f"{node.label} could not be measured: {done.stderr.strip()[-500:]}")
        (path,) = Path(folder, "pretrain").iterdir()
        run = Run(path)
        seconds = [row["seconds"] for row in run.metrics() if "loss" in row]
        memory = (run.result() or {}).get("peak_memory_gb", float("nan"))
    return {TIME: 1000 * (seconds[-1] - seconds[-2]) / half, MEMORY: float(memory)}


if __name__ == "__main__":
    run_command(main)
