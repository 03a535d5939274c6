"""Parse what SLURM's commands print: its formats, states and messages stand here alone. commands.py runs them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

ACCOUNTING_FORMAT = "JobID,State,ExitCode,NodeList,Submit,Reason"  # of sacct, read by parse_accounting
QUEUE_FORMAT = "%i|%T|%r|%N|%V"  # of squeue, read by parse_queue

UNKNOWN = "UNKNOWN"  # ours: neither command knows the job
PENDING = "PENDING"
WAITING = frozenset({PENDING, "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
WORKING = frozenset(
    {"RUNNING", "COMPLETING", "CONFIGURING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED"}
)
# sacct shows these for a moment before the same job, requeued, waits again.
_MAY_BE_REQUEUED = frozenset({"PREEMPTED", "NODE_FAIL"})
_CANCELLED = "CANCELLED"
_CANCELLED_WHILE_WAITING = "while it waited"
# The kinds of failures.py.
_KIND_BY_STATE = {
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "PREEMPTED": "preempted",
    _CANCELLED: "cancelled",
    "REVOKED": "cancelled",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "LAUNCH_FAILED": "node_failure",
}
# slurmstepd's messages in a job's log. "CANCELLED AT" comes last, because every one of these lines has it.
_KIND_BY_MESSAGE = {
    "DUE TO TIME LIMIT": "time_limit",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO NODE FAILURE": "node_failure",
    "CANCELLED AT": "cancelled",
}
# Parts of error messages.
NO_CONTROLLER = re.compile(r"unable to contact|timed out|connection refused", re.IGNORECASE)
UNKNOWN_JOB = "Invalid job id"
ALREADY_PENDING = re.compile("pending", re.IGNORECASE)


@dataclass(frozen=True)
class JobInfo:
    """What SLURM says about one job since it was last queued: each requeue begins a new attempt of it."""

    state: str = UNKNOWN  # SLURM's long name, for example RUNNING
    reason: str = ""  # why it waits
    exit_code: int | None = None
    signal: int | None = None
    node: str = ""
    submitted: float | None = None  # seconds since 1970; for a requeued job, when it was requeued
    restarts: int = 0
    source: str = ""  # sacct, squeue, or "" if neither answered
    by_slurm: bool = False  # CANCELLED, and accounting names no user for it
    from_array: bool = False  # inferred from the rows of its array, which may be late

    @property
    def waiting(self) -> bool:
        return self.state in WAITING

    @property
    def working(self) -> bool:
        return self.state in WORKING

    @property
    def ended(self) -> bool:
        """Whether it has ended, and as far as is known will not be requeued."""
        return self.state != UNKNOWN and not self.waiting and not self.working

    @property
    def settled(self) -> bool:
        """Whether squeue need not be asked: the job has ended, and SLURM does not requeue it from this state."""
        return self.ended and self.state not in _MAY_BE_REQUEUED

    @property
    def gone(self) -> bool:
        """Whether SLURM answered, and never knew the job or has forgotten it."""
        return self.state == UNKNOWN and bool(self.source)

    @property
    def completed(self) -> bool:
        return self.state == "COMPLETED"

    @property
    def failed(self) -> bool:
        """Whether its own program failed; the program's log and exit code say why."""
        return self.state == "FAILED"

    @property
    def never_began(self) -> bool:
        """Whether it was cancelled while it waited. That is inferred from a missing row, so a log would disprove it."""
        return self.state == _CANCELLED and self.reason == _CANCELLED_WHILE_WAITING

    @property
    def failure_kind(self) -> str | None:
        """The kind of failure that its state stands for; None if the state does not tell."""
        return "lost" if self.by_slurm else _KIND_BY_STATE.get(self.state)

    def cancelled_while_waiting(self) -> JobInfo:
        return replace(self, state=_CANCELLED, reason=_CANCELLED_WHILE_WAITING)


