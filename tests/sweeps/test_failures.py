"""Each way to fail has its own kind: from exceptions that stages really raise, and from answers of a real cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime.errors import NotFiniteError
from runtime.provenance import Code
from runtime.rundir import Identity, Run, open_run
from sweeps import failures
from sweeps.failures import classify, record_death, tail
from sweeps.slurm.parse import JobInfo, parse_accounting

RECORDED = Path(__file__).parent / "recorded"
IDENTITY = Identity("pretrain", "some", 1, {})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without asking git where the code stands, which matters to no failure."""
    monkeypatch.setattr("runtime.provenance.collect", dict)
    monkeypatch.setattr("runtime.provenance.code", Code)


def begun(folder: Path) -> Run:
    with open_run(folder, IDENTITY, {}) as run:
        pass
    return run


def raised(folder: Path, error: Exception) -> Run:
    run = Run.at(folder, IDENTITY)
    with pytest.raises(type(error)), open_run(folder, IDENTITY, {}):
        raise error
    return run


def real_error_of(code: str) -> Exception:
    """Exceptions that Python and torch really raise if memory runs out."""
    try:
        exec(code, {"np": np})
    except Exception as error:
        return error
    raise AssertionError(f"nothing was raised by {code}")


def test_an_exception(tmp_path: Path) -> None:
    failure = classify(raised(tmp_path, ValueError("no such thing\nand more")), JobInfo("FAILED", exit_code=1))
    assert (failure.kind, failure.last_line) == ("exception", "ValueError: no such thing")


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    failure = classify(raised(tmp_path, NotFiniteError("the loss is not finite at step 3")))
    assert failure.kind == "not_finite"
    assert "step 3" in failure.last_line


@pytest.mark.parametrize(
    "code",
    [
        "bytearray(10**18)",
        "np.empty(10**17)",
        "import torch; torch.empty(10**17)",
        "import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
        "raise OSError(12, 'Cannot allocate memory')",
    ],
)
def test_out_of_memory_as_it_is_raised(tmp_path: Path, code: str) -> None:
    run = raised(tmp_path, real_error_of(code))
    assert classify(run).kind == "out_of_memory", run.failure()


def test_a_step_of_a_worker_killed_for_memory_is_not_its_exception(tmp_path: Path) -> None:
    run = raised(tmp_path, RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."))
    assert classify(run).kind == "exception"
    assert classify(run, JobInfo("OUT_OF_MEMORY")).kind == "out_of_memory"
    assert classify(run, JobInfo("NODE_FAIL")).kind == "node_failure"
    assert classify(run, JobInfo("TIMEOUT")).kind == "exception"  # it raised, and then hung


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        *[("1_1", "exception"), ("1_2", "lost"), ("1_3", "cancelled"), ("1_4", "time_limit"), ("1_6", "lost")],
        *[("1_0", "lost"), ("16_0", "node_failure"), ("11", "cancelled")],
        ("10", "lost"),  # by SLURM itself: the job that it waited for had failed
    ],
)
def test_without_a_record_the_job_decides(tmp_path: Path, job: str, kind: str) -> None:
    info = parse_accounting((RECORDED / "sacct_ended.txt").read_text(), [job, "12_1"])[job]
    failure = classify(begun(tmp_path), info)
    assert failure.kind == kind
    assert ("SLURM cancelled it by itself" in failure.last_line) == (job == "10")


@pytest.mark.parametrize(
    ("state", "kind"),
    [("OUT_OF_MEMORY", "out_of_memory"), ("PREEMPTED", "preempted"), ("DEADLINE", "time_limit")],
)
def test_states(tmp_path: Path, state: str, kind: str) -> None:
    assert classify(begun(tmp_path), JobInfo(state, source="sacct")).kind == kind


# The last lines of real logs.
LIMIT = "slurmstepd-n1: error: *** JOB 6 ON n1 CANCELLED AT 2026-11-23T02:32:40 DUE TO TIME LIMIT ***"
PREEMPTION = "slurmstepd-n1: error: *** STEP 15.0 ON n1 CANCELLED AT 2026-11-23T02:33:22 DUE TO PREEMPTION ***"
CANCELLED = "slurmstepd-n1: error: *** JOB 5 ON n1 CANCELLED AT 2026-11-23T02:31:43 ***"
MEMORY = (
    "slurmstepd-n1: error: StepId=8.0 exceeded memory limit (182833152 > 62914560), being killed\n"
    "slurmstepd-n1: error: Exceeded job memory limit\nsrun: error: n1: task 0: Killed"
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(LIMIT, "time_limit"), (PREEMPTION, "preempted"), (CANCELLED, "cancelled"), (MEMORY, "out_of_memory")],
)
def test_without_accounting_the_log_decides(tmp_path: Path, text: str, kind: str) -> None:
    log = tmp_path / "1.out"
    log.write_text(f"step 1\n{text}\n\n")
    assert classify(begun(tmp_path), JobInfo(source="squeue"), [log]).kind == kind
    assert classify(begun(tmp_path), None, [tmp_path / "none.out"]).kind == "lost"


