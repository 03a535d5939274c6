"""How far an evaluation is: in the heartbeat always, on the terminal now and then."""

from __future__ import annotations

import time

from runtime.rundir import Run
from runtime.text import describe_seconds


class Progress:
    """Prints lines as `linear 3/10 epochs, 12 s left`; the time left is of this attempt's own speed."""

    def __init__(self, run: Run, what: str, total: int, unit: str, every_seconds: float, done: float = 0) -> None:
        self.run, self.what, self.total, self.unit = run, what, total, unit
        self.every_seconds = every_seconds
        self.first = done
        self.started = self.printed = time.monotonic()
        run.progress(int(done), total, unit)

    def update(self, done: float, note: str = "") -> None:
        """`done` of `total`; a fraction counts for the time left only."""
        self.run.progress(int(done), self.total, self.unit)
        now = time.monotonic()
        if done <= self.first or (now - self.printed < self.every_seconds and done < self.total):
            return
        self.printed = now
        left = (now - self.started) / (done - self.first) * (self.total - done)
        note = f", {note}" if note else ""
        print(f"{self.what} {int(done)}/{self.total} {self.unit}{note}, {describe_seconds(left)} left", flush=True)

    def add(self, before: float, done: float) -> None:
        """`done` of a part that begins at `before`."""
        self.update(before + done)
