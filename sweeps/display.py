"""The output of `sweeps run`: live lines on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runtime.progress import describe_seconds
from sweeps.estimate import TimeLeft
from sweeps.graph import Node
from sweeps.processes import Child

TERMINAL_SECONDS = 1.0
PLAIN_SECONDS = 30.0
FAILURE_LINES = 12


@dataclass(frozen=True)
class Snapshot:
    """The progress of a sweep at one moment, as numbers of runs."""

    total: int
    done: int
    failed: int
    blocked: int
    elsewhere: int  # another process works on them
    running: tuple[Child, ...]
    left: TimeLeft | None

    def counts(self) -> str:
        parts = [f"{self.done} of {self.total} done"]
        named = (("failed", self.failed), ("blocked", self.blocked), ("elsewhere", self.elsewhere))
        return ", ".join(parts + [f"{count} {name}" for name, count in named if count])

    def time_left(self) -> str:
        return "time left not known yet" if self.left is None else str(self.left)


def describe_child(child: Child) -> str:
    """Describe its progress: "pretrain loss.alpha=0.5  430/1000 steps, 43 %"."""
    progress = child.progress()
    if progress is None:
        return f"{child.node.title}  starting" if child.seconds < 15 else f"{child.node.title}  {child.seconds:.0f} s"
    done, total, unit = progress
    return f"{child.node.title}  {done}/{total} {unit}, {100 * done / total:.0f} %"


class Display:
    """Prints events as lines that stay; `update` shows the current state, on a terminal redrawn in place."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.live: Live | None = None
        self._last = 0.0
        self._began = time.monotonic()
        self._done_before = 0

    def begin(self, study: str, snapshot: Snapshot) -> None:
        self._done_before = snapshot.done
        done = f", {snapshot.done} are done already" if snapshot.done else ""
        self._print(f"{study}: {snapshot.total} runs{done}")
        if snapshot.done < snapshot.total and self.console.is_terminal:
            # Drawn by `update` alone: rich's own thread would run Python while new runs are forked.
            self.live = Live(console=self.console, auto_refresh=False, transient=True)
            self.live.start()
        if snapshot.elsewhere:
            self._print(f"another process works on {snapshot.elsewhere} of them; this one waits for those")

    def started(self, child: Child) -> None:
        self._print(f"start   {child.node.title}", "cyan")

    def finished(self, node: Node, seconds: float | None) -> None:
        took = "by another process" if seconds is None else describe_seconds(seconds)
        self._print(f"done    {node.title}  {took}", "green")

    def failed(self, child: Child, why: str, blocked: Sequence[Node]) -> None:
        self._print(f"FAILED  {child.node.title}: {why}", "bold red")
        for line in child.last_lines(FAILURE_LINES):
            self._print(f"        | {line}")
        self._print(f"        whole output: {child.log}")
        for node in blocked:
            self._print(f"blocked {node.title}: its pretraining failed", "yellow")

    def update(self, snapshot: Callable[[], Snapshot]) -> None:
        """Show the current state, if the last one shown is old enough; only then is the snapshot made."""
        now = time.monotonic()
        if now - self._last < (TERMINAL_SECONDS if self.live else PLAIN_SECONDS):
            return
        first, self._last = self._last == 0.0, now
        current = snapshot()
        if self.live is not None:
            self.live.update(_draw(current, self.console.width), refresh=True)
        elif not first and current.running:
            running = "; ".join(describe_child(child) for child in current.running)
            self._print(f"        {current.counts()}, {current.time_left()}: {running}")

    def close(self) -> None:
        """Restore the terminal."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def stopping(self, count: int) -> None:
        self._print(f"stopping {count} runs at their next step; the same command resumes them from there")

    def end(self, snapshot: Snapshot, interrupted: bool) -> None:
        took = describe_seconds(time.monotonic() - self._began)
        if interrupted:
            self._print(f"interrupted: {snapshot.done} of {snapshot.total} runs done")
        elif snapshot.failed or snapshot.blocked:
            counts = f"{snapshot.failed} failed, {snapshot.blocked} blocked, in {took}"
            again = "the same command tries them again"
            self._print(f"{snapshot.done} of {snapshot.total} runs done, {counts}; {again}", "bold red")
        else:
            new = "nothing was left to do" if snapshot.done == self._done_before else f"in {took}"
            self._print(f"all {snapshot.total} runs done, {new}", "green")

    def _print(self, line: str, style: str | None = None) -> None:
        self.console.print(Text(line, style=style or ""), soft_wrap=True)
        self.console.file.flush()


def _draw(snapshot: Snapshot, width: int) -> Group:
    """Draw a progress bar and, below it, one line for each active run, cut to the terminal's width."""
    fractions = []
    for child in snapshot.running:
        progress = child.progress()
        fractions.append(progress[0] / progress[1] if progress else 0.0)
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=snapshot.total, completed=snapshot.done + sum(fractions), width=max(10, min(40, width // 4))),
        Text(f"{snapshot.counts()}, {snapshot.time_left()}", no_wrap=True, overflow="ellipsis"),
    )
    lines = [Text(f"  {describe_child(c)}", no_wrap=True, overflow="ellipsis") for c in snapshot.running]
    return Group(bar, *lines)
