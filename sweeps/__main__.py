"""Plan, run and watch a study.

    python -m sweeps plan   sweeps/studies/quickstart.yaml             # what would run; nothing does
    python -m sweeps run    sweeps/studies/quickstart.yaml --workers 2
    python -m sweeps submit sweeps/studies/quickstart.yaml             # to SLURM, or here in the background
    python -m sweeps status sweeps/studies/quickstart.yaml --watch     # exit code 0 done, 1 failed, 3 not finished

`machine.*=value` after the study, for example machine.runs=/scratch/runs machine.device=cuda, holds for all its runs.
`python -m sweeps COMMAND --help` shows the options of a command.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.config import require
from runtime.console import make_parser
from runtime.errors import run_command
from sweeps import clean, control, show
from sweeps.failures import KINDS
from sweeps.graph import Graph, build
from sweeps.slurm.config import USER_FILE, default_cluster
from sweeps.study import load_study

# Each takes the graph of the study and its options, and returns an exit code. Its docstring is its help.
COMMANDS: dict[str, Callable[[Graph, argparse.Namespace], int]] = {
    "plan": show.plan,
    "run": control.run,
    "submit": control.submit,
    "status": show.status,
    "logs": show.logs,
    "retry": control.retry,
    "reconcile": control.reconcile,
    "cancel": control.cancel,
    "clean": clean.clean,
}


def main(argv: Sequence[str]) -> int:
    # They may stand anywhere among the options. The title of a run, which has a "=" too, has a space before it.
    words = [re.sub(r"^--(?=\w+\.[\w.]+=)", "", text) for text in argv]  # no option has a dot in its name
    machine = [text for text in words if re.match(r"[\w.]+=", text)]
    options = make_sweep_parser().parse_args([text for text in words if text not in machine])
    options.machine = tuple(machine)
    graph = build(load_study(options.study), machine)
    return COMMANDS[options.command](graph, options)


def make_sweep_parser() -> argparse.ArgumentParser:
    parser = make_parser("sweeps", __doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    for name, command in COMMANDS.items():
        text = inspect.getdoc(command) or ""
        one = commands.add_parser(
            name,
            help=text.partition("\n")[0].rstrip("."),
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=f"{parser.prog} {name} STUDY [options] [machine.key=value ...]",
        )
        one.add_argument("study", help="its YAML file, or its name, for example quickstart")
        _add_options(one, name)
        _add_placement_options(one, name)
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str) -> None:
    add, which = parser.add_argument, parser.add_mutually_exclusive_group()
    if command == "logs":
        add("run", help="its hash, its directory, or its title in `status`")
        add("--lines", "-n", type=int, default=40, help="default: %(default)s")
        add("--follow", "-f", action="store_true", help="continue until the run ends, or Ctrl-C")
        add("--paths", action="store_true", help="print only the paths of the files")
    if command == "clean":
        add("--checkpoints", action="store_true", help="also checkpoint.pt of pretrainings that are done")
        add("--yes", action="store_true", help="remove the files instead of only showing them")
    if command == "status":
        add("--all", action="store_true", help=f"show every run, even if there are more than {show.MAX_ROWS}")
        add(
            "--watch",
            type=float,
            nargs="?",
            const=10.0,
            metavar="SECONDS",
            help="repeat (every 10 seconds) until no run is active or queued",
        )
    if command in ("status", "plan"):
        add("--json", action="store_true", help="print JSON, for scripts")
    if command == "run":
        add("--only", metavar="HASH,...", help="run only these, given by their hashes")
    if command == "cancel":
        which.add_argument("--subtree", metavar="RUN", help="one pretraining and its evaluations")
    if command == "retry":
        which.add_argument("--kind", choices=tuple(KINDS), metavar="KIND", help=f"one of {', '.join(KINDS)}")
    if command in ("cancel", "retry"):
        which.add_argument("--run", metavar="RUN", help="one run: its hash, directory or title")


def _add_placement_options(parser: argparse.ArgumentParser, command: str) -> None:
    add = parser.add_argument
    if command in ("plan", "submit", "retry", "reconcile"):
        add(
            "--cluster",
            choices=("slurm", "local"),
            default=default_cluster(),
            help="slurm, or local: this machine, in the background (default here: %(default)s)",
        )
        add("--cluster-config", type=Path, help=f"default: {USER_FILE}")
    if command in ("plan", "run", "submit", "retry", "reconcile"):
        add(
            "--workers",
            type=_positive,
            help="runs at a time on this machine, sharing its cores (default: one per GPU; one per core, 8 at most)",
        )
        add("--gpus", type=int, metavar="N", help="GPUs of this machine to use (default: all; 0: none)")


def _positive(text: str) -> int:
    count = int(text)
    require(count >= 1, "--workers", count, "1 or more")
    return count


if __name__ == "__main__":
    run_command(main)
