"""The processes of sweeps on this machine: a child process for each run, and a whole sweep in the background.

A background sweep (`submit --cluster local`) survives its shell. `<runs>/jobs/local/<study>/` has its log, its process
id and host, and a lock that it holds until it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runtime import files, import_path
from runtime.errors import UserError
from runtime.rundir import ELSEWHERE
from sweeps.failures import ASK_OWNER, clear_cancelled, oom_kills
from sweeps.graph import Graph, Node

LOG = "log.txt"
# A stopped run may take this long to reach its next step and save; then it is killed.
GRACE_SECONDS = 30.0
SWEEP_COMMAND = (sys.executable, "-m", "sweeps")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PR_SET_PDEATHSIG = 1


@dataclass
class Child:
    """One running stage; its output is appended to log.txt in its run directory."""

    node: Node
    process: subprocess.Popen[bytes]
    log: Path
    log_start: int  # bytes of earlier attempts in the log
    started: float = field(default_factory=time.monotonic)
    started_at: float = field(default_factory=time.time)
    first_done: int | None = None  # where it began: 0, or the first progress of a resumed run
    asked_to_stop: bool = False
    gpu: str | None = None  # the only one it sees, as CUDA_VISIBLE_DEVICES names it; None: those of this process
    oom_kills: int = field(default_factory=oom_kills)  # by the kernel, on this machine, before it began

    @classmethod
    def start(cls, node: Node, threads: int, machine: Sequence[str] = (), gpu: str | None = None) -> Child:
        """Start the stage of `node` with `threads` threads, unless the user's `machine` overrides set their number."""
        chosen = [text.partition("=")[2] for text in machine if text.startswith("machine.threads=")]
        threads = int(chosen[-1]) if chosen and chosen[-1].isdigit() and int(chosen[-1]) else threads
        argv = node.argv([*machine, f"machine.threads={threads}"])
        first_done = 0 if node.run.state() == "new" else None
        log = node.run.path / LOG
        clear_cancelled(node.run)
        log.parent.mkdir(parents=True, exist_ok=True)
        log_start = log.stat().st_size if log.exists() else 0
        environment = dict.fromkeys(_THREAD_VARIABLES, str(threads)) | (
            {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
        )
        process = _start(argv, log, environment, preexec_fn=_die_with_parent())
        return cls(node, process, log, log_start, first_done=first_done, gpu=gpu)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self) -> tuple[int, int, str] | None:
        """Return (done, total, unit) from its heartbeat; None before this process has written one."""
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
        """Return the last lines of this attempt's output."""
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            text = file.read().decode(errors="replace")
        return [line for line in text.splitlines()[1:] if line.strip()][-count:]


def _start(argv: Sequence[str], log: Path, environment: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that appends its command and its output to `log`."""
    with open(log, "ab") as output:
        output.write(f"$ {shlex.join(argv)}\n".encode())
        output.flush()
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(environment),
            # Ctrl-C in the terminal does not reach it: a sweep then stops each of its runs once.
            start_new_session=True,
            **options,
        )


def _environment(extra: dict[str, str]) -> dict[str, str]:
    return os.environ | import_path() | {"PYTHONUNBUFFERED": "1"} | extra


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


def stop_children(children: Iterable[Child], grace_seconds: float = GRACE_SECONDS) -> None:
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


def _background_folder(graph: Graph) -> Path:
    return Path(graph.root) / "jobs" / "local" / graph.study.name


def background_log(graph: Graph) -> Path:
    return _background_folder(graph) / LOG


def start_background(graph: Graph, options: Sequence[str]) -> dict[str, Any] | None:
    """Start `run STUDY options` in the background; None, with nothing started, if one is running already."""
    folder = _background_folder(graph)
    files.make_folder(folder, ELSEWHERE)
    # flock, unlike files.lock, belongs to the open file: the sweep inherits it from this process, without a moment
    # in between, and holds it until it dies, however it dies.
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        argv = [*SWEEP_COMMAND, "run", graph.study.file, *options]
        process = _start(argv, background_log(graph), {}, pass_fds=[lock.fileno()])
        record = {"pid": process.pid, "host": socket.gethostname(), "started": time.time(), "argv": argv}
        files.write_json(folder / "process.json", record)
    return record


def read_background(graph: Graph) -> dict[str, Any] | None:
    """Return the record (pid, host, ...) of the study's background sweep; None if none is running."""
    folder = _background_folder(graph)
    try:
        with open(folder / "lock", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return files.read_json_object(folder / "process.json") or {}  # it has the lock, and not yet a record
    return None


def stop_background(graph: Graph, seconds: float = GRACE_SECONDS + 15.0) -> bool:
    """Stop the background sweep, which saves every run at its next step, and wait for its end; False if none runs.

    Raises UserError if it runs on another host or belongs to another user.
    """
    sweep = read_background(graph)
    if sweep is None:
        return False
    if sweep.get("host") != socket.gethostname():
        where = f"on {sweep.get('host')} (process {sweep.get('pid')})"
        raise UserError(f"{graph.study.name} is running {where}; cancel it there")
    try:
        os.kill(int(sweep["pid"]), signal.SIGTERM)
    except PermissionError as error:
        raise UserError(
            f"{graph.study.name} is running as process {sweep['pid']} of another user; {ASK_OWNER}"
        ) from error
    deadline = time.monotonic() + seconds
    while read_background(graph) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"process {sweep['pid']} did not stop within {seconds:.0f} s; its log: {background_log(graph)}"
            )
        time.sleep(0.1)
    return True
