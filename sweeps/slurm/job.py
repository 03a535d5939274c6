"""The supervisor, which is what a job runs in each of its tasks: it starts the run as a child and passes signals on.

The child saves at a step boundary and ends with 75, on all ranks together, because they agree. Then rank 0 requeues the
job (requeue.py). Where SLURM sends no signal, the child's periodic saves are there. Where it sends one, no handler
interrupts Python at an arbitrary point: this process waits for signals, and does nothing else.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import BusyError, Unfinished
from runtime.provenance import import_path
from runtime.rundir import Run
from sweeps.failures import is_cancelled, oom_kills, record_death
from sweeps.slurm.requeue import requeue_unless_pointless, say

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
POLL_SECONDS = 0.5
# Requeueing ends this job from outside. Rank 0 does it; until the end comes, it waits, as the others do.
END_SECONDS = 120.0
# A rank that failed waits this long, so that the others can report too: srun ends them all when the first one exits.
GRACE_SECONDS = 30.0
# Another process may hold the run: one that SLURM lost sight of, on a node that came back, for example.
BUSY_WAIT_SECONDS = 10.0
BUSY_MINUTES = 5.0


@dataclass(frozen=True)
class Task:
    """What submitit calls: one run of an array, named by the file that describes the array."""

    array_file: str
    index: int

    def __call__(self) -> None:
        array = json.loads(Path(self.array_file).read_text(encoding="utf-8"))
        code = Supervisor(array, array["tasks"][self.index]).run()
        if code:  # not an Exception: submitit would end the job in its own way
            raise SystemExit(code)


def job_id() -> str:
    """As SLURM's commands take it: 1234, or 1234_5."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ["SLURM_JOB_ID"]


@dataclass
class Supervisor:
    """One attempt of one run, seen from outside."""

    array: dict[str, Any]  # what all tasks share
    task: dict[str, Any]
    rank: int = field(default_factory=lambda: int(os.environ.get("SLURM_PROCID", "0")))
    started: float = field(default_factory=time.time)
    stopped: bool = False  # by a signal

    @property
    def _run(self) -> Run:
        return Run(Path(self.task["path"]))

    def run(self) -> int:
        """Run the task and return the exit code for SLURM: 0 where the run is done."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        restart, host = os.environ.get("SLURM_RESTART_COUNT", "0"), os.environ.get("SLURMD_NODENAME", "?")
        say(f"{self.task['run']} in job {job_id()}, restart {restart}, rank {self.rank} on {host}")
        if is_cancelled(self._run, self.array["time"]):
            say("it was cancelled, so it does not begin")
            return Unfinished.exit_code
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
        return code if code >= 0 else 128 - code

    def _attempt(self) -> int:
        """Start the run's process and wait for its end; its return code, as Popen has it."""
        kills = oom_kills()
        since = time.time()
        # It inherits the blocked signals, so that none is lost before it can handle them.
        child = subprocess.Popen(self._argv(), cwd=self.array["cwd"], env=self._environment())
        while (code := child.poll()) is None:
            number = self._wait_for_signal(POLL_SECONDS)
            if number is not None and child.poll() is None:
                say(f"got {signal.Signals(number).name}: the run is asked to save and stop")
                child.send_signal(number)
        if code < 0 and self.rank == 0:
            record_death(self._run, code, since, kills)
        return code

    def _argv(self) -> list[str]:
        return [*shlex.split(self.array["container"]), *self.task["argv"]]

    def _environment(self) -> dict[str, str]:
        """The submission's code comes before anything else, an editable install and the working directory included."""
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
        """Go back into the queue, now that all is saved; the exit code counts only where SLURM does not end the job."""
        if self.rank == 0 and not requeue_unless_pointless(job_id(), self.array, self.task, self.started):
            return Unfinished.exit_code
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1.0)  # the TERM that ends the job stays blocked; SLURM kills then
        return Unfinished.exit_code
