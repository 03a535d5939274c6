"""A run's progress, in its heartbeat and in printed lines; durations and sizes in readable units."""

from __future__ import annotations

import time

from runtime.rundir import Run


class Progress:
    """Prints lines such as `linear 3/10 epochs, 12 s left`; the time left follows the speed of this attempt."""

    def __init__(self, run: Run, label: str, total: int, unit: str, every_seconds: float, done: float = 0) -> None:
        self.run, self.label, self.total, self.unit = run, label, total, unit
        self.every_seconds = every_seconds
        self.first = done
        self.started = self.printed = time.monotonic()
        run.set_progress(int(done), total, unit)

    def update(self, done: float, note: str = "") -> None:
        """Set `done` of `total`; a fraction counts for the time left only."""
        self.run.set_progress(int(done), self.total, self.unit)
        now = time.monotonic()
        if done <= self.first or (now - self.printed < self.every_seconds and done < self.total):
            return
        self.printed = now
        left = (now - self.started) / (done - self.first) * (self.total - done)
        note = f", {note}" if note else ""
        print(f"{self.label} {int(done)}/{self.total} {self.unit}{note}, {describe_seconds(left)} left", flush=True)


def describe_seconds(seconds: float) -> str:
    """Format a duration with two units at most: "8 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def describe_bytes(count: float) -> str:
    """Format a size in powers of 1000, as disks and the reports do: "512 B", "8.4 MB", "17.0 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
