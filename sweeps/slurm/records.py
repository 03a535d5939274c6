"""Which jobs were submitted for which runs: `<runs>/jobs/<submission>/jobs.jsonl`, one line a run.

They say where to look and whom to ask; whether a run is done, its own directory says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import files

JOBS = "jobs"


@dataclass(frozen=True)
class Job:
    """One run's place in one submission."""

    run: str  # "pretrain/<name>"
    job: str  # "1234_5" or "1234"
    submission: str
    name: str = ""  # of the job
    resources: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0  # seconds since 1970


def read_jobs(runs: Path) -> dict[str, Job]:
    """The newest job of each run under the folder `runs`; a line that a kill cut off is left out."""
    newest: dict[str, Job] = {}
    for file in sorted((runs / JOBS).glob("*/jobs.jsonl")):
        for row in files.read_json_lines(file):
            job = Job(
                row["run"],
                str(row["job"]),
                file.parent.name,
                row.get("name", ""),
                row.get("resources") or {},
                float(row.get("time") or 0.0),
            )
            if job.run not in newest or newest[job.run].time <= job.time:
                newest[job.run] = job
    return newest
