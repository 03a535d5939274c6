"""Show what of a study can be removed, and with --yes remove it. Never a result, never what belongs to a run at work.

Always: temporary files of writers that were killed, and the code and logs of submissions none of whose jobs is left
and none of whose runs has failed. With --checkpoints also checkpoint.pt of pretrainings that are done: their
evaluations need the backbone alone, and nothing else of them is lost but the state to train on from.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runtime import files
from sweeps.graph import Node
from sweeps.slurm import queue
from sweeps.slurm.records import submissions
from sweeps.study import PRETRAIN
from sweeps.verbs.request import Request
from sweeps.view import View, look

HELP = "remove leftovers, old submissions and, on request, checkpoints of done runs"


@dataclass(frozen=True)
class Item:
    """One file or folder that can go."""

    path: Path
    why: str
    run: Path | None = None  # the run directory that it lies in

    def size(self) -> int:
        """Bytes."""
        if not self.path.is_dir():
            return self.path.stat().st_size
        return sum(file.lstat().st_size for file in self.path.rglob("*") if not file.is_dir())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoints", action="store_true", help="also checkpoint.pt of pretrainings that are done")
    parser.add_argument("--yes", action="store_true", help="remove it; without this it is only shown")
    parser.add_argument("--dry-run", action="store_true", help="only show (which is the default)")


def main(request: Request) -> int:
    arguments = request.arguments
    views = look(request.graph)
    items = [*leftovers(views), *(checkpoints(views) if arguments.checkpoints else []), *old_submissions(views)]
    console = Console(highlight=False, soft_wrap=True)
    if not items:
        console.print("nothing to remove")
        return 0
    total = _show(console, items)
    if not arguments.yes or arguments.dry_run:
        console.print(f"{_megabytes(total)} in all; nothing was removed: --yes does it")
        return 0
    kept = [item for item in items if not remove(item)]
    for item in kept:
        console.print(f"kept {item.path}: somebody works there now")
    console.print(f"removed {len(items) - len(kept)} of {len(items)}, {_megabytes(total)} in all")
    return 0


def leftovers(views: Mapping[Node, View]) -> list[Item]:
    """Temporary files of runs that nobody works on."""
    idle = [view.node.run.path for view in views.values() if view.state not in ("running", "new")]
    return [Item(file, "left by a writer that was killed", run) for run in idle for file in sorted(run.glob(".*.tmp"))]


def checkpoints(views: Mapping[Node, View]) -> list[Item]:
    """Training states of pretrainings that are done and have their backbone."""
    done = [v.node.run.path for v in views.values() if v.state == "done" and v.node.stage.name == PRETRAIN]
    found = [run for run in done if (run / "checkpoint.pt").is_file() and (run / "backbone.safetensors").is_file()]
    return [Item(run / "checkpoint.pt", "the run is done", run) for run in found]


def old_submissions(views: Mapping[Node, View]) -> list[Item]:
    """Code and logs of submissions of these runs alone, whose jobs SLURM says are over or has forgotten."""
    roots = {Path(node.root) for node in views}
    names = {f"{view.node.identity.stage}/{view.node.run.name}" for view in views.values()}
    needed = {view.job.submission for view in views.values() if view.job is not None and view.failure is not None}
    found = []
    for submission in (one for root in sorted(roots) for one in submissions(root)):
        jobs = list(submission.jobs())
        there = [folder for folder in (submission.code, submission.logs) if folder.is_dir()]
        ours = bool(jobs) and {job.run for job in jobs} <= names and not submission.unrecorded()
        if there and ours and submission.id not in needed:
            answers = queue.ask([job.job for job in jobs], since=min(job.time for job in jobs))
            if all(info.ended or info.gone for info in answers.values()):
                found += [Item(path, "its jobs are over") for path in there]
    return found


def remove(item: Item) -> bool:
    """Remove it unless somebody works in its run directory now; whether it is gone."""
    if item.run is None:
        shutil.rmtree(item.path, ignore_errors=True)
        return True
    with files.lock(item.run / "lock", wait=False) as free:  # the lock that the run's own process holds
        if free:
            item.path.unlink(missing_ok=True)
        return free


def _show(console: Console, items: Sequence[Item]) -> int:
    total = 0
    for item in items:
        size = item.size()
        total += size
        console.print(f"{_megabytes(size):>12}  {item.path}  ({item.why})", markup=False)
    return total


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
