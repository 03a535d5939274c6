"""Show the end of a run's output: what it wrote here, and what its newest SLURM job wrote."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from runtime.errors import UserError
from sweeps.failures import tail
from sweeps.graph import Graph, Node
from sweeps.verbs.request import Request, find_run
from sweeps.view import View, jobs_of, logs_of, look

HELP = "show the end of a run's output"
FOLLOW_SECONDS = 1.0
ASK_SECONDS = 10.0  # between two looks at whether the run has ended


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="its hash, its directory, or what `status` calls it")
    parser.add_argument("--lines", "-n", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run ends, or Ctrl-C")
    parser.add_argument("--paths", action="store_true", help="only where the files are")


def main(request: Request) -> int:
    arguments = request.arguments
    node = find_run(request.graph, arguments.run)
    logs = existing_logs(request.graph, node)
    if arguments.paths:
        print("\n".join(map(str, logs)))
        return 0
    if not logs and not arguments.follow:
        raise UserError(f"{node.title} has no output yet; `status` shows whether it was begun")
    for log in logs:
        print(f"==> {log} <==")
        print("\n".join(tail(log, arguments.lines)), flush=True)
    if arguments.follow:
        _follow(request.graph, node, logs)
    return 0


def existing_logs(graph: Graph, node: Node) -> list[Path]:
    """Those that hold something, the newest last."""
    found = [log for log in logs_of(node, jobs_of(graph).get(node)) if log.is_file() and log.stat().st_size]
    return sorted(found, key=lambda log: log.stat().st_mtime)


def _follow(graph: Graph, node: Node, logs: Sequence[Path]) -> None:
    """Print what comes, of files that are there and of those that come to be."""
    read = {log: log.stat().st_size for log in logs}
    asked = time.monotonic()
    while True:
        ended = False
        if time.monotonic() - asked >= ASK_SECONDS:
            asked, ended = time.monotonic(), not _goes_on(look(graph)[node])
        for log in existing_logs(graph, node):
            read[log] = _print_from(log, read.get(log, 0))
        if ended:
            return
        time.sleep(FOLLOW_SECONDS)


def _goes_on(view: View) -> bool:
    return view.state in ("running", "queued")


def _print_from(log: Path, start: int) -> int:
    """Print what the file holds after `start` bytes; where it ends now."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read()
    sys.stdout.write(text.decode(errors="replace"))
    sys.stdout.flush()
    return start + len(text)
