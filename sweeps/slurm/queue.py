"""What SLURM says of jobs: one sacct call for all of them, and squeue for what has not ended by that.

Accounting may be off, slow or behind, and never hears of the end of a job that slurmctld forgot in a crash.

An answer is a hint: whether a run is done, its run directory says.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

# No answer within this long counts as none: a busy slurmdbd must not hold up a status.
ANSWER_SECONDS = 20.0
UNKNOWN = "UNKNOWN"
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
WORKING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
# Accounting shows these for a moment before the same job, requeued, waits again.
_MAY_COME_BACK = frozenset({"PREEMPTED", "NODE_FAIL", "REQUEUED", UNKNOWN})
_WHILE_IT_WAITED = "while it waited"
_ARGUMENT_CHARACTERS = 100_000  # Linux takes 131,072 in one argument


@dataclass(frozen=True)
class JobInfo:
    """The newest life of one job."""

    state: str = UNKNOWN  # SLURM's long name, as RUNNING; UNKNOWN: nobody knows the job
    reason: str = ""  # why it waits
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    elapsed_s: int | None = None
    submitted: float | None = None  # seconds since 1970; of the requeue, for a requeued one
    restarts: int = 0
    former: tuple[str, ...] = ()  # states in which its former lives ended
    source: str = ""  # sacct, squeue, or "" where neither answered
    by_slurm: bool = False  # CANCELLED, and accounting names no user who did it
    of_range: bool = False  # read from a row such as 7_[0-9], which accounting may not have mended yet

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def working(self) -> bool:
        return self.state in WORKING

    @property
    def ended(self) -> bool:
        """It will not run again by itself, as far as is known."""
        return self.state != UNKNOWN and not self.waiting and not self.working

    @property
    def gone(self) -> bool:
        """SLURM was asked, and has never heard of it, or has forgotten it."""
        return self.state == UNKNOWN and bool(self.source)

    @property
    def never_began(self) -> bool:
        """Cancelled while it waited: concluded from its having no row of its own. An output of it proves that wrong."""
        return self.state == "CANCELLED" and self.reason == _WHILE_IT_WAITED


@dataclass(frozen=True)
class Active:
    """One job that the controller has not forgotten, found by its name."""

    job: str
    name: str
    state: str


def ask(jobs: Sequence[str], since: float | None = None) -> dict[str, JobInfo]:
    """What is known of every one of `jobs` ("1234" or "1234_5"); never raises.

    `since` (seconds since 1970) leaves out older jobs of the same number.
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    accounted = _ask_accounting(wanted, since) or {}
    found = {job: accounted.get(job, JobInfo()) for job in wanted}
    doubtful = [job for job, info in found.items() if info.state in _MAY_COME_BACK or not info.ended]
    answer = _ask_controller(doubtful) if doubtful else ({}, set())
    if answer is None:
        return {job: JobInfo() if info.state == UNKNOWN else info for job, info in found.items()}
    listed, known = answer
    for job in doubtful:
        now, before = listed.get(job), found[job]
        if now is not None and (before.state == UNKNOWN or not now.ended):
            found[job] = replace(now, former=before.former, restarts=len(before.former))
        elif before.of_range and not before.ended and (number_of(job) in known or before.state == UNKNOWN):
            found[job] = replace(before, state="CANCELLED", reason=_WHILE_IT_WAITED)
        elif not before.ended:
            # The controller forgot it, or the whole array, when it crashed: accounting never heard of an end.
            found[job] = JobInfo(source="squeue")
    return found


def active(prefix: str) -> list[Active]:
    """Every job and array task of this user whose name begins with `prefix`, also those that ended just now.

    Empty where the controller does not answer.
    """
    text = _call(["squeue", "--noheader", "--array", "--states=all", "--me", "--format=%i|%T|%j"])
    rows = [line.split("|", 2) for line in (text or "").splitlines() if line.count("|") >= 2]
    return [Active(job, name, state) for job, state, name in rows if name.startswith(prefix)]


def _ask_accounting(wanted: Sequence[str], since: float | None) -> dict[str, JobInfo] | None:
    """None where sacct is missing, off, unreachable or slow."""
    fields = "JobID,State,ExitCode,NodeList,ElapsedRaw,Submit,Reason"
    found: dict[str, JobInfo] = {}
    for numbers in _arguments(wanted):
        argv = ["sacct", "--parsable2", "--noheader", "--duplicates", f"--format={fields}", f"--jobs={numbers}"]
        if since is not None:
            argv.append(f"--starttime=now-{_seconds_since(since)}seconds")
        text = _call(argv)
        if text is None:
            return None
        found |= parse_accounting(text, wanted)
    return found


def _seconds_since(time_s: float) -> int:
    return max(60, int(time.time() - time_s) + 60)


