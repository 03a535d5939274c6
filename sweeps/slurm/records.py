"""What was submitted: `<runs>/jobs/<submission>/`. Results are never read here: they are in the run directories.

submission.yaml     who submitted what, from where; written first
arrays/<name>.json  the plan of one job (or array): its runs, in order, and their commands. It is written before sbatch
                    is called, so that a submitter that is killed in between leaves the name by which squeue knows it
jobs.jsonl          one line per run, with its job; appended once sbatch has returned
configs/            the resolved config of every run
logs/               the output of the jobs, and submitit's files
code/               the code of this submission
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime import files, yaml_files
from runtime.rundir import ELSEWHERE

JOBS = "jobs"


@dataclass(frozen=True)
class Job:
    """The job of one run."""

    run: str  # <stage>/<name>
    job: str  # 1234, or 1234_5 in an array
    submission: str
    name: str = ""  # of the job; every task of an array has the same
    resources: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0  # when it was recorded, in seconds since 1970


@dataclass(frozen=True)
class Submission:
    """One submission's folder."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def array_file(self, name: str) -> Path:
        return self.path / "arrays" / f"{name}.json"

    @classmethod
    def begin(cls, runs: Path, study: dict[str, str]) -> Submission:
        """Create the folder and submission.yaml. Nothing is queued by that."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        submission = cls(runs / JOBS / f"{stamp}-{secrets.token_hex(2)}")
        for folder in ("arrays", "configs", "logs"):
            (submission.path / folder).mkdir(parents=True)
        who = {"argv": shlex.join(sys.argv), "user": getpass.getuser(), "cwd": os.getcwd()}
        submission.describe(id=submission.id, time=time.time(), study=study, **who)
        return submission

    def describe(self, **values: Any) -> None:
        """Add to submission.yaml."""
        file = self.path / "submission.yaml"
        known = yaml_files.parse_dumped(file.read_text(encoding="utf-8")) if file.exists() else {}
        yaml_files.write_yaml(file, {**known, **values})

    def write_plan(self, name: str, array: dict[str, Any]) -> Path:
        """Write the plan of job `name`; from here on, `adopt` finds the job should this process be killed."""
        files.write_json(self.array_file(name), array)
        return self.array_file(name)

    def record(self, name: str, job: str) -> list[Job]:
        """Record the job `name`, to which SLURM gave the number `job`; one Job per run."""
        array = files.read_json(self.array_file(name)) or {"tasks": [], "resources": {}}
        tasks, now = array["tasks"], time.time()
        numbers = [f"{job}_{index}" for index in range(len(tasks))] if len(tasks) > 1 else [job]
        jobs = [
            Job(task["run"], number, self.id, name, array["resources"], now)
            for task, number in zip(tasks, numbers, strict=True)
        ]
        self._append([{**asdict(one), "part": array["part"]} for one in jobs])
        return jobs

    def abandon(self, name: str) -> None:
        """Record that sbatch made no job of that name."""
        self._append([{"name": name, "abandoned": True, "time": time.time()}])

    def unrecorded(self) -> list[str]:
        """Names of planned jobs with no recorded sbatch result."""
        planned = {file.stem for file in (self.path / "arrays").glob("*.json")}
        return sorted(planned - {row["name"] for row in self._rows()})

    def jobs(self) -> Iterator[Job]:
        for row in self._rows():
            if "job" in row:
                name, resources, time_s = row.get("name", ""), row.get("resources") or {}, row.get("time") or 0.0
                yield Job(row["run"], str(row["job"]), self.id, name, resources, float(time_s))

    def _rows(self) -> Iterator[dict[str, Any]]:
        return files.read_json_lines(self.path / "jobs.jsonl")

    def _append(self, rows: Sequence[dict[str, Any]]) -> None:
        with open(self.path / "jobs.jsonl", "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)  # drops half a line of a submitter that was killed
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())


def submissions(runs: str | Path) -> list[Submission]:
    """All submissions, oldest first."""
    return [Submission(folder) for folder in sorted(Path(runs).glob(f"{JOBS}/*/")) if folder.is_dir()]


def read_jobs(runs: str | Path) -> dict[str, Job]:
    """The newest job of each run that was ever submitted, by the run's <stage>/<name>."""
    newest: dict[str, Job] = {}
    for submission in submissions(runs):
        for job in submission.jobs():
            if job.run not in newest or newest[job.run].time <= job.time:
                newest[job.run] = job
    return newest


@contextmanager
def lock(runs: str | Path) -> Iterator[None]:
    """Submit one at a time: a second submitter waits, and then sees what the first one queued."""
    folder = Path(runs) / JOBS
    files.make_folder(folder, ELSEWHERE)
    with files.lock(folder / "lock"):
        yield
