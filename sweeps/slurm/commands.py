"""Run SLURM's commands: sbatch, squeue, sacct, scontrol and scancel. parse.py reads what they print.

submitit calls the sbatch that queues a job (submit.py).
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace

from runtime.errors import UserError
from sweeps.slurm import parse
from sweeps.slurm.parse import UNKNOWN, JobInfo, array_id

# A query that takes longer counts as unanswered: a busy slurmdbd must not hold up a status.
QUERY_SECONDS = 20.0
# A controller that is being restarted answers again within this time.
RESTART_SECONDS = 60.0
# A job that has saved and must be requeued waits this long for a controller that does not answer.
REQUEUE_SECONDS = 600.0
UNKNOWN_JOB_QUERIES = 6  # five seconds apart
_JOBS_PER_QUERY = 10_000  # Linux takes 131,072 characters in one argument
_JOBS_PER_SCANCEL = 500
# Variables of the user's shell, by the beginning of their names, that would hide jobs or change what is printed.
_USER_OPTIONS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")


def query(jobs: Sequence[str], since: float | None = None) -> dict[str, JobInfo]:
    """Ask SLURM about every one of `jobs` ("1234" or "1234_5"); never raises.

    `since` (seconds since 1970) leaves out older jobs with the same number.

    Neither sacct nor squeue is enough. Accounting may be off, slow or late, and never learns of the end of a job that
    slurmctld forgot in a crash; the controller forgets a job minutes after its end. The answer is a hint: whether a run
    is done, its run directory decides.
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    accounted = parse.parse_accounting(_accounting(wanted, since) or "", wanted)
    infos = {job: accounted.get(job, JobInfo()) for job in wanted}
    unsettled = [job for job, info in infos.items() if not info.settled]
    text = _queue(unsettled) if unsettled else ""
    if text is None:  # a job that accounting does not know may still wait: only the controller could exclude that
        return {job: JobInfo() if info.state == UNKNOWN else info for job, info in infos.items()}
    queued, arrays = parse.parse_queue(text, unsettled), parse.arrays_in(text)
    return infos | {job: _combine(infos[job], queued.get(job), array_id(job) in arrays) for job in unsettled}


def _combine(accounted: JobInfo, queued: JobInfo | None, array_is_known: bool) -> JobInfo:
    """Decide which of sacct and squeue is right about a job; `queued` is None if the controller does not list it."""
    if queued is not None and (accounted.state == UNKNOWN or not queued.ended):
        # Accounting is late, or off. Accounting says more about an end that both know.
        return replace(queued, restarts=accounted.restarts)
    if accounted.from_array and not accounted.ended and (array_is_known or accounted.state == UNKNOWN):
        # The array was split, and the controller still lists others of its tasks: this one was cancelled.
        return accounted.cancelled_while_waiting()
    if not accounted.ended:
        # The controller forgot the job, or its whole array, in a crash, so accounting never learnt of its end.
        return JobInfo(source="squeue")
    return accounted


def _accounting(jobs: Sequence[str], since: float | None) -> str | None:
    """Return the output of sacct about the jobs; None if it is missing, off, unreachable or slow."""
    argv = ["sacct", "--parsable2", "--noheader", "--duplicates", f"--format={parse.ACCOUNTING_FORMAT}"]
    start = [] if since is None else [f"--starttime=now-{max(60, int(time.time() - since) + 60)}seconds"]
    return _query_in_parts(argv, jobs, start)


def _queue(jobs: Sequence[str]) -> str | None:
    """Return the output of squeue about the jobs, "" if all are forgotten; None if no controller answers."""
    return _query_in_parts(["squeue", "--noheader", "--array", "--states=all", f"--format={parse.QUEUE_FORMAT}"], jobs)