def parse_accounting(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Parse the rows of `sacct --parsable2`: the newest attempt of each wanted job.

    Tasks of an array that wait share one row, 7_[0-9]. While SLURM splits that row, it leaves out some tasks that have
    just begun. So a task without a row, in an array with rows, was cancelled while it waited or has just begun: it is
    returned as UNKNOWN, `from_array`.
    """
    wanted = set(wanted)
    attempts: dict[str, list[JobInfo]] = {}
    arrays = set()
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 6:
            continue
        job, dot, _ = fields[0].partition(".")
        if dot:
            _add_step(attempts.get(job), fields)
            continue
        arrays.add(array_id(job) if "_" in job else "")
        for one in expand(job, wanted):
            if one in wanted:
                attempts.setdefault(one, []).append(_accounting_row(fields))
    infos = {job: _newest(rows) for job, rows in attempts.items()}
    absent = JobInfo(source="sacct", from_array=True)
    return infos | {job: absent for job in wanted - infos.keys() if "_" in job and array_id(job) in arrays}


def _newest(rows: list[JobInfo]) -> JobInfo:
    """Return the attempt that was submitted last; the others are its restarts."""
    newest = max(range(len(rows)), key=lambda i: (rows[i].submitted or 0.0, i))
    return replace(rows[newest], restarts=len(rows) - 1) if len(rows) > 1 else rows[0]


def _add_step(attempts: list[JobInfo] | None, fields: Sequence[str]) -> None:
    """Take the cause from a step: if a program is killed inside a shell or srun, its job says only FAILED."""
    if not attempts or not attempts[-1].failed:
        return
    step = _accounting_row(fields)
    if step.state.startswith("OUT_OF_ME"):  # sacct may cut the name off
        attempts[-1] = replace(attempts[-1], state="OUT_OF_MEMORY")
    elif step.signal is not None and attempts[-1].signal is None:
        attempts[-1] = replace(attempts[-1], signal=step.signal)


def _accounting_row(fields: Sequence[str]) -> JobInfo:
    job, state, exit_code, node, submitted, reason = fields[:6]
    code, _, signal = exit_code.partition(":")
    return JobInfo(
        state=_state(state),
        reason="" if reason == "None" else reason,
        exit_code=_integer(code),
        signal=_integer(signal) or None,
        node="" if node == "None assigned" else node,
        submitted=_integer(submitted),
        source="sacct",
        # scancel leaves the user's number ("CANCELLED by 1000"). Without one SLURM cancelled the job itself: a job that
        # it waited for failed, or it was open when slurmctld came back from a crash without its state.
        by_slurm=state.strip() == _CANCELLED,
        from_array="[" in job,
    )


def parse_queue(text: str, wanted: Iterable[str]) -> dict[str, JobInfo]:
    """Parse the rows of squeue in QUEUE_FORMAT."""
    wanted = set(wanted)
    infos: dict[str, JobInfo] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) < 5:
            continue
        job, state, reason, node, submitted = fields[:5]
        reason = "" if reason == "None" else reason
        info = JobInfo(_state(state), reason, node=node, submitted=_integer(submitted), source="squeue")
        infos |= dict.fromkeys(expand(job, wanted), info)
    return infos


def expand(job: str, wanted: set[str]) -> list[str]:
    """List the jobs in a printed id: "7", "7_3", "7_[0-2,5%2]", or, cut off, "7_[0-2,..." (all wanted ones)."""
    base, bracket, tasks = job.partition("_[")
    if not bracket:
        return [job.partition("+")[0]]
    if "..." in tasks:
        return [one for one in wanted if array_id(one) == base]
    numbers: list[int] = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part.strip())
        if span:
            first, last, step = int(span[1]), int(span[2] or span[1]), int(span[3] or 1)
            numbers.extend(range(first, last + 1, step))
    return [f"{base}_{number}" for number in numbers]


def array_id(job: str) -> str:
    """Return the id of the array that a task belongs to ("7_3" and "7_[0-2]" -> "7"), or of a job itself."""
    return job.partition("_")[0]


def arrays_in(queue: str) -> set[str]:
    """Return the ids of all arrays (and jobs) that squeue listed."""
    return {array_id(line.partition("|")[0]) for line in queue.splitlines()}


def parse_max_array_size(config: str) -> int:
    """Read MaxArraySize from `scontrol show config`; 1 if arrays are off."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return max(1, int(match[1])) if match else 1


def was_cancelled_by_user(state: str, reason: str) -> bool:
    """Whether a job whose run has stopped was cancelled, by its state in the queue."""
    # SLURM ends a job at its limit with the reason TimeLimit, and can requeue it even then. A job that ends for any
    # other reason was cancelled. "": the controller knows no such job, and asking it to requeue does no harm.
    return state not in ("RUNNING", "CONFIGURING", "") and reason != "TimeLimit"


def failure_kind_of_log(line: str) -> str | None:
    """Return the kind of failure in a line of slurmstepd, which says in the job's log why it ended the job."""
    if "CANCELLED AT" not in line:
        return None
    return next(kind for message, kind in _KIND_BY_MESSAGE.items() if message in line)


def error_summary(text: str) -> str:
    """Put a failed command's message in one line: SLURM's own lines, without the warnings around them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    own = [line for line in lines if re.match(r"(sbatch|squeue|scontrol): ", line)]
    return "; ".join(own[-3:] or lines[-2:] or ["it printed no message"])


def _state(text: str) -> str:
    """Drop what follows the name of a state: "CANCELLED by 1000" -> CANCELLED."""
    return text.split()[0].rstrip("+") if text.strip() else UNKNOWN


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
