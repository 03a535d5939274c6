"""A run that somebody cancelled says so in its directory: it is not put back into a queue and not begun by itself."""

from __future__ import annotations

import getpass
import time

from runtime import files
from runtime.rundir import Run

FILE = "cancelled.json"
BY_OWNER = "let its owner cancel it"


def mark(run: Run) -> None:
    files.make_folder(run.path, BY_OWNER)
    files.write_json(run.path / FILE, {"time": time.time(), "by": getpass.getuser()})


def forgive(run: Run) -> None:
    """Who begins or submits the run again wants it again."""
    (run.path / FILE).unlink(missing_ok=True)


def is_cancelled(run: Run, since: float = 0.0) -> bool:
    """Whether it was cancelled after `since` (seconds since 1970)."""
    record = files.read_json(run.path / FILE)
    return isinstance(record, dict) and float(record.get("time") or 0.0) >= since
