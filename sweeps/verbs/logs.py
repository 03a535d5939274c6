"""The verb `logs`: the end of a run's output."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError
from sweeps.failures import tail
from sweeps.graph import Graph, Node
from sweeps.status import jobs_of, logs_of, read_status
from sweeps.verbs import Request, find_run

FOLLOW_SECONDS = 1.0
STATUS_SECONDS = 10.0  # between two checks of whether the run has ended


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="its hash, its directory, or its title in `status`")
    parser.add_argument("--lines", "-n", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--follow", "-f", action="store_true", help="continue until the run ends, or Ctrl-C")
    parser.add_argument("--paths", action="store_true", help="print only the paths of the files")


def logs(request: Request) -> int:
    """Show the end of a run's output: its own log here, and that of its newest SLURM job."""
    arguments = request.arguments
    node = find_run(request.graph, arguments.run)
    existing = existing_logs(request.graph, node)
    if arguments.paths:
        print("\n".join(map(str, existing)))
        return 0
    if not existing and not arguments.follow:
        raise UserError(f"{node.title} has no output yet; `status` shows whether it has begun")
    for log in existing:
        print(f"==> {log} <==")
        print("\n".join(tail(log, arguments.lines)), flush=True)
    if arguments.follow:
        _follow(request.graph, node, existing)
    return 0


def existing_logs(graph: Graph, node: Node) -> list[Path]:
    """Its logs that are not empty, the newest last."""
    logs = [log for log in logs_of(node, jobs_of(graph).get(node)) if log.is_file() and log.stat().st_size]
    return sorted(logs, key=lambda log: log.stat().st_mtime)


def _follow(graph: Graph, node: Node, shown: Sequence[Path]) -> None:
    """Print what is appended to these logs and to new ones, until the run ends."""
    read = {log: log.stat().st_size for log in shown}
    checked, ended = time.monotonic(), False
    while not ended:
        time.sleep(FOLLOW_SECONDS)
        if time.monotonic() - checked >= STATUS_SECONDS:
            checked, ended = time.monotonic(), read_status(graph)[node].state not in ("running", "queued")
        for log in existing_logs(graph, node):  # after the check, so that the last lines of a run that ended are shown
            read[log] = _print_from(log, read.get(log, 0))


def _print_from(log: Path, start: int) -> int:
    """Print the file from byte `start` on; return where it ends now."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(text)
