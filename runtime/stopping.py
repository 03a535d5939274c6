"""Ctrl-C, TERM, USR1 and USR2 as a request that the loop reads at a step boundary, where it can save first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from runtime.errors import Unfinished

# Clusters send TERM when they preempt, and USR1 or USR2 (by sbatch --signal) some time before that or before a limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PARENT_POLL_SECONDS = 1.0  # between two looks at whether a worker's parent lives


class StopRequest:
    """Truthy once one of SIGNALS arrived. A second INT interrupts at once, as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> NoReturn:
        """End the run, whose state is saved by now."""
        if self.signal is None or self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Unfinished(f"got {signal.Signals(self.signal).name}")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Within the block SIGNALS set the request instead of ending the process. Main thread only.

    A parent may have blocked them, so that none comes before this block can hear it.
    """
    request = StopRequest()
    former = {number: signal.signal(number, request.receive) for number in SIGNALS}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    try:
        yield request
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in former.items():
            signal.signal(number, handler)


def outlive_stops(_worker: int = 0) -> None:
    """Let this process, a data loader's worker, not end by SIGNALS of others than its parent.

    A cluster sends them to every process of a job; the run needs its workers until it has saved. Its own TERM, which
    torch and multiprocessing send to a worker that is left over, ends the worker as before; so does its parent's death,
    of which a worker that is at work, or waits for something, would not hear.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # Only one who waits for a signal is told who sent it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    threading.Thread(target=_await_parents_term, args=(os.getppid(),), daemon=True).start()


def _await_parents_term(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait((signal.SIGTERM,), _PARENT_POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
