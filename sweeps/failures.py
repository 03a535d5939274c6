"""Why a run is not done, as one of eight kinds: from its own records, from SLURM's answer, from the end of its log.

exception       the code raised
not_finite      the loss became NaN or infinite
out_of_memory   of the GPU, of Python, or the kernel killed it for its memory
time_limit      the job reached its limit and was not requeued
preempted       another job took its place, and it was not requeued
cancelled       somebody cancelled it; it is neither requeued nor started again unless a user asks for it
node_failure    the node died or could not start the job
lost            it was begun or submitted, and nothing says how it ended
"""

from __future__ import annotations

import getpass
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import Unfinished, UserError
from runtime.rundir import Run
from sweeps.slurm.job_states import JobInfo

KINDS = (
    "exception",
    "not_finite",
    "out_of_memory",
    "time_limit",
    "preempted",
    "cancelled",
    "node_failure",
    "lost",
)
_KIND_OF_STATE = {
    "OUT_OF_MEMORY": "out_of_memory",
    "TIMEOUT": "time_limit",
    "DEADLINE": "time_limit",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "NODE_FAIL": "node_failure",
    "BOOT_FAIL": "node_failure",
    "LAUNCH_FAILED": "node_failure",
}
# In these states the surviving ranks raise because the others are gone: their exception is not the cause.
_STATE_BEFORE_EXCEPTION = frozenset({"OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED"})
_MEMORY_CLASSES = frozenset({"MemoryError", "OutOfMemoryError", "_ArrayMemoryError"})
_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|failed to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|\(oom\)|oom[- _]kill|exceeded (job )?memory limit",
    re.IGNORECASE,
)
# slurmstepd's words for why it ended a job; the last one is part of the others' lines too.
_KIND_OF_LOG = {
    "DUE TO TIME LIMIT": "time_limit",
    "DUE TO PREEMPTION": "preempted",
    "DUE TO NODE FAILURE": "node_failure",
    "CANCELLED AT": "cancelled",
}
LINES_READ = 12
_TAIL_BYTES = 8192
_MESSAGES = {
    "out_of_memory": "it needed more memory than its job has",
    "time_limit": "it ran into its time limit",
    "preempted": "another job took its place",
    "cancelled": "its job was cancelled",
    "node_failure": "its node failed",
    "lost": "it ended without a message: no process works on it, and nothing says why",
}
# scancel leaves the user's number in accounting. Without one SLURM cancelled the job itself: it waited for a job that
# failed, or was open when slurmctld came back from a crash without its state.
_BY_SLURM = "SLURM cancelled it by itself: a job that it waited for failed, or slurmctld forgot it in a crash"


CANCELLED_FILE = "cancelled.json"
BY_OWNER = "let its owner cancel it"


@dataclass(frozen=True)
class Failure:
    """Why a run is not done, in one word and in one line."""

    kind: str
    last_line: str


def mark_cancelled(run: Run) -> None:
    """Note in the run's directory that a user cancelled it."""
    files.make_folder(run.path, BY_OWNER)
    files.write_json(run.path / CANCELLED_FILE, {"time": time.time(), "by": getpass.getuser()})


def clear_cancelled(run: Run) -> None:
    """Remove the mark: whoever starts or submits the run wants it again."""
    (run.path / CANCELLED_FILE).unlink(missing_ok=True)


def is_cancelled(run: Run, since: float = 0.0) -> bool:
    """Whether it was cancelled after `since` (seconds since 1970)."""
    record = files.read_json(run.path / CANCELLED_FILE)
    return isinstance(record, dict) and float(record.get("time") or 0.0) >= since


def classify(run: Run, info: JobInfo | None = None, logs: Sequence[Path] = ()) -> Failure:
    """Classify a run that is not done and that no process works on, given its newest job and its output files.

    Its own record comes first, then SLURM's state, then the log. Never raises.
    """
    if is_cancelled(run):
        return Failure("cancelled", "it was cancelled; `retry` takes it up again")
    record = _record(run, info)
    by_state = None
    if info is not None:
        by_state = "lost" if info.by_slurm else _KIND_OF_STATE.get(info.state)
    if record is not None:
        kind, line = _kind_of_record(record), _line_of_record(record)
        if kind == "lost" or (kind == "exception" and info is not None and info.state in _STATE_BEFORE_EXCEPTION):
            kind = by_state or kind
        return Failure(kind, line)
    lines = _ending(logs)
    if by_state is not None:
        return Failure(by_state, _explained(by_state, info, lines))
    if info is not None and info.state == "FAILED":
        return _of_failed_job(info, lines)
    if info is not None and info.state == "COMPLETED":
        return Failure("lost", "its job says COMPLETED, and the run has no result")
    if (kind_of_log := _kind_of_log(lines)) is not None:
        return Failure(kind_of_log, lines[-1])
    return Failure("lost", "; it ends: ".join([_MESSAGES["lost"], *lines[-1:]]))


