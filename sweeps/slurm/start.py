"""The start of a job: `python start.py LOGS`, by path, in every task of the job.

It blocks signals before it imports anything slow: a signal that SLURM sends meanwhile would end the task, with nothing
saved; blocked, it waits until the supervisor handles it.
"""

import signal
import sys

signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2))
# Python put this file's own folder there, whose modules could hide the standard library's.
sys.path[0] = __file__.rpartition("/sweeps/slurm/")[0]

import os  # noqa: E402
from pathlib import Path  # noqa: E402


def main(logs: Path) -> None:
    from submitit.core.submission import process_job
    from submitit.core.utils import DelayedSubmission

    from sweeps.slurm.job import Task, job_id

    job = job_id()
    rank = os.environ.get("SLURM_PROCID", "0")
    for leftover in logs.glob(f"{job}_{rank}_*.save_tmp"):
        leftover.unlink(missing_ok=True)  # of an attempt that was killed: submitit refuses to write beside it
    pickle = logs / f"{job}_submitted.pkl"
    if not pickle.exists():
        # The submitter was killed before it wrote the pickle, or is slow. The plan is older than the job: take it from
        # there. Every rank may do so, each by a file of its own that replaces the pickle in one step.
        array = logs.parent / "arrays" / f"{os.environ['SLURM_JOB_NAME']}.json"
        index = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
        temporary = pickle.with_name(f".{pickle.name}.{rank}.{os.getpid()}")
        DelayedSubmission(Task(str(array), index)).dump(temporary)
        temporary.replace(pickle)
    process_job(logs)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
