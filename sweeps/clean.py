"""The command `clean`: remove files of a study that nothing needs any more."""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from runtime import files
from sweeps.checkpoints import PRETRAIN, RUN
from sweeps.graph import Graph, Node
from sweeps.slurm import commands
from sweeps.slurm.records import submissions
from sweeps.status import RunStatus, read_status


@dataclass(frozen=True)
class Item:
    """One file or folder that can be removed."""

    path: Path
    reason: str
    run: Path | None = None  # the run directory that holds it

    def size(self) -> int:
        """Bytes."""
        if not self.path.is_dir():
            return self.path.stat().st_size
        return sum(file.lstat().st_size for file in self.path.rglob("*") if not file.is_dir())


def clean(graph: Graph, options: Namespace) -> int:
    """Show what can be removed, and remove it with --yes. Never a result, never what belongs to an active run.

    Always: temporary files of writers that were killed, and code and logs of submissions whose jobs are all over and
    whose runs have not failed. With --checkpoints also checkpoint.pt of pretrainings that are done: evaluations need
    the backbone alone, and only the state for training on is lost.
    """
    statuses = {node: status for node, status in read_status(graph).items() if node.part != RUN}  # not this study's
    items = [*_leftovers(statuses), *(_checkpoints(statuses) if options.checkpoints else []), *_submissions(statuses)]
    console = Console(highlight=False, soft_wrap=True)
    if not items:
        console.print("nothing to remove")
        return 0
    sizes = [item.size() for item in items]
    for item, size in zip(items, sizes, strict=True):
        console.print(f"{_megabytes(size):>12}  {item.path}  ({item.reason})", markup=False)
    total = _megabytes(sum(sizes))
    if not options.yes:
        console.print(f"{total} in all; nothing was removed: --yes removes it")
        return 0
    kept = [item for item in items if not _remove(item)]
    for item in kept:
        console.print(f"kept {item.path}: a process uses its run now")
    console.print(f"removed {len(items) - len(kept)} of {len(items)}, {total} in all")
    return 0


def _leftovers(statuses: Mapping[Node, RunStatus]) -> list[Item]:
    """List temporary files of runs that no process works on."""
    idle = [status.node.run.path for status in statuses.values() if status.state not in ("running", "new")]
    return [Item(file, "left by a writer that was killed", run) for run in idle for file in sorted(run.glob(".*.tmp"))]


def _checkpoints(statuses: Mapping[Node, RunStatus]) -> list[Item]:
    """List training states of pretrainings that are done and have their backbone."""
    done = [s.node.run.path for s in statuses.values() if s.state == "done" and s.node.stage.name == PRETRAIN]
    whole = [run for run in done if (run / "checkpoint.pt").is_file() and (run / "backbone.safetensors").is_file()]
    return [Item(run / "checkpoint.pt", "the run is done", run) for run in whole]


def _submissions(statuses: Mapping[Node, RunStatus]) -> list[Item]:
    """List code and logs of submissions that have only runs of this study, and no job that waits or runs."""
    roots = {Path(node.root) for node in statuses}
    names = {status.node.name for status in statuses.values()}
    needed = {
        status.job.submission for status in statuses.values() if status.job is not None and status.failure is not None
    }
    items: list[Item] = []
    for submission in (one for root in sorted(roots) for one in submissions(root)):
        jobs = list(submission.jobs())
        present = [folder for folder in (submission.code, submission.logs) if folder.is_dir()]
        # Of a planned job without an answer of sbatch it is not known whether it runs this code.
        ours = bool(jobs) and {job.run for job in jobs} <= names and not submission.unrecorded()
        if present and ours and submission.id not in needed:
            answers = commands.query([job.job for job in jobs], since=min(job.time for job in jobs))
            if all(info.ended or info.gone for info in answers.values()):
                items += [Item(path, "its jobs are over") for path in present]
    return items


def _remove(item: Item) -> bool:
    """Remove it, unless a process works in its run directory now; return whether it is gone."""
    if item.run is None:
        shutil.rmtree(item.path, ignore_errors=True)
        return True
    with files.lock(item.run / "lock", wait=False) as free:  # the lock that the run's own process holds
        if free:
            item.path.unlink(missing_ok=True)
        return free


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
