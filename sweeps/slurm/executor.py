"""SLURM's side of a submission: jobs and arrays by submitit, and what the controller is asked first."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import SlurmExecutor

from runtime.errors import UserError
from sweeps.slurm.config import Resources
from sweeps.slurm.job import Task
from sweeps.slurm.queue import number_of

# A controller that is being restarted answers again within this long.
PATIENCE_SECONDS = 60.0
_SILENT = re.compile(r"unable to contact slurm controller|socket timed out|connection refused", re.IGNORECASE)


@dataclass(frozen=True)
class Order:
    """One job, or one array of them: all of one stage, with the same resources."""

    name: str  # of the job, unique
    tasks: int
    resources: Resources
    dependency: str = ""  # as aftercorr:17
    parallel: int = 0  # tasks of the array at a time; 0: any number


class Executor(SlurmExecutor):
    """As submitit's, but a job begins at start.py of the submission's code, not in submitit's own module.

    One for each order: a dependency, once set, cannot be taken from an executor again.
    """

    def __init__(self, logs: Path, code: Path) -> None:
        super().__init__(folder=logs)
        self.start = code / "sweeps" / "slurm" / "start.py"

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([sys.executable, "-u", str(self.start), str(self.folder)])


def _executor(order: Order, logs: Path, code: Path) -> Executor:
    """All parameters of sbatch; whole minutes, as integers: submitit compares them."""
    resources = order.resources
    optional: dict[str, Any] = {
        "gpus_per_node": resources.gpus or None,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "setup": list(resources.setup) or None,
        "dependency": order.dependency or None,
    }
    executor = Executor(logs, code)
    executor.update_parameters(
        job_name=order.name,
        time=int(resources.minutes),
        nodes=resources.nodes,
        ntasks_per_node=resources.tasks_per_node,
        cpus_per_task=resources.cpus,
        mem=f"{round(resources.memory_gb * 1024)}M",
        signal_delay_s=resources.signal_seconds,
        array_parallelism=order.parallel or max(1, order.tasks),
        stderr_to_stdout=True,
        wckey=None,  # submitit's own default, which accounting may refuse
        # sbatch's --requeue is off on some clusters, and submitit never gives it. An evaluation whose pretraining
        # failed would wait for ever: --kill-on-invalid-dep. --no-kill is left out: a lost node ends the job.
        additional_parameters={"requeue": True, "kill-on-invalid-dep": "yes"},
        # srun does not inherit the number from sbatch in several versions. Ranks that are left must not hang.
        srun_args=[f"--cpus-per-task={resources.cpus}", "--kill-on-bad-exit=1"],
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


def queue_order(order: Order, array_file: Path, logs: Path, code: Path) -> str:
    """Hand the order to SLURM; the number of its job or array. UserError with sbatch's words where it refuses."""
    executor = _executor(order, logs, code)
    tasks = [Task(str(array_file), index) for index in range(order.tasks)]
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except Exception as error:  # submitit raises FailedJobError, with sbatch's words at the end
        raise UserError(f"sbatch refused {order.name}: {_last_words(str(error))}") from error
    return number_of(str(jobs[0].job_id))


def test_only(order: Order, logs: Path, code: Path) -> None:
    """Let sbatch check an order without queueing it; UserError with sbatch's words where it refuses."""
    executor = _executor(order, logs, code)
    text = executor._make_submission_file_text(executor._submitit_command_str, uuid.uuid4().hex)
    try:
        call(["sbatch", "--test-only"], text)
    except UserError as error:
        raise UserError(f"{order.name}: {error}; correct the cluster config (nothing was queued)") from error


def max_array_size() -> int:
    """How many tasks an array may have here; 1 where arrays are off."""
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", call(["scontrol", "show", "config"]), re.MULTILINE)
    return max(1, int(match[1])) if match else 1


def known_names() -> dict[str, str]:
    """Of every job of this user that the controller has not forgotten: its name -> its number (of the array)."""
    rows = call(["squeue", "--noheader", "--me", "--states=all", "--format=%F|%j"]).splitlines()
    return {name: job for job, _, name in (row.partition("|") for row in rows)}


def call(argv: Sequence[str], text: str | None = None) -> str:
    """What a command of SLURM prints; UserError with what it complains of. Waits for a controller that restarts."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            done = subprocess.run(
                argv, input=text, capture_output=True, encoding="utf-8", errors="surrogateescape", check=False
            )
        except OSError as error:
            raise UserError(f"{argv[0]} cannot be started ({error}): is this a login node of a cluster?") from error
        if done.returncode == 0:
            return done.stdout
        if not _SILENT.search(done.stderr) or time.monotonic() > deadline:
            raise UserError(f"{shlex.join(argv)} failed: {_last_words(done.stderr)}")
        time.sleep(2.0)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(sbatch|squeue|scontrol): ", line)]
    return "; ".join(told[-3:] or lines[-2:] or ["it said nothing"])


def resources_document(resources: Resources) -> Mapping[str, Any]:
    """What records keep of them."""
    keys = ("nodes", "gpus", "tasks_per_node", "cpus", "memory_gb", "minutes", "partition")
    return {key: getattr(resources, key) for key in keys}
