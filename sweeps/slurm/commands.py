"""The commands of SLURM: sbatch, squeue, sacct, scontrol and scancel are run here alone.

What squeue and sacct print is read in job_states.py; jobs are queued by submitit, in submit.py.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Sequence

from runtime.errors import UserError

# A query that takes longer counts as unanswered: a busy slurmdbd must not hold up a status.
QUERY_SECONDS = 20.0
# A controller that is being restarted answers again within this long.
RESTART_SECONDS = 60.0
# A job that has saved and must be requeued waits this long for a controller that is away.
REQUEUE_SECONDS = 600.0
UNKNOWN_ASKED = 6  # times, five seconds apart
_NO_CONTROLLER = re.compile(r"unable to contact|timed out|connection refused", re.IGNORECASE)
_FORGOTTEN = "Invalid job id"  # squeue's words where the controller knows none of the jobs
_JOBS_PER_QUERY = 10_000  # Linux takes 131,072 characters in one argument
_JOBS_PER_SCANCEL = 500


def accounting(jobs: Sequence[str], since: float | None = None) -> str | None:
    """What sacct prints about the jobs; None where it is missing, off, unreachable or slow.

    `since` (seconds since 1970) leaves out older jobs of the same number.
    """
    fields = "--format=JobID,State,ExitCode,NodeList,ElapsedRaw,Submit,Reason"
    argv = ["sacct", "--parsable2", "--noheader", "--duplicates", fields]
    start = [] if since is None else [f"--starttime=now-{max(60, int(time.time() - since) + 60)}seconds"]
    return _query_all(argv, jobs, start)


def queue(jobs: Sequence[str]) -> str | None:
    """What squeue prints about the jobs, "" where all are forgotten; None where no controller answers."""
    return _query_all(["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%M|%V"], jobs)


def numbers_by_name() -> dict[str, str]:
    """The number of every job (or array) of this user that the controller remembers, by the job's name."""
    rows = _require(["squeue", "--noheader", "--me", "--states=all", "--format=%F|%j"]).splitlines()
    return {name: job for job, _, name in (row.partition("|") for row in rows)}


def max_array_size() -> int:
    """How many tasks an array may have on this cluster; 1 where arrays are off."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _require(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(match[1])) if match else 1


def test_only(script: str) -> None:
    """Let sbatch check a batch script without queueing it; UserError with its words where it refuses."""
    _require(["sbatch", "--test-only"], script)


def scancel(jobs: Sequence[str]) -> None:
    """Cancel the jobs. UserError where scancel fails, except for jobs that have ended meanwhile."""
    for start in range(0, len(jobs), _JOBS_PER_SCANCEL):
        argv = ["scancel", "--quiet", *jobs[start : start + _JOBS_PER_SCANCEL]]
        try:
            done = _run(argv, timeout_s=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"scancel cannot be run: {error}") from error
        if done.returncode and _FORGOTTEN not in done.stderr:
            raise UserError(f"scancel failed: {done.stderr.strip()}; repeat the command")


def state_and_reason(job: str) -> str | None:
    """STATE|REASON of one job; "" where the controller knows no such job, None where it does not answer."""
    for _ in range(UNKNOWN_ASKED):
        argv = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r"]
        done = _run(argv, patience_s=REQUEUE_SECONDS)
        if _has_no_controller(done):
            return None
        if lines := done.stdout.strip().splitlines():
            return lines[0]
        time.sleep(5.0)  # a controller that has just come back may not have read its jobs yet
    return ""


def requeue(job: str) -> str:
    """Let scontrol requeue the job; "" where that worked or the job waits already, else why it did not."""
    done = _run(["scontrol", "requeue", job], patience_s=REQUEUE_SECONDS)
    if _has_no_controller(done):
        return "the controller does not answer"
    waits_already = re.search("pending", done.stderr, re.IGNORECASE)
    return done.stderr.strip() if done.returncode and not waits_already else ""


def number_of(job: str) -> str:
    """The number of a job, or of the array of a task: "7_3" and "7_[0-2]" -> "7"."""
    return job.partition("_")[0]


def last_words(text: str) -> str:
    """What a failed command says, in one line: its own lines, without the warnings around them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(sbatch|squeue|scontrol): ", line)]
    return "; ".join(own[-3:] or lines[-2:] or ["it said nothing"])


def _run(
    argv: Sequence[str], script: str | None = None, timeout_s: float | None = None, patience_s: float = 0.0
) -> subprocess.CompletedProcess[str]:
    """Run a command; repeat it for `patience_s` while no controller answers.

    Raises OSError where it cannot be started, TimeoutExpired where it takes longer than `timeout_s`.
    """
    # Times as seconds since 1970, and lists of array tasks that are never cut off.
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    deadline = time.monotonic() + patience_s
    while True:
        done = subprocess.run(
            argv,
            input=script,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout_s,
            check=False,
        )
        if not _has_no_controller(done) or time.monotonic() >= deadline:
            return done
        time.sleep(2.0)


def _has_no_controller(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode != 0 and _NO_CONTROLLER.search(done.stderr) is not None


def _require(argv: Sequence[str], script: str | None = None) -> str:
    """What a command prints; UserError with its words where it fails."""
    try:
        done = _run(argv, script, patience_s=RESTART_SECONDS)
    except OSError as error:
        raise UserError(f"{argv[0]} cannot be started ({error}): is this a login node of a cluster?") from error
    if done.returncode:
        raise UserError(f"{shlex.join(argv)} failed: {last_words(done.stderr)}")
    return done.stdout


def _query_all(argv: Sequence[str], jobs: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """What the command prints about all of the jobs; None where one of its calls is not answered."""
    numbers = list(dict.fromkeys(map(number_of, jobs)))  # arrays as a whole
    text = ""
    for start in range(0, len(numbers), _JOBS_PER_QUERY):
        chosen = ",".join(numbers[start : start + _JOBS_PER_QUERY])
        try:
            done = _run([*argv, f"--jobs={chosen}", *options], timeout_s=QUERY_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and _FORGOTTEN not in done.stderr:
            return None
        text += done.stdout
    return text
