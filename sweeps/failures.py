"""Why a run is not done: its kind of failure, from its own records, from SLURM's answer, or from the end of its log."""

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
from sweeps.slurm.parse import JobInfo, failure_kind_of_log

# Each kind with the line that is shown if neither the run nor its log gives a better one.
KINDS = {
    "exception": "the code raised",
    "not_finite": "the loss became NaN or infinite",
    "out_of_memory": "it needed more memory than its job has",
    "time_limit": "it ran into its time limit",  # and was not requeued
    "preempted": "another job took its place",  # and it was not requeued
    "cancelled": "its job was cancelled",  # by a user; only a user starts it again
    "node_failure": "its node failed",  # or could not start the job
    "lost": "it ended without a message: no process works on it, and nothing says why",
}
# `reconcile` submits these again: a second attempt can succeed with nothing changed.
MAY_SUCCEED_UNCHANGED = ("lost", "preempted", "node_failure", "time_limit")
# When SLURM ends a rank for one of these, the surviving ranks raise: their exception is not the cause.
_CAUSES_OF_EXCEPTIONS = ("out_of_memory", "node_failure", "preempted")
_MEMORY_CLASSES = frozenset({"MemoryError", "OutOfMemoryError", "_ArrayMemoryError"})
_MEMORY_TEXT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|failed to allocate|CUBLAS_STATUS_ALLOC_FAILED"
    r"|\(oom\)|oom[- _]kill|exceeded (job )?memory limit",
    re.IGNORECASE,
)
_CANCELLED_FILE = "cancelled.json"
ASK_OWNER = "let its owner cancel it"  # advice to a user who may not write to the run
_LOG_LINES = 12
_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Failure:
    """Why a run is not done: one of KINDS, and one line."""

    kind: str
    last_line: str


def mark_cancelled(run: Run) -> None:
    """Note in the run's directory that a user cancelled it."""
    files.make_folder(run.path, ASK_OWNER)
    files.write_json(run.path / _CANCELLED_FILE, {"time": time.time(), "by": getpass.getuser()})


def clear_cancelled(run: Run) -> None:
    """Remove the mark: a user who starts or submits the run wants it again."""
    (run.path / _CANCELLED_FILE).unlink(missing_ok=True)


def is_cancelled(run: Run, since: float = 0.0) -> bool:
    """Whether it was cancelled after `since` (seconds since 1970)."""
    record = files.read_json_object(run.path / _CANCELLED_FILE)
    return record is not None and float(record.get("time") or 0.0) >= since


def classify(run: Run, info: JobInfo | None = None, logs: Sequence[Path] = ()) -> Failure:
    """Classify a run that is not done and that no process works on, given its newest job and its output files.

    Its own record comes first, then SLURM's state, then the log. Never raises.
    """
    if is_cancelled(run):
        return Failure("cancelled", "it was cancelled; `retry` submits it again")
    job_kind = None if info is None else info.failure_kind
    record = _read_record(run, info)
    if record is not None:
        kind = _record_kind(record)
        if kind == "lost" or (kind == "exception" and job_kind in _CAUSES_OF_EXCEPTIONS):
            kind = job_kind or kind
        return Failure(kind, _record_line(record))
    lines = _last_lines(logs)
    if info is not None and job_kind is not None:
        return Failure(job_kind, _describe_job_failure(job_kind, info, lines))
    if info is not None and info.failed:
        return _classify_failed_job(info, lines)
    if info is not None and info.completed:
        return Failure("lost", "its job completed, and the run has no result")
    if (log_kind := _log_kind(lines)) is not None:
        return Failure(log_kind, lines[-1])
    return Failure("lost", "; it ends: ".join([KINDS["lost"], *lines[-1:]]))


def _read_record(run: Run, info: JobInfo | None) -> dict[str, Any] | None:
    """Return failure.json, unless a newer job than the one that wrote it has ended since."""
    record = run.failure()
    if not isinstance(record, dict):
        return None
    written, submitted = record.get("time"), None if info is None else info.submitted
    # One second of slack: SLURM's times are whole seconds.
    is_old = isinstance(written, int | float) and submitted is not None and written < submitted - 1
    return None if is_old and info is not None and info.ended and not info.completed else record


