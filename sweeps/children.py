"""The child processes of a sweep: their logs, their progress, and that none outlives the sweep."""

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
from sweeps.failures import clear_cancelled, oom_kills
from sweeps.graph import Node

LOG = "log.txt"
# A stopped run may take this long to reach its next step and save; then it is killed.
GRACE_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One running stage; its output is appended to log.txt in its run directory."""

    node: Node
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # bytes of former attempts in the log
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    first_done: int | None = None  # where it began: 0, or the first progress of a resumed run
    asked_to_stop: bool = False
    gpu: str | None = None  # the only one it sees, as CUDA_VISIBLE_DEVICES names it; None: those of this process
    oom_kills: int = field(default_factory=oom_kills)  # by the kernel, on this machine, before it began

    @classmethod
    def start(cls, node: Node, threads: int, machine: Sequence[str] = (), gpu: str | None = None) -> Child:
        """Start the stage of `node` with `threads` threads, unless the user's `machine` overrides say how many."""
        chosen = [text.partition("=")[2] for text in machine if text.startswith("machine.threads=")]
        threads = int(chosen[-1]) if chosen and chosen[-1].isdigit() and int(chosen[-1]) else threads
        argv = node.argv([*machine, f"machine.threads={threads}"])
        first_done = 0 if node.run.state() == "new" else None
        log = node.run.path / LOG
        clear_cancelled(node.run)
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
                preexec_fn=_die_with_parent(),
            )
        return cls(node, process, log, log_start, first_done=first_done, gpu=gpu)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self) -> tuple[int, int, str] | None:
        """Return (done, total, unit) of its heartbeat; None before this process has written one."""
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
        """Extrapolate its speed since this sweep started it; None before there is progress."""
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


def _die_with_parent() -> Callable[[], None] | None:
    """Return a function for the new process: it asks the kernel for TERM when the sweep dies, even by kill -9."""
    # Python between fork and exec is safe here, because no other thread of the sweep runs Python. The kernel watches
    # the parent's thread rather than its process, which is the same for the same reason.
    if not sys.platform.startswith("linux"):
        return None
    libc, parent = ctypes.CDLL(None), os.getpid()

    def request_signal() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before this request
            os._exit(1)

    return request_signal


def stop_all(children: Iterable[Child], grace_seconds: float = GRACE_SECONDS) -> None:
    """Ask each to stop (a stage saves at its next step), wait, and kill what still runs with all its processes."""
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