def _record(run: Run, info: JobInfo | None) -> dict[str, Any] | None:
    """failure.json, unless a newer job than the one that wrote it has ended since."""
    record = run.failure()
    if not isinstance(record, dict):
        return None
    written, submitted = record.get("time"), None if info is None else info.submitted
    is_old = isinstance(written, int | float) and submitted is not None and written < submitted - 1
    return None if is_old and info is not None and info.ended and info.state != "COMPLETED" else record


def _kind_of_record(record: dict[str, Any]) -> str:
    if record.get("kind") in KINDS:
        return str(record["kind"])
    name, message = str(record.get("class", "")), str(record.get("message", ""))
    if name == "NotFiniteError":
        return "not_finite"
    if name.rpartition(".")[2] in _MEMORY_CLASSES:
        return "out_of_memory"
    if name in ("RuntimeError", "OSError", "AcceleratorError", "error") and _MEMORY_TEXT.search(message):
        return "out_of_memory"
    return "exception"


def _line_of_record(record: dict[str, Any]) -> str:
    name, message = record.get("class"), str(record.get("message", ""))
    line = next((text.strip() for text in message.splitlines() if text.strip()), "")
    return f"{name}: {line}" if name else line


def _of_failed_job(info: JobInfo, lines: Sequence[str]) -> Failure:
    """SLURM says FAILED and the run left no record: it ended before it could write one, or was killed."""
    if memory := [line for line in lines if _MEMORY_TEXT.search(line) or line.startswith("MemoryError")]:
        return Failure("out_of_memory", memory[-1])
    if info.exit_code == Unfinished.exit_code:
        return Failure("preempted", "it was stopped and saved, and its job was not requeued")
    if info.signal == signal.SIGKILL or info.exit_code == 128 + signal.SIGKILL:
        return Failure("lost", "killed by signal 9; usual reason: its node ran out of memory")
    if info.exit_code in (None, 0):
        return Failure("lost", lines[-1] if lines else _MESSAGES["lost"])
    return Failure("exception", lines[-1] if lines else f"its job ended with exit code {info.exit_code}")


def _kind_of_log(lines: Sequence[str]) -> str | None:
    """From what slurmstepd wrote when it ended the job: all that is left where accounting is off."""
    for line in reversed(lines):
        if _MEMORY_TEXT.search(line):
            return "out_of_memory"
        for text, kind in _KIND_OF_LOG.items():
            if text in line and "CANCELLED AT" in line:
                return kind
    return None


def _explained(kind: str, info: JobInfo | None, lines: Sequence[str]) -> str:
    if info is not None and info.by_slurm:
        return _BY_SLURM
    reason = info.reason if info is not None else ""
    in_brackets = f" ({reason})" if reason else ""
    ending = f"; its log ends: {lines[-1]}" if lines and kind in ("out_of_memory", "node_failure") else ""
    return f"{_MESSAGES[kind]}{in_brackets}{ending}"


def _ending(logs: Sequence[Path]) -> list[str]:
    """The last lines of the newest file that is not empty."""
    for log in sorted((log for log in logs if log.is_file()), key=lambda log: log.stat().st_mtime, reverse=True):
        if lines := [line.strip() for line in tail(log, LINES_READ)]:
            return lines
    return []


def tail(log: Path, count: int, most_bytes: int = _TAIL_BYTES) -> list[str]:
    """The last lines of a file that are not blank, read from its end."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max(most_bytes, 200 * count)))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-count:]


def oom_kills() -> int:
    """Count the processes that the kernel killed for memory in this process's cgroup; compare before and after."""
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    count = 0
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            count += _oom_count(Path("/sys/fs/cgroup") / path.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            count += _oom_count(Path("/sys/fs/cgroup/memory") / path.lstrip("/") / "memory.oom_control")
    return count


def _oom_count(file: Path) -> int:
    with suppress(OSError, ValueError):
        for line in file.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    return 0


def record_death(run: Run, code: int, since: float, oom_kills_before: int) -> None:
    """Write failure.json for a stage that was killed before it could; `code` is its return code, as Popen has it.

    `since`: when it was started. Nothing is written where the stage left its own record, ended by itself, or another
    process has begun the run meanwhile.
    """
    record = run.failure()
    has_record = isinstance(record, dict) and record.get("time", 0) >= since
    if code >= 0 or has_record or not run.path.is_dir() or run.state() in ("done", "running"):
        return
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    for_memory = code == -signal.SIGKILL and oom_kills() > oom_kills_before
    why = "the kernel killed it: its memory limit was reached" if for_memory else f"it was killed by {name}"
    if code == -signal.SIGKILL and not for_memory:
        why += "; usual reason: the machine ran out of memory"
    kind = "out_of_memory" if for_memory else "lost"
    with suppress(OSError, UserError):
        files.write_json(
            run.path / "failure.json", {"class": "Killed", "kind": kind, "message": why, "time": time.time()}
        )
