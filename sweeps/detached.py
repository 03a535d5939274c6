"""A sweep of this machine that goes on when its shell is closed: `submit --cluster local`.

`<runs>/jobs/local/<study>/` has its log, who it is, and a lock that it holds as long as it lives.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runtime import files
from runtime.errors import UserError
from runtime.provenance import import_path
from runtime.rundir import ELSEWHERE
from sweeps.cancelled import BY_OWNER
from sweeps.children import GRACE_SECONDS
from sweeps.graph import Graph

COMMAND = (sys.executable, "-m", "sweeps")


def folder_of(graph: Graph) -> Path:
    root = graph.nodes[0].root if graph.nodes else "runs"
    return Path(root) / "jobs" / "local" / graph.study.name


def log_of(graph: Graph) -> Path:
    return folder_of(graph) / "log.txt"


def start(graph: Graph, options: Sequence[str]) -> dict[str, Any] | None:
    """Begin `run STUDY options` in the background; None where one is at work already, and then nothing is done."""
    folder = folder_of(graph)
    files.make_folder(folder, ELSEWHERE)
    # An flock belongs to the open file, which the sweep inherits: held until it dies, however it dies.
    with open(folder / "lock", "a", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        argv = [*COMMAND, "run", graph.study.file, *options]
        with open(log_of(graph), "ab") as log:
            log.write(f"$ {shlex.join(argv)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | import_path() | {"PYTHONUNBUFFERED": "1"},
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        who = {"pid": process.pid, "host": socket.gethostname(), "started": time.time(), "argv": argv}
        files.write_json(folder / "process.json", who)
    return who


def at_work(graph: Graph) -> dict[str, Any] | None:
    """Who works on the study in the background now, if anybody does."""
    folder = folder_of(graph)
    try:
        with open(folder / "lock", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        who = files.read_json(folder / "process.json")
        return who if isinstance(who, dict) else {}
    return None


def stop(graph: Graph, seconds: float = GRACE_SECONDS + 15.0) -> bool:
    """Ask the sweep to stop, which saves every run at its next step, and wait for it; whether there was one.

    Raises UserError where it works on another host.
    """
    who = at_work(graph)
    if who is None:
        return False
    if who.get("host") != socket.gethostname():
        raise UserError(
            f"{graph.study.name} is at work on {who.get('host')} (process {who.get('pid')}); cancel it there"
        )
    try:
        os.kill(int(who["pid"]), signal.SIGTERM)
    except PermissionError as error:
        raise UserError(f"{graph.study.name} is at work as process {who['pid']} of another user; {BY_OWNER}") from error
    deadline = time.monotonic() + seconds
    while at_work(graph) is not None:
        if time.monotonic() > deadline:
            raise UserError(f"process {who['pid']} did not stop within {seconds:.0f} s; its log: {log_of(graph)}")
        time.sleep(0.1)
    return True
