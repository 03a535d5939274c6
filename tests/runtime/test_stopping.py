"""Signals as requests: which are heard, what they end with, and those that come before anyone listens."""

import os
import signal
import subprocess
import sys

import pytest

from runtime.errors import Unfinished
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