def test_the_log_shows_that_the_job_exceeded_its_memory(tmp_path: Path) -> None:
    (log := tmp_path / "1.out").write_text(MEMORY)
    info = parse_accounting((RECORDED / "sacct_ended.txt").read_text(), ["1_6"])["1_6"]
    failure = classify(begun(tmp_path), info, [log])
    assert failure.kind == "out_of_memory"
    assert "xceeded" in failure.last_line


def test_a_program_that_could_not_begin_is_an_exception_with_its_last_line(tmp_path: Path) -> None:
    (log := tmp_path / "1.err").write_text("Traceback\nModuleNotFoundError: No module named 'timm'\n")
    failure = classify(Run.at(tmp_path, IDENTITY), JobInfo("FAILED", exit_code=1), [log])
    assert (failure.kind, failure.last_line) == ("exception", "ModuleNotFoundError: No module named 'timm'")


def test_a_record_of_an_earlier_job_does_not_explain_a_later_one(tmp_path: Path) -> None:
    run = raised(tmp_path, ValueError("long ago"))
    later = time.time() + 100
    assert classify(run, JobInfo("CANCELLED", submitted=later, source="sacct")).kind == "cancelled"
    assert classify(run, JobInfo("FAILED", exit_code=1, submitted=time.time() - 5)).kind == "exception"


def test_a_killed_stage_is_recorded_for_it(tmp_path: Path) -> None:
    run, since = begun(tmp_path), time.time()
    process = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    record_death(run, process.wait(), since, failures.oom_kills())
    failure = classify(run)
    assert failure.kind == "lost"
    assert "SIGKILL" in failure.last_line


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A cgroup in which 40 MB are all the memory there is, made as this machine has its cgroups."""
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory") / f"failures-{os.getpid()}"
    limit = "memory.max" if unified else "memory.limit_in_bytes"
    if not unified and not (group.parent / limit).exists():
        pytest.skip("no cgroups of memory here")
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a cgroup here: {error}")
    try:
        if not (group / limit).exists():
            pytest.skip("memory is not limited by cgroups here")
        (group / limit).write_text(str(40 * 2**20))
        yield group
    finally:
        group.rmdir()


def test_a_stage_killed_by_the_kernel_ran_out_of_memory(tmp_path: Path, small_group: Path) -> None:
    # A child that enters the group (its imports need more), counts, is killed in its own child, and records that.
    program = (
        "import os, subprocess, sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from runtime.rundir import Run; from sweeps.failures import oom_kills, record_death\n"
        "open(sys.argv[2] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "before, since = oom_kills(), time.time()\n"
        "code = subprocess.call([sys.executable, '-c', 'bytearray(200_000_000).hex()'])\n"
        "record_death(Run(Path(sys.argv[3])), code, since, before); print(code)\n"
    )
    run = begun(tmp_path)
    root = str(Path(__file__).resolve().parents[2])
    argv = [sys.executable, "-c", program, root, small_group, run.path]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout.strip() == "-9", done.stderr
    assert classify(run).kind == "out_of_memory", run.failure()


@pytest.mark.parametrize("code", [0, 1, 2, 75])
def test_a_stage_that_ended_by_itself_is_not_recorded(tmp_path: Path, code: int) -> None:
    run = begun(tmp_path)
    record_death(run, code, 0.0, 0)
    assert run.failure() is None


def test_what_a_stage_recorded_stays(tmp_path: Path) -> None:
    since = time.time()
    run = raised(tmp_path, ValueError("its own word"))
    record_death(run, -9, since, 0)
    assert classify(run).last_line == "ValueError: its own word"


def test_the_end_of_a_long_log(tmp_path: Path) -> None:
    (log := tmp_path / "log").write_bytes(b"x" * 100_000 + b"\nline\xff one\r\nbar 10%\rbar 20%\n\n")
    assert tail(log, 2) == ["bar 10%", "bar 20%"]
    assert tail(log, 3)[0] == "line� one"
    assert tail(tmp_path / "none", 3) == []
