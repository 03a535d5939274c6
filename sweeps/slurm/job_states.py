"""The states of jobs: what sacct prints of all of them, and squeue of those that have not ended according to that.

Neither is enough. Accounting may be off, slow or late, and never learns of the end of a job that slurmctld forgot in a
crash; the controller forgets a job minutes after its end. Where they disagree, `query` says who is believed.
An answer is a hint: whether a run is done, its run directory decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sweeps.slurm import commands
from sweeps.slurm.commands import number_of

UNKNOWN = "UNKNOWN"
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
WORKING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
# Accounting shows these for a moment before the same job, requeued, waits again: the controller is asked too.
_MAY_COME_BACK = frozenset({"PREEMPTED", "NODE_FAIL", "REQUEUED", UNKNOWN})
_WHILE_IT_WAITED = "while it waited"


@dataclass(frozen=True)
class JobInfo:
    """One job since it was last queued: each requeue begins a new life of it."""

    state: str = UNKNOWN  # SLURM's long name, as RUNNING; UNKNOWN: neither command knows the job
    reason: str = ""  # why it waits
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    elapsed_s: int | None = None
    submitted: float | None = None  # seconds since 1970; of a requeued job, when it was requeued
    restarts: int = 0
    former: tuple[str, ...] = ()  # the states in which its earlier lives ended
    source: str = ""  # sacct, squeue, or "" where neither answered
    by_slurm: bool = False  # CANCELLED, and accounting names no user for it
    of_range: bool = False  # concluded from the rows of its array, which may be late

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def working(self) -> bool:
        return self.state in WORKING

    @property
    def ended(self) -> bool:
        """Whether it has ended, and will not be requeued as far as is known."""
        return self.state != UNKNOWN and not self.waiting and not self.working

    @property
    def gone(self) -> bool:
        """Whether SLURM answered, and has never known it or has forgotten it."""
        return self.state == UNKNOWN and bool(self.source)

    @property
    def never_began(self) -> bool:
        """Whether it was cancelled while it waited: concluded from its missing row, so its log would disprove it."""
        return self.state == "CANCELLED" and self.reason == _WHILE_IT_WAITED


def query(jobs: Sequence[str], since: float | None = None) -> dict[str, JobInfo]:
    """What is known of every one of `jobs` ("1234" or "1234_5"); never raises.

    `since` (seconds since 1970) leaves out older jobs of the same number.
    """
    wanted = list(dict.fromkeys(jobs))
    if not wanted:
        return {}
    accounted = parse_accounting(commands.accounting(wanted, since) or "", wanted)
    infos = {job: accounted.get(job, JobInfo()) for job in wanted}
    doubtful = [job for job, info in infos.items() if info.state in _MAY_COME_BACK or not info.ended]
    text = commands.queue(doubtful) if doubtful else ""
    if text is None:  # a job that accounting does not know may still wait: only the controller could exclude that
        return {job: JobInfo() if info.state == UNKNOWN else info for job, info in infos.items()}
    listed = parse_queue(text, doubtful)
    arrays = {number_of(line.partition("|")[0]) for line in text.splitlines()}
    for job in doubtful:
        now, before = listed.get(job), infos[job]
        array_is_known = number_of(job) in arrays
        if now is not None and (before.state == UNKNOWN or not now.ended):
            # Accounting is late, or off. An end that both know is described better by accounting.
            infos[job] = replace(now, former=before.former, restarts=len(before.former))
        elif before.of_range and not before.ended and (array_is_known or before.state == UNKNOWN):
            # The array was taken apart, and the controller still lists others of its tasks: this one was cancelled.
            infos[job] = replace(before, state="CANCELLED", reason=_WHILE_IT_WAITED)
        elif not before.ended:
            # The controller forgot the job, or its whole array, in a crash: accounting was never told of an end.
            infos[job] = JobInfo(source="squeue")
    return infos


def parse_accounting(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Parse the rows of `sacct --parsable2`: the newest life of each wanted job.

    A task that has no row, while others of its array have (UNKNOWN, of_range), was cancelled while it waited, or began
    just now: tasks that wait share one row, as 7_[0-9], and while SLURM takes that apart it leaves out some that began.
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
            _add_step(lives.get(job), fields)
            continue
        arrays.add(number_of(job) if "_" in job else "")
        for one in expand(job, wanted):
            if one in wanted:
                lives.setdefault(one, []).append(_accounting_row(fields))
    infos = {job: _newest(rows) for job, rows in lives.items()}
    absent = JobInfo(source="sacct", of_range=True)
    return infos | {job: absent for job in wanted - infos.keys() if "_" in job and number_of(job) in arrays}


def _newest(rows: list[JobInfo]) -> JobInfo:
    """The life that was submitted last, with the states in which the others ended."""
    if len(rows) == 1:
        return rows[0]
    at = max(range(len(rows)), key=lambda i: (rows[i].submitted or 0.0, i))
    former = tuple(row.state for i, row in enumerate(rows) if i != at)
    return replace(rows[at], former=former, restarts=len(former))


def _add_step(lives: list[JobInfo] | None, fields: Sequence[str]) -> None:
    """Take the cause from a step: where a program is killed inside a shell or srun, its job says only FAILED."""
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


def parse_queue(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Parse the rows of squeue, in the format of commands.queue."""
    wanted = set(wanted)
    infos: dict[str, JobInfo] = {}
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
        infos |= dict.fromkeys(expand(job, wanted), info)
    return infos


def expand(job: str, wanted: set[str]) -> list[str]:
    """The jobs that a printed number stands for: "7", "7_3", "7_[0-2,5%2]", or, cut off, "7_[0-2,..." (all wanted)."""
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
