"""What a job does in each of its tasks: start the run as a child, pass signals on, and go back into the queue.

The child saves at a step boundary and ends with 75 (all ranks together: they agree). Then rank 0 requeues the job.
Whatever the scheduler does without a signal, the child's periodic saves are there; whatever it does with one, no
handler interrupts Python in the middle of something: this process waits for signals, and does nothing else.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime.errors import BusyError, Unfinished
from runtime.provenance import import_path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
UNFINISHED, BUSY = Unfinished.exit_code, BusyError.exit_code
POLL_SECONDS = 0.5
# Requeueing ends this job from outside. Rank 0 does it; the others wait, as does rank 0 after it.
END_SECONDS = 120.0
# A rank that failed leaves the others this long to say so: srun ends them all when the first one goes.
GRACE_SECONDS = 30.0
# A run that another process holds: one that SLURM lost sight of on a node that came back, say.
BUSY_WAIT_SECONDS = 10.0
BUSY_MINUTES = 5.0
# How long a controller may be away when the job has to go back into the queue.
CONTROLLER_MINUTES = 10.0
UNKNOWN_ASKED = 6  # times, five seconds apart
# Times in a row that a job may run into its limit without a step done.
IDLE_LIMITS = 2


@dataclass(frozen=True)
class Task:
    """What submitit calls: one run of an array, named by where it is written down."""

    array_file: str
    index: int

    def __call__(self) -> None:
        array = json.loads(Path(self.array_file).read_text(encoding="utf-8"))
        code = Supervisor(array, array["tasks"][self.index]).run()
        if code:  # not an Exception, of which submitit would make its own ending
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
    stopped: bool = False  # a signal asked for it

    def run(self) -> int:
        """The exit code for SLURM: 0 where the run is done."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        told = f"{self.task['run']} in job {job_id()}, restart {os.environ.get('SLURM_RESTART_COUNT', '0')}"
        say(f"{told}, rank {self.rank} on {os.environ.get('SLURMD_NODENAME', '?')}")
        if self._is_cancelled():
            say("it was cancelled, so it does not begin")
            return UNFINISHED
        busy_until = time.monotonic() + 60 * BUSY_MINUTES
        while True:
            code = self._attempt()
            if code != BUSY:
                break
            if self.stopped or time.monotonic() > busy_until:
                code = UNFINISHED
                break
            self._wait_for_signal(BUSY_WAIT_SECONDS)
        if code == UNFINISHED:
            return self._go_back()
        if code and self.rank:
            time.sleep(GRACE_SECONDS)
        return code if code >= 0 else 128 - code

    def _attempt(self) -> int:
        """Start the run's process and wait for its end; its return code, as Popen has it."""
        kills = self._oom_kills() if self.rank == 0 else 0
        since = time.time()
        # It inherits the blocked signals, so that none is lost before it can hear them.
        child = subprocess.Popen(self._argv(), cwd=self.array["cwd"], env=self._environment())
        while (code := child.poll()) is None:
            number = self._wait_for_signal(POLL_SECONDS)
            if number is not None and child.poll() is None:
                say(f"got {signal.Signals(number).name}: the run is asked to save and stop")
                child.send_signal(number)
        if code < 0 and self.rank == 0:
            self._record_death(code, since, kills)
        return code

    def _argv(self) -> list[str]:
        return [*shlex.split(self.array["container"]), *self.task["argv"]]

    def _environment(self) -> dict[str, str]:
        """The submission's code before anything else, an editable install or the working directory included."""
        cores = os.environ.get("SLURM_CPUS_PER_TASK", "1")
        ours = {
            **import_path(self.array["code"]),
            "PYTHONUNBUFFERED": "1",
            **self.array["environment"],
        }
        # CUDA_VISIBLE_DEVICES stays as SLURM made it: GPUs may be bound to tasks already.
        return {"OMP_NUM_THREADS": cores} | dict(os.environ) | ours

    def _wait_for_signal(self, seconds: float) -> int | None:
        info = signal.sigtimedwait(STOP_SIGNALS, seconds)
        if info is None:
            return None
        self.stopped = True
        return info.si_signo

    def _oom_kills(self) -> int:
        from sweeps import failures

        return failures.oom_kills()

    def _record_death(self, code: int, since: float, kills: int) -> None:
        from runtime.rundir import Run
        from sweeps import failures

        failures.record_death(Run(Path(self.task["path"])), code, since, kills)

    def _go_back(self) -> int:
        """All is saved. Rank 0 puts the job back into the queue, which ends it; the code is for where it does not."""
        if self.rank == 0 and (self._is_cancelled() or self._idle_too_often() or not requeue(job_id())):
            return UNFINISHED
        deadline = time.monotonic() + END_SECONDS
        while time.monotonic() < deadline:
            time.sleep(1.0)  # the TERM that ends it stays blocked; SLURM kills then
        return UNFINISHED

    def _is_cancelled(self) -> bool:
        """Requeueing would undo a scancel that comes in the same moment; this mark was there before it."""
        from runtime.rundir import Run
        from sweeps import cancelled

        return cancelled.is_cancelled(Run(Path(self.task["path"])), self.array["time"])

    def _idle_too_often(self) -> bool:
        """Whether the job runs into its limit again and again without getting anywhere, and would for ever."""
        if time.time() - self.started < 30 * self.array["resources"]["minutes"]:
            return False  # half of its limit: it was preempted, or somebody else has the run
        folder = Path(self.task["path"])
        progress = (_read_json(folder / "heartbeat.json") or {}).get("progress") or {}
        file = Path(self.array["logs"]) / f"{job_id()}_limits.json"
        ends = [*(_read_json(file) or []), progress.get("done")]
        file.write_text(json.dumps(ends), encoding="utf-8")
        if len(ends) <= IDLE_LIMITS or len(set(ends[-IDLE_LIMITS - 1 :])) > 1:
            return False
        minutes = self.array["resources"]["minutes"]
        message = (
            f"no step done in {IDLE_LIMITS} jobs of {minutes} minutes each; give {self.array['part']} more minutes"
        )
        record = {"class": "TimeLimit", "kind": "time_limit", "message": message, "time": time.time()}
        (folder / "failure.json").write_text(json.dumps(record), encoding="utf-8")
        say(message)
        return True


