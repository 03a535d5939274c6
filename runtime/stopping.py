"""Ctrl-C, TERM, USR1 and USR2 as a request, which the training loop reads after each step so that it can save."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from runtime.errors import Unfinished

# Clusters send TERM when they preempt, and USR1 or USR2 (by sbatch --signal) some time before that or a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_PARENT_POLL_SECONDS = 1.0  # between two checks that a worker's parent is alive


class StopRequest:
    """True once one of SIGNALS arrived. A second INT interrupts at once, as usual."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def leave(self) -> NoReturn:
        """Raise what ends the run; the caller has saved its state."""
        if self.signal is None or self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Unfinished(f"got {signal.Signals(self.signal).name}")


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Let SIGNALS set the request during the block instead of ending the process. Main thread only.

    The block also unblocks them: a parent may have blocked them, so that none is lost before the block starts.
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
    """Make this process, a data loader's worker, ignore SIGNALS from any process but its parent.

    A cluster sends them to every process of a job, and the run needs its workers until it has saved. The parent's TERM,
    by which torch and multiprocessing end a worker, still ends it, and so does the parent's death, which a busy or
    blocked worker would not notice.
    """
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # A handler does not learn the sender of a signal; a thread that waits for it (sigtimedwait) does.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    threading.Thread(target=_await_parents_term, args=(os.getppid(),), daemon=True).start()


def _await_parents_term(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait((signal.SIGTERM,), _PARENT_POLL_SECONDS)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
