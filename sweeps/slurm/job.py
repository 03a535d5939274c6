"""The supervisor that a job runs in each of its tasks, and the requeue rule.

The supervisor starts the run as a child and passes signals on. The child saves at a step boundary and ends with 75, on
all ranks together, because they agree; then rank 0 requeues the job. If SLURM sends no signal, the child's periodic
saves are there. No signal handler interrupts Python at an arbitrary point here: this process only waits for signals.

The job of a run that has saved, but is not done, goes back into the queue unless
- the run was cancelled, by `cancel` (which marks its directory first) or by scancel (which SLURM's state shows);
- the job has reached its limit three times without finishing a step, and would for ever;
- the controller does not answer for ten minutes. `reconcile` submits the run again then.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import files, import_path
from runtime.errors import BusyError, Unfinished, UserError
from runtime.rundir import Run
from sweeps.failures import is_cancelled, oom_kills, record_death, shell_code
from sweeps.slurm import commands, parse

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
POLL_SECONDS = 0.5
# Requeueing ends this job from outside. Rank 0 does it; until the end comes, it waits, as the others do.
END_SECONDS = 120.0
# A rank that failed waits this long, so that the others can report too: srun ends them all when the first one exits.
GRACE_SECONDS = 30.0
# Another process may hold the run: for example one that SLURM lost sight of, on a node that came back.
BUSY_WAIT_SECONDS = 10.0
BUSY_MINUTES = 5.0
# How many times a job may reach its limit again without a new step.
IDLE_LIMITS = 2


@dataclass(frozen=True)
class Task:
    """The callable that submitit runs: one run of an array, named by the file that describes the array."""

    array_file: str
    index: int

    def __call__(self) -> None:
        array = json.loads(Path(self.array_file).read_text(encoding="utf-8"))
        code = Supervisor(array, array["tasks"][self.index]).run()
        if code:  # not an Exception: submitit would end the job in its own way
            raise SystemExit(code)


def job_id() -> str:
    """Return this job's id as SLURM's commands take it: 1234, or 1234_5."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


@dataclass
class Supervisor:
    """One attempt of one run, seen from outside. `array` and `task` come from the plan that records.py wrote."""

    array: dict[str, Any]  # shared by all tasks
    task: dict[str, Any]
    rank: int = field(default_factory=lambda: int(os.environ.get("SLURM_PROCID", "0")))
    started: float = field(default_factory=time.time)
    stopped: bool = False  # by a signal

    @property
    def _run(self) -> Run:
        return Run(Path(self.task["path"]))

    def run(self) -> int:
        """Run the task and return the exit code for SLURM: 0 if the run is done."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        restart, host = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ.get("SLURMD_NODENAME", "?")
        _log(f"{self.task['run']} in job {job_id()}, restart {restart}, rank {self.rank} on {host}")
        if is_cancelled(self._run, self.array["time"]):
            _log("it was cancelled, so it does not begin")
            return Unfinished.exit_code
        # The lease of a process that died on another host looks fresh for two minutes: wait for it, then requeue.
        busy_until = time.monotonic() + 60 * BUSY_MINUTES
        while (code := self._attempt()) == BusyError.exit_code:
            if self.stopped or time.monotonic() > busy_until:
                code = Unfinished.exit_code
                break
            self._wait_for_signal(BUSY_WAIT_SECONDS)
        if code == Unfinished.exit_code:
            return self._requeue()
        if code and self.rank:
            time.sleep(GRACE_SECONDS)
        return shell_code(code)

    def _attempt(self) -> int:
        """Start the run's process, wait for its end, and return Popen's return code."""
        kills = oom_kills()
        since = time.time()
        # It inherits the blocked signals, so that none is lost before it can handle them.
        child = subprocess.Popen(self._argv(), cwd=self.array["cwd"], env=self._environment())
        while (code := child.poll()) is None:
            number = self._wait_for_signal(POLL_SECONDS)
            if number is not None and child.poll() is None:
                _log(f"got {signal.Signals(number).name}: the run is asked to save and stop")
                child.send_signal(number)
        if code < 0 and self.rank == 0:
            record_death(self._run, code, since, kills)
        return code

    def _argv(self) -> list[str]:
        return [*shlex.split(self.array["container"]), *self.task["argv"]]

    def _environment(self) -> dict[str, str]:
        """Put the submission's code before anything else, an editable install and the working directory included."""
        # CUDA_VISIBLE_DEVICES stays as SLURM set it: GPUs may be bound to tasks already.
        return {
            "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", "1"),
            **os.environ,
            **import_path(self.array["code"]),
            "PYTHONUNBUFFERED": "1",
            **self.array["environment"],
        }

    def _wait_for_signal(self, seconds: float) -> int | None:
        info = signal.sigtimedwait(STOP_SIGNALS, seconds)
        if info is None:
            return None
        self.stopped = True
        return info.si_signo

    def _requeue(self) -> int:
        """Go back into the queue, now that all is saved; the exit code counts only if SLURM does not end the job."""
        # Rank 0 alone asks: a second request could reach the job when it has begun again, and stop that attempt.
        if self.rank == 0 and not requeue_unless_pointless(job_id(), self.array, self._run, self.started):
            return Unfinished.exit_code
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1.0)  # the TERM that ends the job stays blocked; SLURM kills then
        return Unfinished.exit_code