def requeue(job: str) -> bool:
    """Put this job back into the queue; False where somebody cancelled it, or the controller cannot be reached.

    A job that ends because of its limit is requeued even then. One that ends for another reason was cancelled, which
    requeueing would undo, or was requeued by the controller already.
    """
    shown = _shown(job)
    if shown is None:
        say("the controller does not answer: not requeued")
        return False
    state, _, reason = shown.partition("|")
    if state == "PENDING":
        return True
    # Where it knows no such job, asking it to requeue that does no harm.
    if state not in ("RUNNING", "CONFIGURING", "") and reason != "TimeLimit":
        say(f"the job is {state} by somebody's wish: left to it")
        return False
    done = _ask(["scontrol", "requeue", job])
    if done is None or (done.returncode and not re.search("pending", done.stderr, re.IGNORECASE)):
        say(f"not requeued: {done.stderr.strip() if done else 'the controller does not answer'}")
        return False
    say(f"job {job} goes back into the queue")
    return True


def _shown(job: str) -> str | None:
    """STATE|REASON; empty where the controller knows no such job; None where it does not answer."""
    for _ in range(UNKNOWN_ASKED):
        shown = _ask(["squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T|%r"])
        if shown is None:
            return None
        if lines := shown.stdout.strip().splitlines():
            return lines[0]
        time.sleep(5.0)  # one that has just come back may not have read its jobs yet
    return ""


def _ask(argv: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """A command of SLURM, repeated while the controller is away; None where it stays so."""
    deadline = time.monotonic() + 60 * CONTROLLER_MINUTES
    while time.monotonic() < deadline:
        done = subprocess.run(argv, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if not re.search(r"unable to contact|timed out|refused", done.stderr, re.IGNORECASE):
            return done
        time.sleep(5.0)
    return None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def say(text: str) -> None:
    print(f"[job] {text}", file=sys.stderr, flush=True)