def _query_in_parts(argv: Sequence[str], jobs: Sequence[str], options: Sequence[str] = ()) -> str | None:
    """Return the command's output about all of the jobs; None if one of its calls is not answered."""
    numbers = list(dict.fromkeys(map(array_id, jobs)))  # whole arrays: far fewer than tasks
    text = ""
    for start in range(0, len(numbers), _JOBS_PER_QUERY):
        chosen = ",".join(numbers[start : start + _JOBS_PER_QUERY])
        try:
            done = _run([*argv, f"--jobs={chosen}", *options], timeout_s=QUERY_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode and parse.UNKNOWN_JOB not in done.stderr:
            return None
        text += done.stdout
    return text


def job_ids_by_name() -> dict[str, str]:
    """Return the id of every job (or array) of this user that the controller remembers, by the job's name."""
    rows = _require(["squeue", "--noheader", "--me", "--states=all", "--format=%F|%j"]).splitlines()
    return {name: job for job, _, name in (row.partition("|") for row in rows)}


def max_array_size() -> int:
    """Return how many tasks an array may have on this cluster; 1 if arrays are off."""
    return parse.parse_max_array_size(_require(["scontrol", "show", "config"]))


def test_only(script: str) -> None:
    """Let sbatch check a batch script without queueing it; UserError with its message if it refuses."""
    _require(["sbatch", "--test-only"], script)


def check_srun(options: Sequence[str]) -> None:
    """Let srun read the options without starting anything; UserError with its message if it refuses one."""
    if options:
        _require(["srun", *options, "--help"])  # it reads them from left to right


def scancel(jobs: Sequence[str]) -> None:
    """Cancel the jobs. UserError if scancel fails, except for jobs that have ended meanwhile."""
    for start in range(0, len(jobs), _JOBS_PER_SCANCEL):
        argv = ["scancel", "--quiet", *jobs[start : start + _JOBS_PER_SCANCEL]]
        try:
            done = _run(argv, timeout_s=120)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"scancel cannot be run: {error}") from error
        if done.returncode and parse.UNKNOWN_JOB not in done.stderr:
            raise UserError(f"scancel failed: {done.stderr.strip()}; repeat the command")


def state_and_reason(job: str) -> tuple[str, str] | None:
    """Return the state and reason of one job; "" for both if the controller does not know it, None if it is silent."""
    argv = ["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r"]
    for _ in range(UNKNOWN_JOB_QUERIES):
        done = _run(argv, patience_s=REQUEUE_SECONDS)
        if _has_no_controller(done):
            return None
        if lines := done.stdout.strip().splitlines():
            state, _, reason = lines[0].partition("|")
            return state, reason
        time.sleep(5.0)  # a controller that has just come back may not have read its jobs yet
    return "", ""


def requeue(job: str) -> str:
    """Requeue the job by scontrol. Return "" if that worked or the job waits already, else the error."""
    done = _run(["scontrol", "requeue", job], patience_s=REQUEUE_SECONDS)
    if _has_no_controller(done):
        return "the controller does not answer"
    # An answer that was lost while the controller restarted: the repeated call finds the job pending already.
    return done.stderr.strip() if done.returncode and not parse.ALREADY_PENDING.search(done.stderr) else ""


def _run(
    argv: Sequence[str], script: str | None = None, timeout_s: float | None = None, patience_s: float = 0.0
) -> subprocess.CompletedProcess[str]:
    """Run a command; repeat it for `patience_s` while no controller answers.

    Raises OSError if it cannot be started, TimeoutExpired if it takes longer than `timeout_s`.
    """
    # Times as seconds since 1970, and lists of array tasks that are never cut off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_USER_OPTIONS)}
    environment |= {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
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
    return done.returncode != 0 and parse.NO_CONTROLLER.search(done.stderr) is not None


def _require(argv: Sequence[str], script: str | None = None) -> str:
    """Return a command's output; UserError with its message if it fails."""
    try:
        done = _run(argv, script, patience_s=RESTART_SECONDS)
    except OSError as error:
        raise UserError(f"{argv[0]} cannot be started ({error}): is this a login node of a cluster?") from error
    if done.returncode:
        raise UserError(f"{shlex.join(argv)} failed: {parse.error_summary(done.stderr)}")
    return done.stdout