def requeue_unless_pointless(job: str, array: dict[str, Any], run: Run, started: float) -> bool:
    """Requeue the job, which ends it from outside; False if the rule above forbids it.

    `array` is the plan that records.py wrote; `started` is when the job began, in seconds since 1970.
    """
    # The mark comes first: a scancel at this very moment need not show in the job's state yet, and requeueing would
    # undo it.
    if is_cancelled(run, array["time"]):
        return False
    try:
        idle = reached_limit_idle(job, array, run, started)
    except (OSError, UserError):  # for example a full disk: that must not keep the job from the queue
        idle = False
    return not idle and requeue(job)


def requeue(job: str) -> bool:
    """Put the job back into the queue, unless a user cancelled it or the controller cannot be reached."""
    answer = commands.state_and_reason(job)
    if answer is None:
        _log("the controller does not answer: not requeued")
        return False
    state, reason = answer
    if state == parse.PENDING:  # SLURM requeued it by itself, after a preemption
        return True
    if parse.was_cancelled_by_user(state, reason):
        _log(f"the job is {state}: cancelled by a user; not requeued")
        return False
    if complaint := commands.requeue(job):
        _log(f"not requeued: {complaint}")
        return False
    _log(f"job {job} goes back into the queue")
    return True


def reached_limit_idle(job: str, array: dict[str, Any], run: Run, started: float) -> bool:
    """Whether the job reaches its limit again and again without a new step; then a failure.json says so to the user.

    A file beside the job's logs keeps how many steps were done at each limit.
    """
    minutes = array["resources"]["minutes"]
    # A job that ends early was preempted, or another process held the run: that says nothing about its limit.
    if time.time() - started < 60 * minutes / 2:
        return False
    progress = (run.heartbeat() or {}).get("progress") or {}
    file = Path(array["logs"]) / f"{job}_limits.json"
    ends = [*(files.read_json(file) or []), progress.get("done")]
    file.write_text(json.dumps(ends), encoding="utf-8")
    if len(ends) <= IDLE_LIMITS or len(set(ends[-IDLE_LIMITS - 1 :])) > 1:
        return False
    message = f"no step done in {IDLE_LIMITS} jobs of {minutes} minutes each; give {array['part']} more minutes"
    record = {"class": "TimeLimit", "kind": "time_limit", "message": message, "time": time.time()}
    files.write_json(run.path / "failure.json", record)
    _log(message)
    return True


def _log(text: str) -> None:
    print(f"[job] {text}", file=sys.stderr, flush=True)
