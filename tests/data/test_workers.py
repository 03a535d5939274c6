"""Worker processes that die, cannot send their batch, or do nothing: reported in one line, and none is left."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data import workers
from data.workers import WatchedLoader, in_order
from runtime import import_path
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


class Steps:
    """Each takes `seconds` and gives `numbers` numbers; step 3 does `trouble` first."""

    def __init__(self, numbers=10, seconds=0.0, trouble=lambda: None):
        self.numbers, self.seconds, self.trouble = numbers, seconds, trouble

    def __getitem__(self, step):
        if step == 3:
            self.trouble()
        time.sleep(self.seconds)
        return torch.full((self.numbers,), step)


def run_steps(steps, count=8):
    return [int(batch[0]) for batch in in_order(steps, range(count), 2, "processes")]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(workers, "POLL_SECONDS", 1)
    yield
    deadline = time.monotonic() + 600
    while left := multiprocessing.active_children():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def small_shared_memory(*command, kilobytes=1024):
    """Run a command where /dev/shm is a small one of its own; it must end by itself."""
    mount = f"mount -t tmpfs -o size={kilobytes}k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("needs the right to mount in a namespace of its own (unshare -m)")
    # A pid namespace besides: the last process of it has ended when the command has.
    argv = ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh", *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        argv,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate()
    finally:
        end_all(process)
    return process.returncode, out, err


def end_all(process):
    """Wait until no process of its session is left; those that stay are killed, and fail the test."""
    deadline = time.monotonic() + 60
    while left := processes_of(process.pid):
        if time.monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(left)
        time.sleep(0.1)


def processes_of(session):
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            pids.append(int(stat.parent.name))
    return pids


def test_a_full_shared_memory_ends_the_loader_and_says_how_much_it_needs(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, torch; from data.workers import in_order; from runtime.errors import run_command\n"
        "class Steps:\n"
        "    def __getitem__(self, step): return {'images': [torch.zeros(300_000)], 'step': step}\n"
        "run_command(lambda argv: print(len(list(in_order(Steps(), range(9), int(argv[0]), 'processes')))))\n"
    )
    assert small_shared_memory(sys.executable, script, 0) == (0, "9\n", "")
    code, _, err = small_shared_memory(sys.executable, script, 2)
    (line,) = err.splitlines()
    assert code == 2
    assert line.startswith("error: shared memory is full: a worker process of the data loader has no room for a batch")
    for part in ("a batch of 1.2 MB", "2 workers hold up to 4.8 MB", "of 1.0 MB free", "machine.workers=0"):
        assert part in line


def test_no_room_for_the_queues_is_reported_as_full_shared_memory(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from data.workers import in_order; from runtime.errors import run_command\n"
        "open('/dev/shm/full', 'wb', buffering=0).write(bytes(4096))\n"
        "run_command(lambda argv: print(len(list(in_order(range(9), range(9), 2, 'processes')))))\n"
    )
    code, _, err = small_shared_memory(sys.executable, script, kilobytes=4)
    assert (code, err.count("\n")) == (2, 1)
    assert "shared memory is full: there is no room for the data loader's queues" in err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "eval.linear", "eval.segmentation"])
def test_each_stage_ends_where_shared_memory_is_full(stage, tmp_path, command):
    runs = f"machine.runs={tmp_path}"
    small = ["train.duration=0 steps", "train.batch_size=64", "model.expander=16-16", "model.projector=16-16"]
    argv = ["pretrain", "--config", "pretrain/configs/quickstart.yaml", "data.name=scenes", *small, runs]
    if stage != "pretrain":
        done = command(*argv)
        assert done.returncode == 0, done.stderr
        config = {"eval.linear": "linear_scenes", "eval.segmentation": "seg_scenes"}[stage]
        (run,) = (tmp_path / "pretrain").iterdir()
        argv = [stage, run, "--config", f"eval/configs/{config}.yaml", runs]
    else:
        argv[4] = "train.duration=4 steps"
        argv.append("optimizer.warmup=1 steps")
    code, _, err = small_shared_memory(sys.executable, "-m", *argv, "machine.workers=2", kilobytes=200)
    assert code == 2, err
    assert err.splitlines()[-1].startswith("error: shared memory is full"), err
    assert "Traceback" not in err


def test_a_worker_killed_for_its_memory_is_reported(capfd):
    with pytest.raises(UserError, match=r"exited unexpectedly \(SIGKILL\); usual reason: .* ran out of memory"):
        run_steps(Steps(trouble=lambda: os.kill(os.getpid(), signal.SIGKILL)))


def test_sigbus_of_a_worker_means_full_shared_memory():
    with pytest.raises(UserError, match="shared memory is full: a worker process of the data loader got SIGBUS"):
        run_steps(
            Steps(trouble=lambda: (signal.signal(signal.SIGBUS, signal.SIG_DFL), os.kill(os.getpid(), signal.SIGBUS)))
        )


def test_a_dead_worker_is_not_raised_where_the_main_thread_happens_to_be():
    batches = in_order(Steps(), range(50), 1, "processes")
    next(batches)
    (worker,) = [child for child in multiprocessing.active_children() if child.daemon]
    worker.kill()
    worker.join()  # a signal handler would raise here
    with pytest.raises(UserError, match="SIGKILL"):
        list(batches)


def test_workers_that_do_nothing_are_given_up(monkeypatch):
    monkeypatch.setattr(workers, "IDLE_POLLS", 2)
    with pytest.raises(UserError, match="made no batch and computed nothing for 2 s"):
        run_steps(Steps(trouble=lambda: time.sleep(600)))


def test_workers_that_compute_for_long_are_not_given_up(monkeypatch, tmp_path):
    """Until they were looked at four times, of which two in a row may be idle: a busy machine may give them nothing."""
    polls, failure = tmp_path / "polls", workers._Idleness.failure
    polls.touch()

    def look(idleness):
        with open(polls, "a") as file:
            file.write(".")
        return failure(idleness)

    def compute():
        while polls.stat().st_size < 4:
            pass

    monkeypatch.setattr(workers, "IDLE_POLLS", 3)
    monkeypatch.setattr(workers._Idleness, "failure", look)
    assert run_steps(Steps(trouble=compute)) == list(range(8))


def test_an_exception_of_a_worker_keeps_its_type():
    def fail():
        raise KeyError("of the dataset")

    with pytest.raises(KeyError, match="of the dataset"):
        run_steps(Steps(trouble=fail))


def test_a_batch_that_cannot_be_sent_is_an_error_and_no_hang():
    class Unsendable(Steps):
        def __getitem__(self, step):
            return lambda: step

    with pytest.raises(RuntimeError, match="cannot send its batch"):
        list(in_order(Unsendable(), range(4), 2, "processes"))


def test_a_loader_that_is_not_exhausted_leaves_no_worker():
    batches = in_order(Steps(), range(50), 2, "processes")
    next(batches)
    del batches


def test_without_workers_it_is_a_dataloader():
    assert [int(batch[0]) for batch in WatchedLoader(Steps(), batch_size=None, sampler=range(4))] == [0, 1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.01, 600], ids=["at work", "in a step for ever"])
def test_no_worker_survives_the_main_process(number, seconds, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time; from data.workers import in_order\n"
        "class Steps:\n"
        "    def __getitem__(self, step): step > 3 and time.sleep(float(sys.argv[1])); return step\n"
        "for step in in_order(Steps(), range(10**6), 2, 'processes'): print(step, flush=True)\n"
    )
    argv = [sys.executable, script, str(seconds)]
    environment = os.environ | import_path()
    process = subprocess.Popen(
        argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.stdout.readline() != "3\n":
        assert process.poll() is None
    assert len(processes_of(process.pid)) == 3
    process.send_signal(number)
    process.wait()
    end_all(process)


def test_every_loader_of_the_stages_is_watched():
    made = re.compile(r"\bDataLoader\(")
    files = [
        file for part in ("data", "pretrain", "eval", "analysis", "vicregl") for file in (ROOT / part).rglob("*.py")
    ]
    assert [file.name for file in files if made.search(file.read_text(encoding="utf-8"))] == []
