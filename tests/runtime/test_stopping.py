"""Signals as requests: which are heard, what they end with, and those that come before anyone listens."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.workers import in_order
from runtime.errors import Unfinished, UserError
from runtime.stopping import SIGNALS, stop_request


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number):
    with stop_request() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else Unfinished):
            stop.leave()


def test_a_second_ctrl_c_interrupts_at_once():
    with stop_request(), pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_was_blocked_at_the_start_is_heard_at_the_first_chance():
    script = (
        "import os, signal; from runtime.stopping import stop_request\n"
        "os.kill(os.getpid(), signal.SIGUSR2)\n"
        "with stop_request() as stop: print(signal.Signals(stop.signal).name)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('still here')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
    )
    assert done.stdout.split("\n")[:2] == ["SIGUSR2", "still here"]


class SlowSteps:
    def __getitem__(self, step):
        time.sleep(0.02)
        return step


def workers_of(pid):
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_workers_of_a_loader_outlive_a_cluster_s_signals_and_obey_their_parent():
    batches = in_order(SlowSteps(), range(60), 2, "processes")
    assert next(batches) == 0
    workers = set(workers_of(os.getpid()))
    assert len(workers) >= 2
    # From a process that is not the parent, as slurmstepd is not, to all of them.
    script = "import os, sys; [os.kill(int(pid), int(sys.argv[1])) for pid in sys.argv[2:]]"
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
        subprocess.run([sys.executable, "-c", script, str(int(number)), *map(str, workers)], check=True)
    assert list(batches) == list(range(1, 60))
    batches = in_order(SlowSteps(), range(60), 1, "processes")
    assert next(batches) == 0
    (worker,) = set(workers_of(os.getpid())) - workers
    os.kill(worker, signal.SIGTERM)
    with pytest.raises(UserError, match="exited unexpectedly"):
        list(batches)
