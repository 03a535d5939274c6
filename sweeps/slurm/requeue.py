"""The requeue rule: when a job whose run has saved, but is not done, goes back into the queue.

It goes back unless
- the run was cancelled, by `cancel` (which marks its directory first) or by scancel (which SLURM's state shows);
- the job has reached its limit three times without finishing a step, and would for ever;
- the controller does not answer for ten minutes. `reconcile` submits the run again then.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import UserError
from runtime.rundir import Run
from sweeps.failures import is_cancelled
from sweeps.slurm import commands

# Times that a job may reach its limit again without a new step.
IDLE_LIMITS = 2


def requeue_unless_pointless(job: str, array: dict[str, Any], task: dict[str, Any], started: float) -> bool:
    """Requeue the job, which ends it from outside; False where the rule above says no.

    `array` and `task` are what records.py wrote of the job; `started` is when it began, in seconds since 1970.
    """
    run = Run(Path(task["path"]))
    # The mark comes first: a scancel of this very moment need not show in the job's state yet, and requeueing would
    # undo it.
    if is_cancelled(run, array["time"]):
        return False
    try:
        idle = reached_limit_idle(job, array, run, started)
    except (OSError, UserError):  # a full disk, for example: that must not keep the job from the queue
        idle = False
    return not idle and requeue(job)


def requeue(job: str) -> bool:
    """Put the job back into the queue, unless a user cancelled it or the controller cannot be reached."""
    shown = commands.state_and_reason(job)
    if shown is None:
        say("the controller does not answer: not requeued")
        return False
    state, _, reason = shown.partition("|")
    if state == "PENDING":  # SLURM requeued it by itself, after a preemption
        return True
    # A job that ends because of its limit can be requeued even then. One that ends for another reason was cancelled,
    # which requeueing would undo. Where the controller knows no such job (""), asking it to requeue does no harm.
    if state not in ("RUNNING", "CONFIGURING", "") and reason != "TimeLimit":
        say(f"the job is {state}: cancelled by a user; not requeued")
        return False
    if complaint := commands.requeue(job):
        say(f"not requeued: {complaint}")
        return False
    say(f"job {job} goes back into the queue")
    return True


def reached_limit_idle(job: str, array: dict[str, Any], run: Run, started: float) -> bool:
    """Whether the job reaches its limit again and again without a new step; a failure.json tells the user then.

    What each life of the job had done at its limit is kept beside its logs.
    """
    minutes = array["resources"]["minutes"]
    if time.time() - started < 60 * minutes / 2:
        return False  # it was preempted, or another process held the run: that is not its limit
    progress = (run.heartbeat() or {}).get("progress") or {}
    file = Path(array["logs"]) / f"{job}_limits.json"
    ends = [*(files.read_json(file) or []), progress.get("done")]
    file.write_text(json.dumps(ends), encoding="utf-8")
    if len(ends) <= IDLE_LIMITS or len(set(ends[-IDLE_LIMITS - 1 :])) > 1:
        return False
    message = f"no step done in {IDLE_LIMITS} jobs of {minutes} minutes each; give {array['part']} more minutes"
    record = {"class": "TimeLimit", "kind": "time_limit", "message": message, "time": time.time()}
    files.write_json(run.path / "failure.json", record)
    say(message)
    return True


def say(text: str) -> None:
    print(f"[job] {text}", file=sys.stderr, flush=True)