def parse_accounting(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Rows of `sacct --parsable2`: the newest life of each wanted job.

    A task that is not among those of its array (UNKNOWN, of_range) was cancelled while it waited, or began just now:
    while an array is taken apart accounting leaves out tasks that have begun.
    """
    wanted = set(wanted)
    lives: dict[str, list[JobInfo]] = {}
    arrays = set()
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 7:
            continue
        job, dot, _ = fields[0].partition(".")
        if dot:
            _learn_from_step(lives.get(job), fields)
            continue
        arrays.add(number_of(job) if "_" in job else "")
        for one in expand(job, wanted):
            if one in wanted:
                lives.setdefault(one, []).append(_accounting_row(fields))
    found = {job: _newest(rows) for job, rows in lives.items()}
    absent = JobInfo(source="sacct", of_range=True)
    return found | {job: absent for job in wanted - found.keys() if "_" in job and number_of(job) in arrays}


def _newest(rows: list[JobInfo]) -> JobInfo:
    """The last one submitted, which knows how the former ones ended."""
    if len(rows) == 1:
        return rows[0]
    at = max(range(len(rows)), key=lambda i: (rows[i].submitted or 0.0, i))
    former = tuple(row.state for i, row in enumerate(rows) if i != at)
    return replace(rows[at], former=former, restarts=len(former))


def _learn_from_step(lives: list[JobInfo] | None, fields: Sequence[str]) -> None:
    """A job whose program was killed within a shell or srun says only that it failed; its step says by what."""
    if not lives or lives[-1].state != "FAILED":
        return
    step = _accounting_row(fields)
    if step.state.startswith("OUT_OF_ME"):
        lives[-1] = replace(lives[-1], state="OUT_OF_MEMORY")
    elif step.signal is not None and lives[-1].signal is None:
        lives[-1] = replace(lives[-1], signal=step.signal)


def _accounting_row(fields: Sequence[str]) -> JobInfo:
    job, state, exit_code, node, elapsed, submitted, reason = fields[:7]
    code, _, number = exit_code.partition(":")
    return JobInfo(
        state=_state(state),
        reason="" if reason == "None" else reason,
        exit_code=_integer(code),
        signal=_integer(number) or None,
        node="" if node == "None assigned" else node,
        elapsed_s=_integer(elapsed),
        submitted=_integer(submitted),
        source="sacct",
        by_slurm=state.strip() == "CANCELLED",
        of_range="[" in job,
    )


def _ask_controller(wanted: Sequence[str]) -> tuple[dict[str, JobInfo], set[str]] | None:
    """What it says of each job, and the numbers of the jobs and arrays that it knows at all.

    None where squeue is missing or the controller does not answer.
    """
    found: dict[str, JobInfo] = {}
    known: set[str] = set()
    for numbers in _arguments(wanted):
        argv = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%N|%M|%V", f"--jobs={numbers}"]
        text = _call(argv, forgotten="Invalid job id")
        if text is None:
            return None
        found |= parse_queue(text, wanted)
        known |= {number_of(line.partition("|")[0]) for line in text.splitlines()}
    return found, known


def parse_queue(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Rows of squeue in the format above."""
    wanted = set(wanted)
    found: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 6:
            continue
        job, state, reason, node, elapsed, submitted = fields[:6]
        info = JobInfo(
            state=_state(state),
            reason="" if reason == "None" else reason,
            node=node,
            elapsed_s=seconds_of(elapsed),
            submitted=_integer(submitted),
            source="squeue",
        )
        found |= dict.fromkeys(expand(job, wanted), info)
    return found


def expand(job: str, wanted: set[str]) -> list[str]:
    """The wanted jobs that a printed number means: "7", "7_3", "7_[0-2,5%2]", or cut off: "7_[0-2,..."."""
    base, bracket, tasks = job.partition("_[")
    if not bracket:
        return [job.partition("+")[0]]
    if "..." in tasks:
        return [one for one in wanted if number_of(one) == base]
    numbers: list[int] = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part.strip())
        if span:
            first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
            numbers.extend(range(first, last + 1, step))
    return [f"{base}_{number}" for number in numbers]


def number_of(job: str) -> str:
    """ "7_3" and "7_[0-2]" -> "7"."""
    return job.partition("_")[0]


def seconds_of(elapsed: str) -> int | None:
    """ "1-02:03:04", "02:03:04" or "03:04" in seconds."""
    days, _, clock = elapsed.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        seconds = sum(part * 60**power for power, part in enumerate(reversed(parts)))
        return seconds + 86_400 * int(days or 0)
    except ValueError:
        return None


def _state(text: str) -> str:
    """ "CANCELLED by 1000" -> CANCELLED."""
    return text.split()[0].rstrip("+") if text.strip() else UNKNOWN


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None


def _arguments(jobs: Sequence[str]) -> list[str]:
    """Comma-separated numbers, arrays as a whole, each text short enough for one argument."""
    numbers = list(dict.fromkeys(number_of(job) for job in jobs))
    texts, length = [[]], 0  # type: tuple[list[list[str]], int]
    for number in numbers:
        if length + len(number) + 1 > _ARGUMENT_CHARACTERS:
            texts, length = [*texts, []], 0
        texts[-1].append(number)
        length += len(number) + 1
    return [",".join(text) for text in texts]


def _call(argv: Sequence[str], forgotten: str = "") -> str | None:
    """What a command of SLURM prints; None where it cannot be run, fails or is slow."""
    # Times as seconds since 1970, and lists of array tasks never cut off.
    environment = os.environ | {"SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "0"}
    try:
        done = subprocess.run(
            argv,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=ANSWER_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode == 0 or (forgotten and forgotten in done.stderr):
        return done.stdout
    return None
