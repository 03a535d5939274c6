"""Child processes of a sweep: their log, and that none outlives the sweep that started it."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from runtime.provenance import import_path
from sweeps.cancelled import forgive
from sweeps.failures import oom_kills
from sweeps.graph import Node

LOG = "log.txt"
# How long a stopped run may take to reach its next step and save; then it is killed.
GRACE_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One run at work. Its output goes to the end of log.txt in its run directory."""

    node: Node
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # bytes that former attempts left in the log
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    first_done: int | None = None  # where it began: 0, or what a resumed run said first
    told_to_stop: bool = False
    gpu: str | None = None  # the one that it sees, as CUDA_VISIBLE_DEVICES names it; None: what this process sees
    oom_kills: int = field(default_factory=oom_kills)  # of the kernel, here, before it began

    @classmethod
    def start(cls, node: Node, threads: int, machine: Sequence[str] = (), gpu: str | None = None) -> Child:
        """`threads` unless `machine`, which is the user's, says another number of them."""
        asked = [text.partition("=")[2] for text in machine if text.startswith("machine.threads=")]
        threads = int(asked[-1]) if asked and asked[-1].isdigit() and int(asked[-1]) else threads
        argv = node.argv([*machine, f"machine.threads={threads}"])
        first_done = 0 if node.run.state() == "new" else None
        log = node.run.path / LOG
        forgive(node.run)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            log_start = output.tell()
            output.write(f"$ {shlex.join(argv)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(threads) | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}),
                # A group of its own: Ctrl-C in the terminal reaches the sweep alone, which then stops each run once.
                start_new_session=True,
                preexec_fn=_dies_with_parent(),
            )
        return cls(node, process, log, log_start, first_done=first_done, gpu=gpu)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self) -> tuple[int, int, str] | None:
        """(done, total, unit) of its heartbeat, None before the first of this process."""
        beat = self.node.run.heartbeat()
        if not isinstance(beat, dict) or beat.get("pid") != self.process.pid:
            return None
        progress = beat.get("progress") or {}
        if not progress.get("total"):
            return None
        done, total = int(progress["done"]), int(progress["total"])
        if self.first_done is None:
            self.first_done = done
        return done, total, str(progress.get("unit", ""))

    def seconds_left(self) -> float | None:
        """From its speed since it was started here; None before there is progress."""
        progress = self.progress()
        if progress is None or self.first_done is None or progress[0] <= self.first_done:
            return None
        done, total, _ = progress
        return self.seconds * (total - done) / (done - self.first_done)

    def last_lines(self, count: int) -> list[str]:
        """The last lines of this attempt's output."""
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            text = file.read().decode(errors="replace")
        return [line for line in text.splitlines()[1:] if line.strip()][-count:]


def _environment(threads: int) -> dict[str, str]:
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return os.environ | dict.fromkeys(libraries, str(threads)) | import_path() | {"PYTHONUNBUFFERED": "1"}


def _dies_with_parent() -> Callable[[], None] | None:
    """What a new process does before it becomes the stage: ask for TERM when its parent dies, even by kill -9.

    No other thread of the sweep runs Python, so Python between fork and exec is safe, and the kernel,
    which means the parent's thread, means the sweep.
    """
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the kernel was asked
            os._exit(1)

    return ask


def stop_all(children: Iterable[Child], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask each to stop (a stage saves at its next step), wait, and kill what is left with all its processes."""
    children = list(children)
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
