"""The records of submissions: `<runs>/jobs/<submission>/`. Results are in the run directories alone.

submission.yaml     who submitted what, from where; written first
arrays/<name>.json  the plan of one job (or array): its runs, in order, and their commands. It is written before sbatch
                    is called: if the submitter is killed and sbatch's answer is lost, squeue still knows that name
jobs.jsonl          one line per run, with its job; appended once sbatch has answered
configs/            the resolved config of every run
logs/               the output of the jobs, and submitit's files
code/               the code of this submission, which its jobs run
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from runtime import PROJECT, files, provenance, yaml_files
from runtime.provenance import SNAPSHOT, Code, NoCommitError
from runtime.rundir import ELSEWHERE

JOBS = "jobs"
# In a checkout: made by the code, or of no use to a run.
_NOT_COPIED = frozenset({"reports", "runs", ".ci", ".github"})


@dataclass(frozen=True)
class Job:
    """The job of one run."""

    run: str  # <stage>/<name>
    job: str  # 1234, or 1234_5 in an array
    submission: str
    name: str = ""  # in SLURM; every task of an array has the same
    resources: dict[str, Any] = field(default_factory=dict)
    time: float = 0.0  # of this record, in seconds since 1970


@dataclass(frozen=True)
class Submission:
    """The folder of one submission."""

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
        """Create the folder and submission.yaml; nothing is queued yet."""
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
        """Write the plan of job `name`; from here on, `adopt` finds the job if this process is killed."""
        files.write_json(self.array_file(name), array)
        return self.array_file(name)

    def record(self, name: str, job: str) -> list[Job]:
        """Record that SLURM gave the job `name` the id `job`; return one Job per run."""
        array = files.read_json_object(self.array_file(name)) or {"tasks": [], "resources": {}}
        tasks, now = array["tasks"], time.time()
        ids = [f"{job}_{index}" for index in range(len(tasks))] if len(tasks) > 1 else [job]
        jobs = [
            Job(task["run"], one, self.id, name, array["resources"], now) for task, one in zip(tasks, ids, strict=True)
        ]
        known = {row.get("job") for row in self._rows() if row["name"] == name}  # written before the disk was full
        self._append([{**asdict(one), "part": array["part"]} for one in jobs if one.job not in known])
        return jobs

    def abandon(self, name: str) -> None:
        """Record that sbatch made no job of that name."""
        self._append([{"name": name, "abandoned": True, "time": time.time()}])

    def unrecorded(self) -> list[str]:
        """List the names of planned jobs without sbatch's answer for all of their runs.

        A disk that was full, or a machine that crashed, can leave a part of an array's rows.
        """
        rows = Counter(row["name"] for row in self._rows())
        abandoned = {row["name"] for row in self._rows() if "abandoned" in row}
        planned = sorted(file.stem for file in (self.path / "arrays").glob("*.json"))
        return [name for name in planned if name not in abandoned and rows[name] < self._planned_rows(name)]

    def _planned_rows(self, name: str) -> int:
        array = files.read_json_object(self.array_file(name)) or {}
        return max(1, len(array.get("tasks", ())))

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
            file.truncate(file.read().rfind(b"\n") + 1)  # drop half a line of a submitter that was killed
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())


def submissions(runs: str | Path) -> list[Submission]:
    """List all submissions, oldest first."""
    return [Submission(folder) for folder in sorted(Path(runs).glob(f"{JOBS}/*/")) if folder.is_dir()]


def read_jobs(runs: str | Path) -> dict[str, Job]:
    """Return the newest job of each run that was ever submitted, by the run's <stage>/<name>."""
    newest: dict[str, Job] = {}
    for submission in submissions(runs):
        for job in submission.jobs():
            if job.run not in newest or newest[job.run].time <= job.time:
                newest[job.run] = job
    return newest


@contextmanager
def lock(runs: str | Path) -> Iterator[None]:
    """Let one submitter work at a time: a second one waits, and then sees the jobs of the first."""
    folder = Path(runs) / JOBS
    files.make_folder(folder, ELSEWHERE)
    with files.lock(folder / "lock"):
        yield


def copy_code(folder: Path) -> Code:
    """Copy the project's files, uncommitted and untracked ones too, to `folder`; return what identifies them.

    Python pickles functions by name, so without a copy a job would read the code as it is when the job starts: an edit
    would change runs that were submitted before it, half of a study, or a run between two attempts.
    """
    for name in _code_files():
        source, target = PROJECT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    code = provenance.code()
    try:
        untracked = provenance.checkout_files("--others")
    except NoCommitError:
        untracked = []
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    files.write_json(folder / SNAPSHOT, {**asdict(code), "untracked": untracked, "taken": stamp})
    return code


def _code_files() -> list[str]:
    """List files below the project's folder: in a checkout those that git tracks or would, else our own packages."""
    try:
        listed = provenance.checkout_files("--cached", "--others")
    except NoCommitError:
        listed = [*provenance.package_files(), "pyproject.toml"]
    chosen = [name for name in listed if not _NOT_COPIED & set(Path(name).parts)]
    return [name for name in chosen if (PROJECT / name).is_file()]  # a deletion may not be committed yet