def _record_kind(record: dict[str, Any]) -> str:
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


def _record_line(record: dict[str, Any]) -> str:
    name, message = record.get("class"), str(record.get("message", ""))
    line = next((text.strip() for text in message.splitlines() if text.strip()), "")
    return f"{name}: {line}" if name else line


def _classify_failed_job(info: JobInfo, lines: Sequence[str]) -> Failure:
    """Classify a run without a record whose job failed: it ended before it could write one, or was killed."""
    if memory := [line for line in lines if _MEMORY_TEXT.search(line) or line.startswith("MemoryError")]:
        return Failure("out_of_memory", memory[-1])
    if info.exit_code == Unfinished.exit_code:
        return Failure("preempted", "it was stopped and saved, and its job was not requeued")
    if info.signal == signal.SIGKILL or info.exit_code == shell_code(-signal.SIGKILL):
        return Failure("lost", "killed by signal 9; usual reason: its node ran out of memory")
    if info.exit_code in (None, 0):
        return Failure("lost", lines[-1] if lines else KINDS["lost"])
    return Failure("exception", lines[-1] if lines else f"its job ended with exit code {info.exit_code}")


def _log_kind(lines: Sequence[str]) -> str | None:
    """Find the kind in what slurmstepd wrote when it ended the job: all that is left if accounting is off."""
    for line in reversed(lines):
        kind = "out_of_memory" if _MEMORY_TEXT.search(line) else failure_kind_of_log(line)
        if kind is not None:
            return kind
    return None


def _describe_job_failure(kind: str, info: JobInfo, lines: Sequence[str]) -> str:
    if info.by_slurm:
        return "SLURM cancelled it by itself: a job that it waited for failed, or slurmctld forgot it in a crash"
    reason = f" ({info.reason})" if info.reason else ""
    ending = f"; its log ends: {lines[-1]}" if lines and kind in ("out_of_memory", "node_failure") else ""
    return f"{KINDS[kind]}{reason}{ending}"


def _last_lines(logs: Sequence[Path]) -> list[str]:
    """Return the last lines of the newest file that is not empty."""
    for log in sorted((log for log in logs if log.is_file()), key=lambda log: log.stat().st_mtime, reverse=True):
        if lines := [line.strip() for line in tail(log, _LOG_LINES)]:
            return lines
    return []


def tail(log: Path, count: int) -> list[str]:
    """Return the last lines of a file that are not blank, read from its end."""
    try:
        with open(log, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max(_TAIL_BYTES, 200 * count)))
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


def shell_code(code: int) -> int:
    """Convert Popen's return code to that of shells and SLURM, which add 128 to a signal: -9 -> 137."""
    return code if code >= 0 else 128 - code


def record_death(run: Run, code: int, since: float, oom_kills_before: int) -> None:
    """Write failure.json for a stage that was killed before it could; `code` is Popen's return code.

    `since`: when it was started. Nothing is written if the stage left its own record or ended by itself, or if another
    process has begun the run meanwhile: a record would say that it failed.
    """
    if code >= 0 or _own_record(run, since) or not run.path.is_dir() or run.state() in ("done", "running"):
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


def describe_end(run: Run, code: int, since: float) -> str:
    """Say in one line why a process that was started at `since`, and has ended with `code`, left no result."""
    if record := _own_record(run, since):
        return f"{record.get('class', 'error')}: {record.get('message')}"
    if code == Unfinished.exit_code:
        return "it was asked to stop, and has saved its state"
    if code < 0:
        return f"ended by signal {-code}"
    if code == 0:
        return "it ended well, in another run directory: code or config was changed since this sweep began; repeat it"
    return f"exit code {code}"


def _own_record(run: Run, since: float) -> dict[str, Any] | None:
    """Return failure.json if it was written after `since`; an older one is from an earlier attempt."""
    record = run.failure()
    return record if isinstance(record, dict) and record.get("time", 0) >= since else None
